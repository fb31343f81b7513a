"""How two estimates of the same tokens are related, and how entropies vary with place and word.

All intervals are 95 % intervals, from resampling rows with replacement: the tokens of a row are not independent, rows
are. Everything is computed from sums over each row, so memory grows with the rows and not with their tokens.

Shapes: R rows, S sums a row, K resamples, N tokens.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from modeling_eem.entropy.normalization import min_max_normalize
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.words import ASCII_WHITESPACE, word_starts

RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)
_WHITESPACE = ASCII_WHITESPACE.encode()


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN if there are too few rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Regression:
    """The least-squares line `y = m x + b` over N tokens of R rows.

    Attributes:
        slope, intercept: m and b.
        r_squared: `pearson²`, the share of y's variance that x explains.
        pearson: the correlation.
        tokens: N, tokens that both estimates score.
        rows: R, rows that hold such tokens.
    """

    slope: Estimate
    intercept: Estimate
    r_squared: Estimate
    pearson: Estimate
    tokens: int
    rows: int


@dataclass(frozen=True, eq=False)
class IndexCurve:
    """The mean entropy at each token index, over rows that were first mapped to [0, 1] each.

    Attributes:
        index: `[T]`, a token's place in its row; BOS is 0.
        mean, low, high: `[T]` each.
        rows: `[T]`, how many rows reach that far.
    """

    index: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class SplitWords:
    """The pieces of words of several tokens, in the unit of the entropies.

    Attributes:
        first: mean of first pieces.
        later: mean, over words, of the mean of the later pieces.
        difference: mean over words of the first minus the later.
        words: number of words.
    """

    first: Estimate
    later: Estimate
    difference: Estimate
    words: int


def regression(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Regression:
    """Regress y on x.

    Args:
        pairs: x and y of each row, of equal length; tokens where either is NaN are left out.

    Raises:
        ValueError: for rows of different lengths, less than three tokens, or a constant x.
    """
    sums = []
    shift = np.zeros(2)
    for x_T, y_T in pairs:
        if x_T.shape != y_T.shape:
            raise ValueError(
                f"the estimates are of different rows ({x_T.shape[0]} and {y_T.shape[0]} tokens): use the same."
            )
        both_T = ~(np.isnan(x_T) | np.isnan(y_T))
        x_N, y_N = x_T[both_T].astype(np.float64), y_T[both_T].astype(np.float64)
        if len(x_N) == 0:
            continue
        if not sums:
            shift = np.array([x_N.mean(), y_N.mean()])  # squares of large numbers would lose digits
        x_N, y_N = x_N - shift[0], y_N - shift[1]
        sums.append([len(x_N), x_N.sum(), y_N.sum(), x_N @ x_N, x_N @ y_N, y_N @ y_N])
    sums_RS = np.array(sums).reshape(-1, 6)
    tokens = int(sums_RS[:, 0].sum())
    if tokens < 3:
        raise ValueError(f"a line needs at least three tokens that both estimates score, not {tokens}.")

    def line(sums_KS: np.ndarray) -> np.ndarray:
        n, x, y, xx, xy, yy = sums_KS.T
        xx, xy, yy = xx - x * x / n, xy - x * y / n, yy - y * y / n
        with np.errstate(divide="ignore", invalid="ignore"):
            slope, pearson = xy / xx, xy / np.sqrt(xx * yy)
        intercept = y / n + shift[1] - slope * (x / n + shift[0])
        return np.stack([slope, intercept, pearson**2, pearson], axis=-1)

    if not np.isfinite(line(sums_RS.sum(0, keepdims=True))[0, 0]):
        raise ValueError("a line needs an x that varies.")
    return Regression(*_with_intervals(sums_RS, line), tokens=tokens, rows=len(sums_RS))


def regress(x: TokenEntropies, y: TokenEntropies) -> Regression:
    """Regress one estimate on another of the same rows.

    Raises:
        ValueError: for estimates of different ids.
    """
    ids = [[ids_T[mask_T] for ids_T, mask_T in zip(each.ids, each.attention_mask)] for each in (x, y)]
    if len(x) != len(y) or not all(map(torch.equal, *ids)):
        raise ValueError("the estimates are of different token ids: measure the same rows with both.")
    return regression((x_T.numpy(), y_T.numpy()) for x_T, y_T in zip(x.rows(), y.rows()))


def index_curve(rows: Iterable[np.ndarray]) -> IndexCurve:
    """The mean at each token index of rows that are mapped to [0, 1] by their own least and largest value.

    Here an interval is `mean ± 1.96 · s / √rows`, because a row has one value at an index.

    Args:
        rows: values of each row's real tokens.
    """
    sums_ST = np.zeros((3, 0))
    for values_T in rows:
        is_scored_T = ~np.isnan(values_T)
        scored = torch.from_numpy(values_T[is_scored_T]).double()
        scaled_T = np.zeros(len(values_T))
        scaled_T[is_scored_T] = min_max_normalize(scored, torch.zeros(len(scored)))
        if (missing := len(values_T) - sums_ST.shape[1]) > 0:
            sums_ST = np.pad(sums_ST, ((0, 0), (0, missing)))
        sums_ST[:, : len(values_T)] += np.stack([is_scored_T, scaled_T, scaled_T**2])
    index = np.flatnonzero(sums_ST[0] > 0)
    count, total, squares = sums_ST[:, index]
    mean = total / count
    with np.errstate(divide="ignore", invalid="ignore"):
        half = 1.96 * np.sqrt(np.maximum(squares - total * mean, 0) / (count - 1) / count)
    return IndexCurve(index, mean, mean - half, mean + half, count.astype(int))


def split_words(entropies: Iterable[TokenEntropies]) -> SplitWords:
    """Compare the first and later pieces of words of several tokens.

    Words are delimited by whitespace. A piece holds a byte that is not whitespace. Words with a token that reaches
    into another word, with a token that was not scored, or with a special token among their letters (it parts two
    documents) are left out.

    Args:
        entropies: of rows with texts.

    Raises:
        ValueError: without texts.
    """
    sums = [row for batch in entropies for row in _split_word_sums(batch)]
    sums_RS = np.array(sums).reshape(-1, 3)

    def means(sums_KS: np.ndarray) -> np.ndarray:
        words, first, later = sums_KS.T
        words = np.where(words > 0, words, np.nan)
        return np.stack([first / words, later / words, (first - later) / words], axis=-1)

    return SplitWords(*_with_intervals(sums_RS, means), words=int(sums_RS[:, 0].sum()))


def _split_word_sums(entropies: TokenEntropies) -> Iterable[tuple[int, float, float]]:
    """For each row: the number of split words, the sum of their first pieces, and of the means of the later ones."""
    if entropies.texts is None or entropies.offsets is None:
        raise ValueError("words need a text: pass tokenizer= to the estimator.")
    for row, (text, is_real_T) in enumerate(zip(entropies.texts, entropies.attention_mask)):
        has_bytes_T = is_real_T & (entropies.offsets[row, :, 1] > entropies.offsets[row, :, 0])
        starts_N, ends_N = entropies.offsets[row][has_bytes_T].numpy().T
        starts_W = word_starts(text)
        first_word = np.searchsorted(starts_W, starts_N, side="right") - 1
        last_word = np.searchsorted(starts_W, ends_N - 1, side="right") - 1
        is_piece = np.array([text[start:end].strip(_WHITESPACE) != b"" for start, end in zip(starts_N, ends_N)], bool)
        spoiled = set(first_word[first_word != last_word]) | set(last_word[first_word != last_word])
        spoiled |= _parted_words(text, starts_W, entropies.offsets[row][is_real_T & ~has_bytes_T][:, 0].numpy())
        values = entropies.values[row][has_bytes_T].numpy()
        words, first_sum, later_sum = 0, 0.0, 0.0
        for word in np.unique(first_word):
            pieces = values[(first_word == word) & is_piece]
            if word not in spoiled and len(pieces) > 1 and not np.isnan(pieces).any():
                words, first_sum, later_sum = words + 1, first_sum + pieces[0], later_sum + pieces[1:].mean()
        yield words, first_sum, later_sum


def _parted_words(text: bytes, starts_W: np.ndarray, places_N: np.ndarray) -> set[int]:
    """The words that have a token without bytes between two of their letters; a text's end is in no word."""
    inner_N = places_N[places_N < len(text)]
    words_N = np.searchsorted(starts_W, inner_N, side="right") - 1
    return {int(word) for word, place in zip(words_N, inner_N) if text[starts_W[word] : place].strip(_WHITESPACE)}


def _with_intervals(sums_RS: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> list[Estimate]:
    """Statistics `[K, S]` → `[K, statistics]` of the rows' sums, with percentiles over resampled rows."""
    values = statistic(sums_RS.sum(0, keepdims=True))[0]
    rows = len(sums_RS)
    if rows < 2:
        return [Estimate(float(value), np.nan, np.nan) for value in values]
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(RESAMPLES):
        counts_R = np.bincount(generator.integers(rows, size=rows), minlength=rows)
        resampled.append(counts_R @ sums_RS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a constant estimate has no correlation, and no interval
        low, high = np.nanpercentile(statistic(np.array(resampled)), _PERCENTILES, axis=0)
    return [Estimate(float(value), float(a), float(b)) for value, a, b in zip(values, low, high)]
