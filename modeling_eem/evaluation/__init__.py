"""Evaluation of trained models: bits beside compressors, curves, quantization, correlations, lm-eval."""

from modeling_eem.evaluation.code_length import (
    code_bits_of,
    held_out,
    held_out_code_length,
    row_codes,
    row_nats,
    window_code_lengths,
)
from modeling_eem.evaluation.compressors import compressed_bits

__all__ = [
    "code_bits_of",
    "compressed_bits",
    "held_out",
    "held_out_code_length",
    "row_codes",
    "row_nats",
    "window_code_lengths",
]
