"""The bytes and seconds that a file would take, before anything is written."""

import time
from dataclasses import dataclass
from io import BytesIO
from mmap import mmap

from modeling_eem.codec.byte_windows import pack_bytes
from modeling_eem.codec.text import Item, TokenTable, read_items
from modeling_eem.codec.window_encoder import BATCH, WindowEncoder, capacity
from modeling_eem.codec.window_model import WindowModel

_FRAMING = 8  # bytes of a window's head, check sum and place in the index
_ENDS = 45  # bytes of header and footer
_SLICES = 16

Sampled = bytes | mmap
"""Plain bytes: in memory, or in a file too large for it."""


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds that a file would take on this machine, measured on `sampled_bytes` of the plain bytes."""

    plain_bytes: int
    file_bytes: float
    seconds: float
    sampled_bytes: int

    @property
    def bits_per_byte(self) -> float:
        return 8 * self.file_bytes / max(self.plain_bytes, 1)


def estimate_file(data: Sampled, sample: int, model: WindowModel | None, table: TokenTable | None) -> Estimate:
    """Estimate the file of `data` from at most `sample` of its bytes, in evenly spread slices.

    Text costs the least of the model's cost with a code, without a code (`window_costs_bits`), and as bytes, plus
    framing. Windows are estimated alone, even if the file would carry context. Seconds are those of cutting the sample
    into items, packing its bytes, and encoding one batch of windows.
    """
    parts = _slices(data, sample)
    full = capacity(model, False) if model is not None else 0
    begin = time.perf_counter()
    items = [item for part in parts for item in read_items(BytesIO(part), table, full)]
    size = sum(_bytes_cost(item.data) for item in items if item.tokens is None)
    seconds = time.perf_counter() - begin
    text = [item for item in items if item.tokens is not None]
    if model is not None:
        for first in range(0, len(text), BATCH):
            size += _text_cost(text[first : first + BATCH], model)
    batch = text[:BATCH]
    begin = time.perf_counter()
    for _ in WindowEncoder(model, carry=False).encode(batch):
        pass
    seconds += (time.perf_counter() - begin) * len(text) / max(len(batch), 1)
    sampled = sum(map(len, parts))
    scale = len(data) / max(sampled, 1)
    return Estimate(len(data), size * scale + _ENDS, seconds * scale, sampled)


def _slices(data: Sampled, sample: int) -> list[bytes]:
    if len(data) <= sample:
        return [data[:]]
    slices = max(min(_SLICES, sample), 1)
    return [data[start : start + sample // slices] for start in range(0, len(data), len(data) // slices)][:slices]


def _bytes_cost(data: bytes) -> float:
    return sum(len(pack_bytes(data[at : at + (1 << 16)])[1]) + _FRAMING for at in range(0, len(data), 1 << 16))


def _text_cost(items: list[Item], model: WindowModel) -> float:
    """Bytes that windows of text take, with framing."""
    windows = [item.tokens for item in items if item.tokens is not None]
    bits = model.window_costs_bits(windows)
    if model.has_code:
        coded = model.window_costs_bits(windows, None, model.encode_codes(windows))
        bits = list(map(min, bits, coded))
    return sum(min(cost / 8, len(pack_bytes(item.data)[1])) + _FRAMING for cost, item in zip(bits, items))


__all__ = ["Estimate", "Sampled", "estimate_file"]
