"""Bits per byte, as a module of the `evaluate` library: `evaluate.load("…/metrics/bits_per_byte")`."""

import math

import datasets
import evaluate.module
import numpy as np
from evaluate.info import MetricInfo

_DESCRIPTION = """
The code length of texts per UTF-8 byte: (Σ nats / ln 2 + code_bits + side_bits) / Σ bytes.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: cross-entropy of each text in nats, summed over its scored tokens.
    references: UTF-8 bytes of each text.
    code_bits: bits of the codes of all texts; 0 for a causal model.
    side_bits: bits of everything else that a decoder of the texts must be told.

Returns:
    bits_per_byte: a float.

Example:
    >>> bits_per_byte = evaluate.load("modeling_eem/training/metrics/bits_per_byte")
    >>> bits_per_byte.compute(predictions=[math.log(2) * 24], references=[16], code_bits=8)
    {'bits_per_byte': 2.0}
"""
_CITATION = """
@article{badger2025know,
  title={Know Your Limits: Entropy Estimation Modeling for Compression and Generalization},
  author={Badger, Benjamin L. and Neligeorge, Matthew},
  journal={arXiv preprint arXiv:2511.10618},
  year={2025}
}
"""


class BitsPerByte(evaluate.module.Metric):
    def _info(self) -> MetricInfo:
        return MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: list[float], references: list[int], code_bits: float = 0.0, side_bits: float = 0.0
    ) -> dict[str, float]:
        bits = np.sum(predictions, dtype=np.float64) / math.log(2) + code_bits + side_bits
        return {"bits_per_byte": float(bits / np.sum(references))}
