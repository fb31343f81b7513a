"""Statistics against scipy and plain loops, and their intervals against what they promise."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from transformers import AutoTokenizer

from modeling_eem.data.tokenizer import encode_text
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.statistics import Estimate, index_curve, regress, regression, split_words
from modeling_eem.entropy.texts import rows_of_ids, rows_of_texts


def _pairs(rows: int, generator: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """y = 0.7 x + 3 + noise, around 1000; rows of 2 to 20 tokens, the first of each not scored."""
    pairs = []
    for _ in range(rows):
        x = 1000 + generator.normal(size=generator.integers(2, 20))
        y = 0.7 * x + 3 + 0.5 * generator.normal(size=len(x))
        x[0] = np.nan
        pairs.append((x, y))
    return pairs


def test_regression_is_scipys() -> None:
    pairs = _pairs(50, np.random.default_rng(0))
    x, y = (np.concatenate(values) for values in zip(*pairs))
    expected = linregress(x[~np.isnan(x)], y[~np.isnan(x)])
    fit = regression(pairs)
    assert fit.slope.value == pytest.approx(expected.slope, rel=1e-9)
    assert fit.intercept.value == pytest.approx(expected.intercept, rel=1e-9)
    assert fit.pearson.value == pytest.approx(expected.rvalue, rel=1e-9)
    assert fit.r_squared.value == pytest.approx(expected.rvalue**2, rel=1e-9)
    assert (fit.tokens, fit.rows) == ((~np.isnan(x)).sum(), 50)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    slopes = [regression(_pairs(40, generator)).slope for _ in range(100)]
    held = sum(slope.low <= 0.7 <= slope.high for slope in slopes)
    assert 86 <= held <= 100 and all(slope.low < slope.value < slope.high for slope in slopes)


def test_a_constant_estimate_has_a_line_and_no_correlation(recwarn: pytest.WarningsRecorder) -> None:
    fit = regression([(np.arange(4.0), np.full(4, 0.1))] * 2)
    assert fit.slope.value == pytest.approx(0) and np.isnan(fit.pearson.value) and np.isnan(fit.pearson.low)
    assert not list(recwarn)


def test_what_has_no_line_is_refused() -> None:
    nan = np.array([math.nan, math.nan, 1.0])
    with pytest.raises(ValueError, match="at least three tokens that both estimates score, not 1"):
        regression([(nan, np.arange(3.0))])
    with pytest.raises(ValueError, match="an x that varies"):
        regression([(np.ones(3), np.arange(3.0))])
    with pytest.raises(ValueError, match=r"different rows \(3 and 2 tokens"):
        regression([(np.ones(3), np.ones(2))])


def test_estimates_of_other_ids_are_refused() -> None:
    ids = torch.tensor([[0, 5, 6, 7]])
    values = torch.tensor([[math.nan, 1.0, 2.0, 4.0]], dtype=torch.float64)
    x = TokenEntropies(ids, values, torch.ones(1, 4).bool(), "exact")
    left = TokenEntropies(
        torch.tensor([[9, 0, 5, 6, 7]]),
        torch.cat([torch.full((1, 1), math.nan, dtype=torch.float64), 2 * values + 1], dim=1),
        torch.tensor([[0, 1, 1, 1, 1]]).bool(),
        "causal",
    )
    fit = regress(x, left)
    assert (fit.slope.value, fit.intercept.value, fit.tokens) == (pytest.approx(2), pytest.approx(1), 3)
    assert math.isnan(fit.slope.low), "one row tells no interval"
    with pytest.raises(ValueError, match="different token ids"):
        regress(x, replace(x, ids=torch.tensor([[0, 5, 6, 8]])))


def test_a_curve_averages_rows_normalised_at_every_index() -> None:
    rows = [np.array([np.nan, 4.0, 2.0, 0.0]), np.array([np.nan, 3.0, 1.0]), np.array([np.nan, 1.0, 3.0])]
    curve = index_curve(rows)
    assert curve.index.tolist() == [1, 2, 3] and curve.rows.tolist() == [3, 3, 1]
    np.testing.assert_allclose(curve.mean, [2 / 3, 0.5, 0])
    half = 1.96 * np.std([1, 1, 0], ddof=1) / math.sqrt(3)
    assert (curve.low[0], curve.high[0]) == (pytest.approx(2 / 3 - half), pytest.approx(2 / 3 + half))
    assert np.isnan(curve.low[2])


def test_words_are_split_into_first_and_later_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")
    rows = rows_of_texts(["Call me\n\n Ishmael. naïve", "me me", " Ishmael"], tokenizer)
    values = [torch.cat([torch.tensor([math.nan]), torch.rand(len(ids_T) - 1)]).double() for ids_T in rows.ids]
    entropies = TokenEntropies.of_rows(rows, values, "x")
    tokens = entropies.to_pandas()
    words = []  # C|all, Is|h|ma|el|. and n|a|Ã|¯|ve of the first row; Is|h|ma|el of the last
    for row, first, count in ((0, "C", 2), (0, " Is", 5), (0, " n", 5), (2, " Is", 4)):
        of_row = tokens[tokens["row"] == row].reset_index()
        begin = of_row.index[of_row["token"] == first]
        assert len(begin) == 1, first
        words.append(of_row["entropy_nats"][begin[0] : begin[0] + count].to_numpy())
    split = split_words([entropies])
    assert split.words == 4
    assert split.first.value == pytest.approx(np.mean([word[0] for word in words]))
    assert split.later.value == pytest.approx(np.mean([word[1:].mean() for word in words]))
    assert split.difference.value == pytest.approx(split.first.value - split.later.value)
    assert split.difference.low < split.difference.value < split.difference.high
    none = split_words([TokenEntropies.of_rows(rows_of_texts(["me me"], tokenizer), values[1:2], "x")])
    assert none.words == 0 and isinstance(none.first, Estimate) and math.isnan(none.first.value)


@pytest.mark.parametrize("second, words", [("Ishmael", 0), (" Ishmael", 2)])
def test_a_word_does_not_go_on_in_the_next_document(second: str, words: int) -> None:
    """BOS between documents holds no byte, so the last letters of one and the first of the next were a word."""
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")
    ids = [token for text in (" Ishmael", second) for token in (tokenizer.bos_token_id, *encode_text(tokenizer, text))]
    rows = rows_of_ids([torch.tensor([*ids, tokenizer.eos_token_id])], tokenizer)
    values = [torch.rand(len(rows.ids[0])).double()]
    assert split_words([TokenEntropies.of_rows(rows, values, "x")]).words == words
