"""Models' estimates of a text side by side: one for each model and method, cut into tokens, words or bytes.

Names of tensors end in their shape: T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_eem.bits import bits_per_byte, nats_to_bits, window_length_bits
from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.causal import CausalEntropy
from modeling_eem.entropy.occlusion import OcclusionEntropy
from modeling_eem.entropy.registry import ESTIMATORS
from modeling_eem.entropy.result import NATS, TokenEntropies
from modeling_eem.entropy.sliding import SlidingEntropy
from modeling_eem.entropy.texts import Rows
from modeling_eem.loading import context_length
from modeling_eem.report import HeatPanel
from modeling_eem.training.token_metrics import code_bits_a_row
from modeling_eem.view.models import STORED, ViewedModel
from modeling_eem.view.stored import stored_entropies

Pieces = Literal["tokens", "words", "bytes"]
PIECES: dict[Pieces, str] = {"tokens": "token", "words": "word", "bytes": "byte"}
_SUMS = ("causal", "exact", STORED)  # methods whose values add up to a code length


class Stopped(Exception):  # noqa: N818  # not an error: the reader asked for it
    """The reader stopped an estimate."""


@dataclass(frozen=True)
class Estimate:
    """One model's estimate of a text by one method.

    Attributes:
        name: model and method, as the page shows them.
        entropies: one row, the whole text.
        extra_bits: bits of a file of the text beside the values; None if the values do not add up to a code length.
        extra_name: the name of those bits.
        notes: what a reader must know of it.
    """

    name: str
    entropies: TokenEntropies
    extra_bits: float | None
    extra_name: str
    notes: tuple[str, ...]

    @property
    def total(self) -> float:
        """The sum of the values, in their unit."""
        return float(self.entropies.totals()[0])

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the text and all else in a file; None if the values do not add up to a code length.

        They do not if a token that holds text is not scored: the first one of a model without BOS.
        """
        if self.extra_bits is None or self.entropies.texts is None or self.entropies.offsets is None:
            return None
        sizes_T = self.entropies.offsets[0].diff(dim=-1).squeeze(-1)
        if (sizes_T[self.entropies.values[0].isnan()] > 0).any():
            return None
        return bits_per_byte(max(nats_to_bits(self.total) + self.extra_bits, 0.0), len(self.entropies.texts[0]))


def check_text(text: str, max_bytes: int) -> None:
    """Raise a ValueError for no text, or more of it than `max_bytes` in UTF-8."""
    if not text.strip():
        raise ValueError("there is no text yet: paste one, or load a file.")
    if (size := len(text.encode(errors="replace"))) > max_bytes:
        raise ValueError(
            f"the text has {size:,} bytes, and this page takes {max_bytes:,} at most: choose a part of it, or start "
            "eem view with a larger --max-bytes."
        )


def read_text(name: str, data: bytes, max_bytes: int) -> str:
    """A file's text; ValueError for one that is too large, or not UTF-8."""
    if len(data) > max_bytes:
        raise ValueError(
            f"{name} has {len(data):,} bytes, and this page takes {max_bytes:,} at most: choose a part of it, or "
            "start eem view with a larger --max-bytes."
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte {error.start}: save it as UTF-8.") from error


def estimate_text(
    viewed: ViewedModel, method: str, text: str, metric: str = "loss", stopped: Event | None = None
) -> Estimate:
    """A model's estimate of a text of any length by one of its methods.

    On a text longer than the model's context, `causal` and `sliding` slide by half the context; the other methods read
    windows one by one, each without the text before it.

    Args:
        metric: the metric of `occlusion`.
        stopped: once it is set, the work ends before the model's next forward pass.

    Raises:
        ValueError: as in the method's estimator; Stopped.
    """
    extra_bits: float | None
    extra_name = "framing and codes"
    if method == STORED:
        entropies, extra_bits, notes = stored_entropies(viewed, text)
    else:
        with _stops_with(cast(PreTrainedModel, viewed.model), stopped or Event()):
            estimator = _estimator(viewed, method, metric)
            entropies, lengths = _measured(estimator, viewed, text)
        notes = _notes(estimator, entropies, len(lengths))
        extra_bits = _extra_bits(viewed, estimator.context, lengths) if method in _SUMS else None
        extra_name = "codes and lengths" if viewed.kind == "eem" else "length"
    name = f"{viewed.name} · {method}" + (f" ({metric})" if method == "occlusion" else "")
    return Estimate(name, entropies, extra_bits, extra_name, tuple(notes))


def pieces_of(entropies: TokenEntropies, pieces: Pieces, bits: bool) -> pd.DataFrame:
    """A row's tokens, words or bytes: `start_byte`, `end_byte` and the `value` of each, in the order of the text.

    Special tokens that were not scored are left out.

    Args:
        bits: turn nats into bits; other units stay.
    """
    in_bits = bits and entropies.unit == NATS
    column = "entropy_bits" if in_bits else entropies.value_column
    if pieces == "bytes":
        frame = entropies.bytes(in_bits)
        frame["start_byte"], frame["end_byte"] = frame["index"], frame["index"] + 1
    else:
        frame = entropies.words(in_bits) if pieces == "words" else entropies.to_pandas(in_bits)
    start, end, values = (frame[name].to_numpy() for name in ("start_byte", "end_byte", column))
    kept = (start != end) | ~np.isnan(values)
    return pd.DataFrame({"start_byte": start[kept], "end_byte": end[kept], "value": values[kept]})


def unit_of(estimate: Estimate, bits: bool) -> str:
    """The unit of its values: bits, nats, or whatever the method measures."""
    unit = estimate.entropies.unit
    return "bits" if bits and unit == NATS else unit


def scales_of(estimates: Sequence[Estimate], pieces: Pieces, bits: bool) -> list[tuple[float, float]]:
    """The colour scale of each estimate, from 0, or the lowest value, to the highest.

    Estimates of one unit share a scale, except occlusion's differences, which are far smaller than the values.
    """
    kinds = [(unit_of(estimate, bits), estimate.entropies.method == "occlusion") for estimate in estimates]
    reaches: dict[tuple[str, bool], list[float]] = {}
    for estimate, kind in zip(estimates, kinds):
        reaches.setdefault(kind, [0.0]).extend(pieces_of(estimate.entropies, pieces, bits)["value"].tolist())
    scales = [(np.nanmin(reaches[kind]), np.nanmax(reaches[kind])) for kind in kinds]
    return [(float(low), float(high) if high > low else float(low) + 1.0) for low, high in scales]


def heat_panels(estimates: Sequence[Estimate], pieces: Pieces, bits: bool) -> list[HeatPanel]:
    """The estimates as heat maps of one text; those of one unit share a scale."""
    panels = []
    for estimate, scale in zip(estimates, scales_of(estimates, pieces, bits)):
        frame = pieces_of(estimate.entropies, pieces, bits)
        shown = _shown_pieces(_text(estimate), frame["end_byte"].tolist())
        unit = unit_of(estimate, bits)
        notes = (_summary(estimate, bits), *estimate.notes)
        panels.append(HeatPanel(estimate.name, shown, frame["value"].tolist(), unit, notes, scale))
    return panels


def comparison(estimates: Sequence[Estimate], pieces: Pieces, bits: bool) -> pd.DataFrame:
    """One line a piece of the text, in order: `token` (or `word`, `byte`), `start_byte`, `end_byte`, then a column for
    each estimate, named after it and its unit. NaN where a model's tokens are cut elsewhere.
    """
    keys = ["start_byte", "end_byte", "number"]
    table: pd.DataFrame | None = None
    for estimate in estimates:
        frame = pieces_of(estimate.entropies, pieces, bits)
        frame["number"] = frame.groupby(["start_byte", "end_byte"]).cumcount()  # tokens without bytes share a place
        frame = frame.rename(columns={"value": f"{estimate.name} ({unit_of(estimate, bits)})"})
        table = frame if table is None else table.merge(frame, how="outer", on=keys)
    if table is None:
        raise ValueError("there is no estimate yet: choose a model and an estimator that fits it.")
    table = table.sort_values(keys, ignore_index=True).drop(columns="number")
    text = _text(estimates[0])
    readable = [_piece(text[start:end]) for start, end in zip(table["start_byte"], table["end_byte"])]
    table.insert(0, PIECES[pieces], readable)
    return table


def to_tsv(table: pd.DataFrame) -> str:
    """A tab-separated table, NaN as `NaN`."""
    return table.to_csv(sep="\t", index=False, na_rep="NaN")


@contextmanager
def _stops_with(model: PreTrainedModel, stopped: Event) -> Iterator[None]:
    """Raise Stopped before a forward pass of a model's backbone once `stopped` is set."""

    def check(*_: Any) -> None:
        if stopped.is_set():
            raise Stopped

    handle = model.base_model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _estimator(viewed: ViewedModel, method: str, metric: str) -> EntropyEstimator:
    model = cast(PreTrainedModel, viewed.model)
    if method == "occlusion":
        return OcclusionEntropy(viewed.eem, metric)
    if method == "sliding":
        return SlidingEntropy(viewed.eem, stride=max(1, viewed.eem.config.max_position_embeddings // 2))
    if method == "causal":
        context = context_length(model.config)
        return CausalEntropy(model, stride=None if context is None else max(1, context // 2))
    return ESTIMATORS[method](model)


def _measured(estimator: EntropyEstimator, viewed: ViewedModel, text: str) -> tuple[TokenEntropies, list[int]]:
    """The text as one row, and the tokens of each window that it was read in."""
    rows = estimator.rows_of_texts([text], viewed.tokenizer)
    ids_T, limit = rows.ids[0], estimator.max_length
    if limit is None or len(ids_T) <= limit:
        for number, row_T in enumerate(rows.ids):
            estimator.check_row(row_T, number)
        return TokenEntropies.of_rows(rows, estimator.measure(rows), estimator.method, estimator.unit), [len(ids_T)]
    has_bos = viewed.tokenizer.bos_token_id is not None
    first_T, rest_T = ids_T[:1], ids_T[1:]
    cuts = (rest_T if has_bos else ids_T).split(limit - 1 if has_bos else limit)
    windows = [torch.cat([first_T, cut_T]) for cut_T in cuts] if has_bos else list(cuts)
    scored = [number for number, window_T in enumerate(windows) if len(window_T) > 1]
    for number in scored:
        estimator.check_row(windows[number], number)
    values = dict(zip(scored, estimator.measure(Rows([windows[number] for number in scored]))))
    unscored = torch.tensor([float("nan")], dtype=torch.float64)
    parts = [values.get(number, unscored) for number in range(len(windows))]
    values_T = torch.cat([unscored, *(part_T[1:] for part_T in parts)] if has_bos else parts)
    return TokenEntropies.of_rows(rows, [values_T], estimator.method, estimator.unit), list(map(len, windows))


def _extra_bits(viewed: ViewedModel, context: int | None, lengths: Sequence[int]) -> float | None:
    """Bits of the codes and lengths of a text's windows; None if no one knows what a code takes.

    A text that slides through a model, or meets no limit, is one message of any length, which is not counted.
    """
    code_bits = code_bits_a_row(viewed.model.config) if viewed.kind == "eem" else 0.0  # type: ignore[union-attr]
    if code_bits is None:
        return None
    told = [] if context is None else [window_length_bits(length, context) for length in lengths if length <= context]
    return len(lengths) * code_bits + sum(told)


def _notes(estimator: EntropyEstimator, entropies: TokenEntropies, windows: int) -> list[str]:
    if windows > 1:
        return [f"{windows} windows of up to {estimator.max_length} tokens, each read without the text before it."]
    notes, context = [], estimator.context
    slides = context is not None and entropies.ids.shape[1] > context
    if slides:
        notes.append(f"Longer than the model's {context} tokens: every token has at least half of them before it.")
    if estimator.method in _SUMS and (slides or context is None):
        notes.append("Read as one message of any length: the bits a byte do not count its length.")
    return notes


def _summary(estimate: Estimate, bits: bool) -> str:
    """A line of totals: sum, mean, and bits a byte if they are meaningful."""
    values_T: Tensor = estimate.entropies.values[0]
    scored = int((~values_T.isnan()).sum())
    unit = unit_of(estimate, bits)
    total = nats_to_bits(estimate.total) if unit == "bits" else estimate.total
    said = f"{total:,.1f} {unit} in {scored:,} tokens, {total / max(scored, 1):.2f} a token"
    if estimate.bits_per_byte is None:
        return f"{said}."
    extra = f", {estimate.extra_bits:,.0f} bits of {estimate.extra_name} included" if estimate.extra_bits else ""
    return f"{said}; {estimate.bits_per_byte:.3f} bits a byte{extra}."


def _shown_pieces(text: bytes, ends: Sequence[int]) -> list[bytes]:
    """The text cut after each piece; text that belongs to no piece is shown too."""
    shown, parts = 0, []
    for end in ends:
        parts.append(text[shown:end])
        shown = max(shown, end)
    if parts:
        parts[-1] += text[shown:]
    return parts


def _text(estimate: Estimate) -> bytes:
    if estimate.entropies.texts is None:
        raise ValueError(f"{estimate.name} has no text.")
    return estimate.entropies.texts[0]


def _piece(piece: bytes) -> str:
    return piece.decode("utf-8", "backslashreplace")
