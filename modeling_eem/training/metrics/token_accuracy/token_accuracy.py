"""Share of tokens that a model ranks first, as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate.module
import numpy as np
from evaluate.info import MetricInfo

from modeling_eem.models.loss_eem import IGNORE_INDEX

_DESCRIPTION = """
The share of scored tokens whose most likely prediction is the token itself.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: the most likely token at each place.
    references: the token at that place, or -100 where nothing is scored.

Returns:
    token_accuracy: a float between 0 and 1.

Raises:
    ValueError: for predictions or references that are no integers.

Example:
    >>> token_accuracy = evaluate.load("modeling_eem/training/metrics/token_accuracy")
    >>> token_accuracy.compute(predictions=[3, 4, 5, 6], references=[-100, 4, 5, 5])
    {'token_accuracy': 0.6666666666666666}
"""


class TokenAccuracy(evaluate.module.Metric):
    def _info(self) -> MetricInfo:
        return MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Refuses numbers with a fraction, which `evaluate` (0.4.6) would cut off: logits are no tokens."""
        for name, values in {"predictions": predictions, "references": references}.items():
            if np.size(values) and np.asarray(values).dtype.kind not in "iu":
                raise ValueError(f"{name} must be token ids, which are integers.")
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        references_N = np.asarray(references)
        is_scored_N = references_N != IGNORE_INDEX
        hits_N = np.asarray(predictions)[is_scored_N] == references_N[is_scored_N]
        return {"token_accuracy": float(hits_N.mean())}
