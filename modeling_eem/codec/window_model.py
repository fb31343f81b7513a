"""What the container asks of a codec model: the seam between the file and the arithmetic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from tokenizers import Tokenizer


class WindowModel(Protocol):
    """A model that turns windows of tokens into payloads and back, exactly.

    A window is a list of token ids that never holds BOS, though every window begins with it. `contexts` are tokens
    between BOS and the window that both sides know; they count into the context n.
    """

    id: str
    """Hexadecimal hash over integer weights, tables, tokenizer and window size; the file stores 8 bytes of it."""
    context: int
    """n, BOS included: a window with its context holds up to n - 1 tokens."""
    backend_tokenizer: Tokenizer
    has_code: bool
    """Whether windows may be encoded with a code (an EEM)."""

    def encode_windows(
        self,
        windows: Sequence[list[int]],
        contexts: Sequence[list[int]] | None = None,
        codes: Sequence[np.ndarray] | None = None,
    ) -> list[bytes]:
        """Payload of each window, each of which decodes alone; with `codes`, code and tokens."""
        ...

    def decode_windows(
        self,
        payloads: Sequence[bytes],
        lengths: Sequence[int],
        contexts: Sequence[list[int]] | None = None,
        with_code: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """The windows of `lengths` tokens."""
        ...

    def encode_codes(self, windows: Sequence[list[int]]) -> list[np.ndarray]:
        """The code of each window (EEM only)."""
        ...

    def window_costs_bits(
        self,
        windows: Sequence[list[int]],
        contexts: Sequence[list[int]] | None = None,
        codes: Sequence[np.ndarray] | None = None,
    ) -> list[float]:
        """What each window should cost, in bits, the code included: the estimate."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self: ...

    def save_pretrained(self, folder: str | Path) -> None: ...


__all__ = ["WindowModel"]
