"""What the container needs from a codec model: the boundary between file format and arithmetic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from tokenizers import Tokenizer


class DamagedPayload(ValueError):
    """A payload that does not end as an encoder ends it; `index` is its place among those given."""

    def __init__(self, index: int) -> None:
        super().__init__(f"payload {index} is damaged: it does not end as the encoder ends it.")
        self.index = index


class WindowModel(Protocol):
    """A model that turns windows of tokens into payloads and back, exactly.

    A window is a list of token ids without BOS, although BOS stands before every window. `contexts` are tokens between
    BOS and the window that both sides know; they count towards the context n.
    """

    id: str
    """Hexadecimal hash over integer weights, tables, tokenizer and window size; the file stores 8 bytes of it."""
    context: int
    """n, including BOS: a window with its context holds up to n - 1 tokens."""
    backend_tokenizer: Tokenizer
    vocab_size: int
    """The model codes tokens below this; its tokenizer may have more."""
    has_code: bool
    """Whether windows may be encoded with a code (an EEM)."""

    def encode_windows(
        self,
        windows: Sequence[list[int]],
        contexts: Sequence[list[int]] | None = None,
        codes: Sequence[np.ndarray] | None = None,
    ) -> list[bytes]:
        """The payload of each window; each decodes alone. With `codes` it holds code and tokens."""
        ...

    def decode_windows(
        self,
        payloads: Sequence[bytes],
        lengths: Sequence[int],
        contexts: Sequence[list[int]] | None = None,
        with_code: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """The windows of `lengths` tokens. May raise DamagedPayload."""
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
        """The estimate: what each window should cost in bits, including its code."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self: ...

    def save_pretrained(self, folder: str | Path) -> None: ...


__all__ = ["WindowModel"]
