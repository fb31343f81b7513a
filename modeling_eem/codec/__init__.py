"""The codec: text to bytes and back, the same on every machine."""

from .build import BitsReport, build_integer_model, compare_bits
from .codec import Codec, Estimate
from .container import CodecError, DamagedFile, WrongModel
from .integer_model import IntegerModel

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
]
