"""The result of every estimator: one value a token, and the token's place in its text."""

import builtins
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from modeling_eem.data.rows import TOKEN_ENTROPIES
from modeling_eem.entropy.normalization import min_max_normalize
from modeling_eem.entropy.texts import Rows, TextRows
from modeling_eem.entropy.words import (
    ASCII_WHITESPACE,
    WHITESPACE_WORDS,
    character_starts,
    spread_over_bytes,
    sum_between,
    word_boundary_corrections,
    word_starts,
)
from modeling_eem.files import write_atomically
from modeling_eem.report import entropy_heatmap_html

if TYPE_CHECKING:
    from datasets import Dataset

NATS = "nats"


@dataclass(frozen=True, eq=False)
class TokenEntropies:
    """Per-token values of a batch of rows; shapes: B rows, T tokens.

    A value belongs to the token it describes: it is the entropy of the token at that place given the tokens before
    it. NaN means not scored: the first token of a row (BOS), and padding.

    Attributes:
        ids: `[B, T]`, as given.
        values: `[B, T]`, float64, in `unit`.
        attention_mask: `[B, T]`, True on real tokens.
        method: the estimator's name.
        unit: "nats", or the unit of an occlusion or gradient, which ranks tokens and is no entropy.
        texts: the UTF-8 bytes of each row, if there was a tokenizer. A window may begin or end inside a character.
        offsets: `[B, T, 2]`, first and last-plus-one byte of each token in its row's text; special tokens and padding
            span nothing.
        boundary_nats: `[B, T]`, `-log P(the next token begins a word)` at each token, if the estimator was asked for
            it; the word probabilities of Pimentel & Meister 2024 need it.
        predictive_nats: `[B, T]`, `-Σ_v p(v | x_<j) log p(v | x_<j)`, the value that the model expected.
        ranks: `[B, T]`, 1 where the token was the likeliest.
    """

    ids: Tensor
    values: Tensor
    attention_mask: Tensor
    method: str
    unit: str = NATS
    texts: tuple[bytes, ...] | None = None
    offsets: Tensor | None = None
    boundary_nats: Tensor | None = None
    predictive_nats: Tensor | None = None
    ranks: Tensor | None = None

    @classmethod
    def of_rows(
        cls,
        rows: Rows,
        values: Sequence[Tensor],
        method: str,
        unit: str = NATS,
        layout: tuple[Tensor, Tensor] | None = None,
    ) -> "TokenEntropies":
        """Values `[t]` of rows, put where their tokens are.

        Args:
            layout: the ids `[B, T]` that the rows came from, and their mask; by default rows are padded with zeros on
                the right.
        """
        if layout is None:
            lengths_B = torch.tensor([len(ids_T) for ids_T in rows.ids])
            mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
            layout = _place(torch.cat(rows.ids), mask_BT, 0), mask_BT
        ids_BT, mask_BT = layout
        texts = offsets = None
        if isinstance(rows, TextRows):
            texts, offsets = rows.texts, _place(torch.cat(rows.offsets), mask_BT, 0)
        values_BT = _place(torch.cat(list(values)).double(), mask_BT, math.nan)
        return cls(ids_BT, values_BT, mask_BT, method, unit, texts=texts, offsets=offsets)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        is_scored_BT = ~self.values.isnan()
        scored = int(is_scored_BT.sum())
        mean = float(self.values.nansum()) / scored if scored else math.nan
        return (
            f"TokenEntropies({self.method}: {len(self)} rows, {int(self.attention_mask.sum())} tokens, "
            f"{scored} of them scored, mean {mean:.4g} {self.unit})"
        )

    def rows(self) -> list[Tensor]:
        """The values of each row's real tokens, `[t]` each."""
        return [values_T[mask_T] for values_T, mask_T in zip(self.values, self.attention_mask)]

    def placed(self, of_tokens_NX: Tensor) -> Tensor:
        """Numbers of all real tokens `[N, …]`, row by row, put at the tokens' places `[B, T, …]`; NaN elsewhere."""
        return _place(of_tokens_NX, self.attention_mask, math.nan)

    def totals(self) -> Tensor:
        """The sum of each row's scored values, `[B]`; in nats it is the row's length without its code."""
        return self.values.nansum(-1)

    def bits(self) -> Tensor:
        """The values in bits, `[B, T]`.

        Raises:
            ValueError: for values that are not entropies.
        """
        self.require_nats("bits")
        return self.values / math.log(2)

    def normalized(self, document_ids: Tensor | None = None) -> Tensor:
        """`(e - min) / (max - min)` over the scored tokens of each document segment, `[B, T]`; NaN stays NaN.

        Args:
            document_ids: `[B, T]`, the document of each token; by default a row is one document.
        """
        if document_ids is None:
            document_ids = torch.zeros_like(self.ids)
        is_scored_BT = ~self.values.isnan()
        rows_BT = torch.arange(len(self))[:, None].expand_as(self.ids)
        segments_XN = torch.stack([rows_BT[is_scored_BT], document_ids[is_scored_BT]])
        segments_N = segments_XN.unique(dim=1, return_inverse=True)[1]
        normalized_BT = torch.full_like(self.values, float("nan"))
        normalized_BT[is_scored_BT] = min_max_normalize(self.values[is_scored_BT], segments_N)
        return normalized_BT

    def to_pandas(self, bits: bool = False) -> pd.DataFrame:
        """One line a real token: `row`, `index` in it (BOS: 0), `id` and the value.

        If texts are known, also the `token` (bytes that are not UTF-8 as `\\x…`), its `start_byte` and `end_byte`; and
        on request `boundary_nats`, `predictive_nats` and `ranks`. The values' column is `value_column`; `bits` adds
        `entropy_bits`.
        """
        frames = []
        for row in range(len(self)):
            columns: dict[str, Any] = {"id": self._real(self.ids, row)}
            if self.texts is not None:
                spans = self._spans(row).numpy()
                columns["token"] = [_readable(self.texts[row][start:end]) for start, end in spans]
                columns["start_byte"], columns["end_byte"] = spans.T
            columns[self.value_column] = self._real(self.values, row)
            more = {"boundary_nats": self.boundary_nats, "predictive_nats": self.predictive_nats, "ranks": self.ranks}
            columns |= {name: self._real(of_BT, row) for name, of_BT in more.items() if of_BT is not None}
            frames.append(_lines(row, columns))
        return self._joined(frames, bits)

    def to_tsv(self, path: str | Path, bits: bool = False) -> Path:
        """Write `to_pandas` as a tab-separated table, NaN as `NaN`."""
        return write_atomically(path, self.to_pandas(bits).to_csv(sep="\t", index=False, na_rep="NaN"))

    def bytes(self, bits: bool = False) -> pd.DataFrame:
        """One line a UTF-8 byte: `row`, `index`, `byte` (0 … 255) and its share of the value; `spread_over_bytes`."""
        frames = []
        for row in range(len(self)):
            text, values_N = self._text_values(row)
            frames.append(_lines(row, {"byte": np.frombuffer(text, np.uint8), self.value_column: values_N}))
        return self._joined(frames, bits)

    def characters(self, bits: bool = False) -> pd.DataFrame:
        """One line a character: `row`, `index`, `character`, `start_byte`, `end_byte` and the sum over its bytes.

        If a window's end cuts a character, each of its bytes is a line of its own, as `\\x…`.
        """
        frames = [self._pieces(row, "character", character_starts(self._text(row))) for row in range(len(self))]
        return self._joined(frames, bits)

    def words(self, bits: bool = False, corrected: bool = False, pattern: str = WHITESPACE_WORDS) -> pd.DataFrame:
        """One line a word: `row`, `index`, `word`, `start_byte`, `end_byte` and the sum over its bytes.

        Whitespace delimits words and belongs to the word after it; `word` is shown without it; see `word_starts`. A
        token that spans two words is split by bytes, so a row's words add up to its tokens. A word with a token that
        was not scored is NaN.

        Args:
            bits: adds `entropy_bits`.
            corrected: sums are `-log P(word)`, see `word_boundary_corrections`; the result must come from
                `CausalEntropy(model, word_starts=word_start_tokens(tokenizer, model.config.vocab_size))`.
            pattern: a regular expression that matches where a word begins.

        Raises:
            ValueError: without texts, or if the correction cannot be made.
        """
        frames = []
        for row in range(len(self)):
            starts_W = word_starts(self._text(row), pattern)
            frame = self._pieces(row, "word", starts_W)
            frame["word"] = frame["word"].str.strip(ASCII_WHITESPACE)
            if corrected:
                frame[self.value_column] += self._corrections(row, starts_W, pattern)
            frames.append(frame)
        return self._joined(frames, bits)

    def to_html(
        self, row: int | None = None, bits: bool = False, title: str = "", scale: tuple[float, float] | None = None
    ) -> str:
        """The texts as a heat map: one HTML page that needs nothing else, see `report.entropy_heatmap_html`.

        Args:
            row: show only this row; by default all rows, one below the other, on one scale.
            bits: show bits instead of nats.
            title: by default the method.
            scale: values of the faintest and the strongest colour; give several maps the same to compare them.
        """
        values_BT = self.bits() if bits else self.values
        tokens: list[builtins.bytes] = []
        values: list[float] = []
        for number in range(len(self)) if row is None else (row,):
            if tokens:
                tokens[-1] += b"\n\n"  # between two texts; a token's value is not changed by it
            tokens += self._shown_tokens(number)
            values += self._real(values_BT, number).tolist()
        unit = "bits" if bits else self.unit
        return entropy_heatmap_html(tokens, values, unit=unit, title=title or self.method, scale=scale)

    def _shown_tokens(self, row: int) -> list[builtins.bytes]:
        """The row's text, cut after each token; text that belongs to no token is shown too."""
        text, shown, tokens = self._text(row), 0, []
        for end in self._spans(row)[:, 1].tolist():
            tokens.append(text[shown:end])
            shown = max(shown, end)
        if tokens:
            tokens[-1] += text[shown:]
        return tokens

    def to_dataset(self) -> "Dataset":
        """Rows for a Trainer, without padding: `input_ids`, and `token_entropies` in `unit` (NaN at BOS)."""
        from datasets import Dataset, DatasetInfo, Features, List, Value  # slow to import, and needed only here

        columns = {
            "input_ids": [self._real(self.ids, row).numpy() for row in range(len(self))],
            TOKEN_ENTROPIES: [self._real(self.values, row).float().numpy() for row in range(len(self))],
        }
        features = Features({"input_ids": List(Value("int64")), TOKEN_ENTROPIES: List(Value("float32"))})
        description = f"{TOKEN_ENTROPIES}: {self.unit}, method {self.method}"
        return Dataset.from_dict(columns, info=DatasetInfo(description, features=features))

    @property
    def value_column(self) -> str:
        """The name of the values' column in tables: `entropy_nats`, or the name of what else was measured."""
        return "entropy_nats" if self.unit == NATS else re.sub(r"\W+", "_", self.unit).lower()

    def require_nats(self, purpose: str) -> None:
        """Raise a ValueError unless the values are in nats."""
        if self.unit != NATS:
            raise ValueError(f"{purpose} need entropies in nats; {self.method} measures {self.unit}.")

    def _real(self, values: Tensor, row: int) -> Tensor:
        return values[row][self.attention_mask[row]]

    def _text(self, row: int) -> builtins.bytes:
        if self.texts is None:
            raise ValueError("these entropies know no text: pass tokenizer= to the estimator.")
        return self.texts[row]

    def _spans(self, row: int) -> Tensor:
        if self.offsets is None:
            raise ValueError("these entropies know no text: pass tokenizer= to the estimator.")
        return self._real(self.offsets, row)

    def _text_values(self, row: int) -> tuple[builtins.bytes, np.ndarray]:
        text = self._text(row)
        return text, spread_over_bytes(self._real(self.values, row), self._spans(row), len(text))

    def _pieces(self, row: int, name: str, starts_W: np.ndarray) -> pd.DataFrame:
        text, values_N = self._text_values(row)
        ends_W = np.append(starts_W[1:], len(text))[: len(starts_W)]
        pieces = [_readable(text[start:end]) for start, end in zip(starts_W, ends_W)]
        sums_W = sum_between(values_N, starts_W)
        return _lines(row, {name: pieces, "start_byte": starts_W, "end_byte": ends_W, self.value_column: sums_W})

    def _corrections(self, row: int, starts_W: np.ndarray, pattern: str) -> np.ndarray:
        if self.boundary_nats is None or pattern != WHITESPACE_WORDS:
            raise ValueError(
                "corrected words are delimited by whitespace, and need "
                "CausalEntropy(model, word_starts=word_start_tokens(tokenizer, model.config.vocab_size))."
            )
        boundary_T = self._real(self.boundary_nats, row)
        return word_boundary_corrections(boundary_T, self._spans(row), starts_W, len(self._text(row)))

    def _joined(self, frames: list[pd.DataFrame], bits: bool) -> pd.DataFrame:
        frame = pd.concat(frames, ignore_index=True)
        if bits:
            self.require_nats("bits")
            frame["entropy_bits"] = frame[self.value_column] / math.log(2)
        return frame


def _place(of_tokens_NX: Tensor, mask_BT: Tensor, fill: float) -> Tensor:
    """Values of all real tokens `[N, …]`, put where the mask is True, `[B, T, …]`; `fill` elsewhere."""
    placed = torch.full((*mask_BT.shape, *of_tokens_NX.shape[1:]), fill, dtype=of_tokens_NX.dtype)
    placed[mask_BT] = of_tokens_NX
    return placed


def _lines(row: int, columns: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    frame.insert(0, "row", row)
    frame.insert(1, "index", range(len(frame)))
    return frame


def _readable(piece: bytes) -> str:
    return piece.decode("utf-8", "backslashreplace")
