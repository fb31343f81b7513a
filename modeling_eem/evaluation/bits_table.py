"""Held-out bits of models beside compressors: the honest count, the published shorthand, intervals over documents."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modeling_eem.bits import CodeLength, normalized_loss, published_bits_per_byte
from modeling_eem.data.rows import Row
from modeling_eem.evaluation.code_length import Advance, by_document, window_code_lengths
from modeling_eem.evaluation.compressors import compressed_bits
from modeling_eem.evaluation.intervals import Interval, ratio_difference, ratio_interval
from modeling_eem.evaluation.scored_models import Checkpoint
from modeling_eem.report import Table


@dataclass(frozen=True, eq=False)
class ModelBits:
    """The bits that one model needs for rows of text.

    Attributes:
        name: the model's name.
        max_length: n, the most tokens in a row.
        code_size: numbers in a code, 0 for a causal model.
        documents: for each row, the document that it begins in.
        windows: the code length of each row.
    """

    name: str
    max_length: int
    code_size: int
    documents: Sequence[int]
    windows: Sequence[CodeLength]

    @cached_property
    def total(self) -> CodeLength:
        return sum(self.windows, CodeLength())

    @cached_property
    def by_document(self) -> dict[int, CodeLength]:
        """The code length of each document, all its rows together."""
        return by_document(self.documents, self.windows)

    @property
    def normalized_loss(self) -> float:
        """The published shorthand in nats a token: CE + n_p b_p ln 2 / n; b_p includes a share of the scale's bits."""
        bits_a_number = self.windows[0].code_bits / self.code_size if self.code_size else 0.0
        return normalized_loss(self.total.cross_entropy, self.code_size, bits_a_number, self.max_length)

    @property
    def published_bits_per_byte(self) -> float:
        """(L_t / L_b) · normalized loss / ln 2, with the rows' tokens L_t and bytes L_b."""
        return published_bits_per_byte(self.normalized_loss, self.total.num_tokens / self.total.num_bytes)

    def interval(self) -> Interval:
        """The interval of the bits per byte, over documents drawn with replacement."""
        return ratio_interval(*self._documents())

    def difference(self, other: "ModelBits") -> tuple[float, Interval]:
        """This model's bits per byte minus another's, the same documents drawn for both.

        NaN if documents differ, or parts of them: rows cut at a number of tokens hold more text by some tokenizers.
        """
        sizes = [{name: its.num_bytes for name, its in each.by_document.items()} for each in (self, other)]
        if sizes[0] != sizes[1]:
            return math.nan, Interval(math.nan, math.nan)
        return ratio_difference(*self._documents(), *other._documents())

    def to_json(self, first: "ModelBits") -> dict[str, Any]:
        """All numbers by name, including the difference from `first`."""
        total = self.total
        difference, spread = self.difference(first)
        return {
            "name": self.name,
            "rows": len(self.windows),
            "documents": len(self.by_document),
            **asdict(total),
            "code_numbers": self.code_size,
            "cross_entropy": total.cross_entropy,
            "normalized_loss": self.normalized_loss,
            "bits_per_byte": total.bits_per_byte,
            "bits_per_byte_95": asdict(self.interval()),
            "code_bits_per_byte": total.code_bits / total.num_bytes,
            "side_bits_per_byte": total.side_bits / total.num_bytes,
            "published_bits_per_byte": self.published_bits_per_byte,
            "bits_per_byte_less_first": difference,
            "bits_per_byte_less_first_95": asdict(spread),
        }

    def _documents(self) -> tuple[NDArray, NDArray]:
        lengths = [self.by_document[document] for document in sorted(self.by_document)]
        return np.array([length.total_bits for length in lengths]), np.array([length.num_bytes for length in lengths])


@dataclass(frozen=True)
class CompressorBits:
    """Bits per byte of a compressor on the same bytes: all at once, and a row at a time."""

    name: str
    whole: float
    each_row: float


def measure(
    checkpoint: Checkpoint, rows: Sequence[Row], max_length: int, batch_size: int, advance: Advance | None = None
) -> ModelBits:
    """`ModelBits` of a checkpoint on rows of at most `max_length` tokens."""
    collator = checkpoint.collator(max_length)
    return ModelBits(
        name=checkpoint.name,
        max_length=max_length,
        code_size=checkpoint.code_size,
        documents=[row["document_ids"][0] for row in rows],
        windows=window_code_lengths(checkpoint.model, rows, collator, batch_size, advance),
    )


def measure_compressors(texts: Sequence[bytes], advance: Advance | None = None) -> list[CompressorBits]:
    """The bits of every compressor for the bytes of rows.

    Args:
        texts: the bytes of each row.
        advance: called after each row is compressed by itself, and once more after all rows at once.
    """
    each_row: Counter[str] = Counter()
    for text in texts:
        each_row.update(compressed_bits(text))
        if advance is not None:
            advance(1)
    num_bytes = sum(map(len, texts))
    whole = compressed_bits(b"".join(texts))
    if advance is not None:
        advance(1)
    return [CompressorBits(name, bits / num_bytes, each_row[name] / num_bytes) for name, bits in whole.items()]


def bits_table(models: Sequence[ModelBits], what: str) -> Table:
    """One table row a model.

    Args:
        what: what was scored, for the title.
    """
    total = models[0].total
    return Table(
        columns=(
            "model",
            "nats a token",
            "code bits a row",
            "normalized loss",
            "bits a byte",
            "its 95 %",
            "of them code",
            "published",
        ),
        rows=[
            (
                bits.name,
                bits.total.cross_entropy,
                bits.windows[0].code_bits,
                bits.normalized_loss,
                bits.total.bits_per_byte,
                bits.interval().text(),
                bits.total.code_bits / bits.total.num_bytes,
                bits.published_bits_per_byte,
            )
            for bits in models
        ],
        title=f"Held-out bits: {what}, {len(models[0].windows):,} rows, {total.num_tokens:,} tokens, "
        f"{total.num_bytes:,} bytes",
        notes=(
            "Bits a byte is the honest count: cross-entropy, code and its scale, a bit that says whether a row is "
            "full, and log2(n - 1) bits for the length of a shorter one; BOS is given.",
            "Normalized loss (nats a token) and published (bits a byte) are the shorthand: they spread the code over "
            "n tokens even where a row holds fewer.",
            f"95 %: bootstrap over {len(models[0].by_document):,} documents, each with the rows that begin in it.",
        ),
        formats={"code bits a row": ",.0f"},
    )


def differences_table(models: Sequence[ModelBits]) -> Table:
    """Each later model's difference from the first, with an interval; no interval if the documents differ."""
    first, *others = models
    rows = []
    for bits in others:
        difference, spread = bits.difference(first)
        rows.append((bits.name, difference, spread.text()))
    return Table(
        columns=("model", f"bits a byte more than {first.name}", "its 95 %"),
        rows=rows,
        title="Differences",
        notes=(
            "The same documents are drawn for both models; – where the models' rows hold different parts of them.",
        ),
        formats={f"bits a byte more than {first.name}": "+.3f"},
    )


def compressors_table(compressors: Sequence[CompressorBits]) -> Table:
    """One table row a compressor."""
    return Table(
        columns=("compressor", "bits a byte, all at once", "bits a byte, each row apart"),
        rows=[(bits.name, bits.whole, bits.each_row) for bits in compressors],
        title="General-purpose compressors on the bytes of the first model's rows",
        notes=("gzip -9, bzip2 -9, xz -9e, zstd -19, brotli 11; headers and checksums included.",),
    )


def documents_csv(models: Sequence[ModelBits]) -> str:
    """The numbers behind the intervals: one line for each model and document."""
    records = [
        {"model": bits.name, "document": document, **asdict(length)}
        for bits in models
        for document, length in bits.by_document.items()
    ]
    return pd.DataFrame(records).to_csv(index=False)
