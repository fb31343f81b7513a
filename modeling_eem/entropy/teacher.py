"""A teacher's cross-entropies for a student's tokens, carried from one tokenizer to the other by UTF-8 byte offsets.

Shapes: T tokens, N bytes of a text, P pairs of a token and one of its bytes.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem.data.tokenizer import is_byte_level
from modeling_eem.entropy.base import EntropyEstimator, Option
from modeling_eem.entropy.causal import CausalEntropy
from modeling_eem.entropy.sliding import STRIDE_HELP
from modeling_eem.entropy.texts import Rows, TextRows, rows_of_texts
from modeling_eem.loading import check_tokenizer

SPREADS = ("bytes", "character_mean")


class TeacherEntropy(EntropyEstimator):
    """Another model's `-log p`, in nats, assigned to a student's tokens.

    "bytes": a teacher token's nats are spread evenly over its bytes, and summed over the bytes of each student token;
    a document keeps its total. "character_mean", the published variant: the mean, over a student token's characters,
    of the loss of the teacher token in which the character begins; it does not keep the total.

    Texts need only the student's tokenizer, which the estimator has. If it is byte-level, it also turns rows of ids
    into text. Special tokens inside a row separate documents, which the teacher reads one by one.

    A teacher whose tokenizer has no BOS reads EOS before each document, as lm-eval does. A special token after a
    document (EOS, or the BOS of the next document in a row) gets the teacher's nats of its own EOS there.

    These tokens are NaN: a row's first token; special tokens that end no document; tokens of a character that a row's
    end cuts in two, because the teacher reads whole characters only. If the teacher's tokenizer has neither BOS nor
    EOS, tokens that share a byte with its first, unscored token are NaN too; what the teacher's later tokens add to
    them is lost.

    Args:
        teacher, teacher_tokenizer: any causal language model and its tokenizer.
        tokenizer: the student's.
        spread: a name of `SPREADS`.
        stride: see `CausalEntropy`; without it, documents longer than the teacher's context are errors.

    Raises:
        ValueError: when called, for what every estimator refuses, or ids that are not UTF-8 text.
    """

    method: ClassVar[str] = "teacher"
    reads_own_tokens: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = (
        Option("spread", "str", "How a teacher token's nats are shared by the student's tokens.", SPREADS, "bytes"),
        Option("stride", "int", STRIDE_HELP),
    )

    def __init__(
        self,
        teacher: PreTrainedModel,
        teacher_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase,
        spread: str = "bytes",
        stride: int | None = None,
        batch_tokens: int = 4096,
    ):
        super().__init__(teacher, batch_tokens)
        if spread not in SPREADS:
            raise ValueError(f"spread must be one of {', '.join(SPREADS)}, not {spread!r}.")
        check_tokenizer(teacher.config, teacher_tokenizer)
        self.causal = CausalEntropy(teacher, stride, batch_tokens)
        self.teacher_tokenizer = teacher_tokenizer
        self.tokenizer = tokenizer
        self.spread = spread

    def rows_of_texts(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> TextRows:
        return super().rows_of_texts(texts, tokenizer or self.tokenizer)

    def rows_of_ids(self, ids: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase | None = None) -> Rows:
        return super().rows_of_ids(ids, tokenizer or self.tokenizer)

    def measure(self, rows: Rows, names: Sequence[int | str] | None = None) -> list[Tensor]:
        assert isinstance(rows, TextRows)  # as `rows_of_texts` and `rows_of_ids` make them
        names = range(len(rows)) if names is None else names
        documents = [document for row in range(len(rows)) for document in self._documents(rows, row, names[row])]
        byte_values = [torch.full((len(text),), float("nan"), dtype=torch.float64) for text in rows.texts]
        read = self._read(documents)
        for document, (values_N, _) in zip(documents, read):
            byte_values[document.row][document.start : document.start + len(values_N)] = values_N
        values = [self._to_tokens(rows, row, values_N) for row, values_N in enumerate(byte_values)]
        for document, (_, end_nats) in zip(documents, read):
            if document.end_token is not None:
                values[document.row][document.end_token] = end_nats
        return values

    def _read(self, documents: Sequence["_Document"]) -> list[tuple[Tensor, float]]:
        """The teacher's values at each document's bytes, `[N]`, and at its end (NaN if that is not needed)."""
        if not documents:
            return []
        read, eos, limit = self._encode(documents), self.teacher_tokenizer.eos_token_id, self.causal.max_length
        ids, names = read.ids, [document.name for document in documents]
        has_end = [
            document.end_token is not None and eos is not None and (limit is None or len(ids_T) < limit)
            for document, ids_T in zip(documents, ids)
        ]
        ids = [torch.cat([ids_T, ids_T.new_tensor([eos])]) if ends else ids_T for ids_T, ends in zip(ids, has_end)]
        to_bytes = spread_over_bytes if self.spread == "bytes" else copy_to_bytes
        told = []
        for values_T, offsets_TX, text, ends in zip(
            super().measure(Rows(ids), names), read.offsets, read.texts, has_end
        ):
            of_text_T = values_T[: len(values_T) - ends]
            told.append((to_bytes(of_text_T, offsets_TX, len(text)), values_T[-1].item() if ends else float("nan")))
        return told

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        """The teacher's nats for rows of its own ids."""
        values = [torch.full((len(row),), float("nan"), dtype=torch.float64) for row in rows]
        scored = [number for number, row in enumerate(rows) if len(row) > 1]
        for number, values_T in zip(scored, self.causal.score([rows[number] for number in scored])):
            values[number] = values_T
        return values

    def check_row(self, ids_T: Tensor, number: int | str) -> None:
        """Raise a ValueError for ids that are not UTF-8 text, or a document longer than the teacher's context."""
        # The tokens of another student's rows come from texts, which `measure` reads at once.
        if is_byte_level(self.tokenizer):
            rows = self.rows_of_ids([ids_T])
            assert isinstance(rows, TextRows)  # the student has a tokenizer
            documents = list(self._documents(rows, 0, number))
            if self.causal.max_length is not None:
                self._encode(documents)

    def _encode(self, documents: Sequence["_Document"]) -> TextRows:
        """Documents as rows that the teacher can read.

        Raises:
            ValueError: for a document that is longer than its context.
        """
        if not documents:
            return TextRows([], (), [])
        read = rows_of_texts([document.text for document in documents], self.teacher_tokenizer)
        bos, eos = self.teacher_tokenizer.bos_token_id, self.teacher_tokenizer.eos_token_id
        if bos is None and eos is not None:
            ids = [torch.cat([ids_T.new_tensor([eos]), ids_T]) for ids_T in read.ids]
            read = TextRows(ids, read.texts, [F.pad(spans_TX, (0, 0, 1, 0)) for spans_TX in read.offsets])
        limit = self.causal.max_length
        for document, ids_T in zip(documents, read.ids):
            if limit is not None and len(ids_T) > limit:
                raise ValueError(
                    f"row {document.name} holds a document of {len(ids_T)} of the teacher's tokens, more than its "
                    f"{limit}: choose a stride (--stride {limit // 2}), or a teacher with a longer context."
                )
            if len(ids_T) > 1:
                self.causal.check_row(ids_T, document.name)
        return read

    @property
    def context(self) -> None:
        """None: the teacher's context is counted in its own tokens."""
        return None

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer is not self.tokenizer and tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError("the tokenizer is not the student's, which the estimator was made with: leave it out.")

    def _documents(self, rows: TextRows, row: int, name: int | str) -> Iterator["_Document"]:
        """The texts between a row's special tokens, without parts of characters at either end."""
        text, spans_TX = rows.texts[row], rows.offsets[row]
        is_special_T = torch.isin(rows.ids[row], torch.tensor(self.tokenizer.all_special_ids))
        is_break_T = is_special_T & (spans_TX[:, 0] == spans_TX[:, 1])
        places = is_break_T.nonzero().flatten().tolist()
        first_at = {int(spans_TX[place, 0]): place for place in reversed(places)}  # the first token of several
        breaks = sorted({0, len(text), *first_at})
        for start, end in zip(breaks, breaks[1:]):
            while start < end and _is_continuation(text[start]):
                start += 1
            try:
                characters, _ = codecs.utf_8_decode(text[start:end], "strict", False)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"row {name} is not UTF-8 text at byte {start + error.start}: a teacher can only read text."
                ) from error
            if characters:
                is_whole = start + len(characters.encode()) == end
                yield _Document(row, name, start, characters, first_at.get(end) if is_whole else None)

    def _to_tokens(self, rows: TextRows, row: int, values_N: Tensor) -> Tensor:
        spans_TX = rows.offsets[row]
        values_T = torch.full((len(spans_TX),), float("nan"), dtype=torch.float64)
        has_bytes_T = spans_TX[:, 1] > spans_TX[:, 0]
        if not has_bytes_T.any():  # a row that holds only EOS, because its document filled the row before it
            return values_T
        token_P, byte_P = _pairs(_without_gaps(spans_TX[has_bytes_T], len(values_N)))
        if self.spread == "bytes":
            shares_N = values_N / torch.bincount(byte_P, minlength=len(values_N))
            collected = torch.zeros(int(has_bytes_T.sum()), dtype=torch.float64).index_add(
                0, token_P, shares_N[byte_P]
            )
        else:
            is_start_N = torch.tensor([not _is_continuation(byte) for byte in rows.texts[row]])
            character_N = torch.where(is_start_N, torch.arange(len(values_N)), 0).cummax(0).values
            token_C, character_C = torch.stack([token_P, character_N[byte_P]]).unique(dim=1)
            sums = torch.zeros(int(has_bytes_T.sum()), dtype=torch.float64)
            collected = sums.index_add(0, token_C, values_N[character_C]) / torch.bincount(token_C)
        values_T[has_bytes_T] = collected
        return values_T


@dataclass(frozen=True)
class _Document:
    """A text of row `row`, called `name`, from byte `start` of it; `end_token` is the special token that ends it."""

    row: int
    name: int | str
    start: int
    text: str
    end_token: int | None


def spread_over_bytes(values_T: Tensor, spans_TX: Tensor, length: int) -> Tensor:
    """Each token's value in equal shares at its bytes, `[N]`.

    A token without bytes gives its value to the next token with bytes (or the last). NaN if a token has no value, or
    no token has bytes.
    """
    has_bytes_T = spans_TX[:, 1] > spans_TX[:, 0]
    holders = has_bytes_T.nonzero().squeeze(1)
    if len(holders) == 0:
        return torch.full((length,), float("nan"), dtype=torch.float64)
    holder_T = torch.searchsorted(holders, torch.arange(len(values_T))).clamp(max=len(holders) - 1)
    given_T = values_T.where(has_bytes_T | ~values_T.isnan(), 0.0)
    held = torch.zeros(len(holders), dtype=torch.float64).index_add(0, holder_T, given_T)
    token_P, byte_P = _pairs(_without_gaps(spans_TX[has_bytes_T], length))
    return torch.zeros(length, dtype=torch.float64).index_add(0, byte_P, (held / torch.bincount(token_P))[token_P])


def copy_to_bytes(values_T: Tensor, spans_TX: Tensor, length: int) -> Tensor:
    """At each byte the value of the first token that holds it, `[N]`; NaN if none has bytes."""
    values_N = torch.full((length,), float("nan"), dtype=torch.float64)
    has_bytes_T = spans_TX[:, 1] > spans_TX[:, 0]
    if has_bytes_T.any():
        token_P, byte_P = _pairs(_without_gaps(spans_TX[has_bytes_T], length))
        first_N = torch.full((length,), len(values_T)).scatter_reduce(0, byte_P, token_P, "amin")
        values_N = values_T[has_bytes_T][first_N]
    return values_N


def _without_gaps(spans_TX: Tensor, length: int) -> Tensor:
    """Spans that leave no byte out: bytes before a token become its own, and the last token gets all after it."""
    starts_T, ends_T = spans_TX.T.clone()
    starts_T = torch.minimum(starts_T, F.pad(ends_T.cummax(0).values[:-1], (1, 0)))
    ends_T[-1] = length
    return torch.stack([starts_T, ends_T], dim=-1)


def _pairs(spans_TX: Tensor) -> tuple[Tensor, Tensor]:
    """Every token paired with each of its bytes, `[P]` both; the bytes of a character in several tokens repeat."""
    widths_T = spans_TX[:, 1] - spans_TX[:, 0]
    token_P = torch.arange(len(spans_TX)).repeat_interleave(widths_T)
    place_P = torch.arange(len(token_P)) - (widths_T.cumsum(0) - widths_T)[token_P]
    return token_P, spans_TX[token_P, 0] + place_P


def _is_continuation(byte: int) -> bool:
    """Whether a byte of UTF-8 continues a character that began before it."""
    return byte & 0xC0 == 0x80
