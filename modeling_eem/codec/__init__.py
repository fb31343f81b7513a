"""The codec: text to bytes and back, the same on every machine."""

from typing import TYPE_CHECKING, Any

from .codec import Codec, Estimate
from .container import CodecError, DamagedFile, WrongModel
from .integer_model import IntegerModel
from .threads import num_threads, set_num_threads

if TYPE_CHECKING:
    from .build import BitsReport, build_integer_model, compare_bits

__all__ = [
    "BitsReport",
    "Codec",
    "CodecError",
    "DamagedFile",
    "Estimate",
    "IntegerModel",
    "WrongModel",
    "build_integer_model",
    "compare_bits",
    "num_threads",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    """Imports `build` on first use: it needs PyTorch, which takes seconds to import. Compressing does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import build

    return getattr(build, name)
