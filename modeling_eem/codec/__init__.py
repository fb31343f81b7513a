"""The codec: text to bytes and back, the same on every machine."""

from .build import BitsReport, build_integer_model, compare_bits
from .integer_model import IntegerModel

__all__ = ["BitsReport", "IntegerModel", "build_integer_model", "compare_bits"]
