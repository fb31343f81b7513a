"""The bytes and seconds that a file would take, before anything is written."""

import time
from dataclasses import dataclass
from io import BytesIO
from mmap import mmap

from modeling_eem.codec.text import Item, TokenTable, read_items
from modeling_eem.codec.window_encoder import WindowEncoder, capacity
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

    The sample is encoded, and its payloads and framing are added up; seconds are those of that. Windows are estimated
    alone, even if the file would carry context.
    """
    parts = _slices(data, sample)
    full = capacity(model, False) if model is not None else 0
    begin = time.perf_counter()
    items = [item for part in parts for item in read_items(BytesIO(part), table, full)]
    seconds = time.perf_counter() - begin
    _encoded_bytes([item for item in items if item.tokens is not None][:1], model)  # compiles what is then timed
    begin = time.perf_counter()
    size = _encoded_bytes(items, model)
    seconds += time.perf_counter() - begin
    sampled = sum(map(len, parts))
    scale = len(data) / max(sampled, 1)
    return Estimate(len(data), size * scale + _ENDS, seconds * scale, sampled)


def _encoded_bytes(items: list[Item], model: WindowModel | None) -> int:
    """Bytes that the windows of `items` take, with framing."""
    return sum(len(window.payload) + _FRAMING for window in WindowEncoder(model, carry=False).encode(items))


def _slices(data: Sampled, sample: int) -> list[bytes]:
    if len(data) <= sample:
        return [data[:]]
    slices = max(min(_SLICES, sample), 1)
    return [data[start : start + sample // slices] for start in range(0, len(data), len(data) // slices)][:slices]


__all__ = ["Estimate", "Sampled", "estimate_file"]
