"""What a trained model is worth: bits beside general-purpose compressors."""

from modeling_eem.evaluation.compressors import compressed_bits

__all__ = ["compressed_bits"]
