"""Turns records into plain bytes, many windows of text in step."""

from collections.abc import Sequence
from dataclasses import dataclass

from modeling_eem.codec.byte_windows import unpack_bytes
from modeling_eem.codec.container import MAX_PLAIN, RUN, CodecError, DamagedFile, Kind
from modeling_eem.codec.text import TokenTable
from modeling_eem.codec.window_encoder import BATCH, capacity, carried_context
from modeling_eem.codec.window_model import DamagedPayload, WindowModel


@dataclass(frozen=True)
class Record:
    """A window as it was read, with a verified check sum: its number, kind, count (as stored) and payload."""

    number: int
    kind: Kind
    count: int
    payload: bytes

    @property
    def plain_length(self) -> int:
        """Plain bytes that a byte window declares."""
        if self.kind == Kind.RAW:
            return len(self.payload)
        return MAX_PLAIN if self.kind == Kind.ZSTD_FULL else self.count


class WindowDecoder:
    """Decodes records with one model; without a model, byte windows only."""

    def __init__(self, model: WindowModel | None, table: TokenTable | None, carry: bool) -> None:
        self._model = model
        self._table = table
        self._carry = carry
        self._full = capacity(model, carry) if model is not None else 0

    @property
    def step(self) -> int:
        """Windows of text worth waiting for: enough for 64 in step, each of another run if windows carry."""
        return BATCH * (RUN if self._carry else 1)

    def plain(self, records: Sequence[Record]) -> list[bytes]:
        """Plain bytes of each record. Records come in order and, if windows carry, begin at a fresh start.

        Raises:
            DamagedFile: if a payload does not hold what its record says.
        """
        tokens = self._tokens(records)
        return [
            self._text(record, tokens[index]) if record.kind.is_text else _bytes(record)
            for index, record in enumerate(records)
        ]

    def costs_bits(self, records: Sequence[Record]) -> float:
        """The estimate: the model's cost, in bits, of the windows of text among `records`."""
        tokens = self._tokens(records)
        bits = 0.0
        for coded in (False, True):
            chosen = [index for index in tokens if records[index].kind.has_code == coded]
            if chosen:
                model, _ = self._for_text()
                windows = [tokens[index] for index in chosen]
                contexts = [self._context(records, tokens, index) for index in chosen]
                codes = model.encode_codes(windows) if coded else None
                bits += sum(model.window_costs_bits(windows, contexts, codes))
        return bits

    def _tokens(self, records: Sequence[Record]) -> dict[int, list[int]]:
        """The tokens of windows of text, by their index in `records`."""
        tokens: dict[int, list[int]] = {}
        for wave in self._waves(records):
            model, _ = self._for_text()
            contexts = [self._context(records, tokens, index) for index in wave]
            lengths = [self._length(model, records[index]) for index in wave]
            payloads = [records[index].payload for index in wave]
            with_code = [records[index].kind.has_code for index in wave]
            try:
                decoded = model.decode_windows(payloads, lengths, contexts, with_code)
            except DamagedPayload as error:
                number = records[wave[error.index]].number
                raise DamagedFile(f"window {number} is damaged: it does not end as the encoder ends one.") from error
            tokens |= zip(wave, decoded)
        return tokens

    def _for_text(self) -> tuple[WindowModel, TokenTable]:
        """The model and tokenizer that decode windows of text."""
        if self._model is None or self._table is None:
            raise CodecError("the file holds windows of text: decode it with its codec model.")
        return self._model, self._table

    def _waves(self, records: Sequence[Record]) -> list[list[int]]:
        """Indices of windows of text, in waves: a window needs only windows of earlier waves."""
        waves: list[list[int]] = []
        depth = 0
        for index, record in enumerate(records):
            if not record.kind.is_text:
                depth = 0
                continue
            if not self._carry or record.number % RUN == 0:
                depth = 0
            if depth == len(waves):
                waves.append([])
            waves[depth].append(index)
            depth += self._carry
        return waves

    def _context(self, records: Sequence[Record], tokens: dict[int, list[int]], index: int) -> list[int]:
        if not self._carry:
            return []
        return carried_context(self._for_text()[0], records[index].number, tokens.get(index - 1))

    def _length(self, model: WindowModel, record: Record) -> int:
        if record.kind.has_code and not model.has_code:
            raise DamagedFile(f"window {record.number} has a code, but its model has none.")
        if record.kind in (Kind.TEXT_FULL, Kind.CODED_FULL):
            return self._full
        if record.count >= self._full:
            raise DamagedFile(f"window {record.number} declares {record.count} tokens: at most {self._full - 1} fit.")
        return record.count

    def _text(self, record: Record, ids: list[int]) -> bytes:
        _, table = self._for_text()
        try:
            plain = table.decode(ids)
        except IndexError:  # a model may have more tokens than its tokenizer
            raise DamagedFile(f"window {record.number} decodes to a token that its tokenizer does not have.") from None
        if not 0 < len(plain) <= MAX_PLAIN:
            raise DamagedFile(
                f"window {record.number} decodes to {len(plain)} bytes; a window holds 1 to {MAX_PLAIN}."
            )
        return plain


def _bytes(record: Record) -> bytes:
    return unpack_bytes(record.kind, record.plain_length, record.payload)


__all__ = ["Record", "WindowDecoder"]
