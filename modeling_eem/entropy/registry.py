"""Estimators by name."""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.causal import CausalEntropy
from modeling_eem.entropy.exact import ExactEntropy, TwoModelEntropy
from modeling_eem.entropy.gradient_input import GradientInputEntropy
from modeling_eem.entropy.occlusion import OcclusionEntropy
from modeling_eem.entropy.regression import RegressionEntropy
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.sliding import SlidingEntropy
from modeling_eem.entropy.teacher import TeacherEntropy

ESTIMATORS: dict[str, type[EntropyEstimator]] = {
    estimator.method: estimator
    for estimator in (
        ExactEntropy,
        TwoModelEntropy,
        SlidingEntropy,
        OcclusionEntropy,
        GradientInputEntropy,
        CausalEntropy,
        TeacherEntropy,
        RegressionEntropy,
    )
}


def estimator_class(name: str) -> type[EntropyEstimator]:
    """The estimator that `ESTIMATORS` has under a name.

    Raises:
        ValueError: for another name, with the nearest ones.
    """
    if name not in ESTIMATORS:
        nearest = difflib.get_close_matches(name, ESTIMATORS, n=2)
        hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else "."
        raise ValueError(f"there is no estimator {name!r}, only {', '.join(ESTIMATORS)}{hint}")
    return ESTIMATORS[name]


def estimate(
    name: str,
    *models: Any,
    texts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> TokenEntropies:
    """`ESTIMATORS[name](*models, **options)`, called with texts and a tokenizer, or with ids.

    Args:
        models: what the estimator is made of: its model; two models; a teacher, its tokenizer and the student's.
        options: the estimator's own: `stride`, `metric`, `batch_tokens`, …
    """
    estimator = estimator_class(name)(*models, **options)
    return estimator(texts, tokenizer, input_ids=input_ids, attention_mask=attention_mask)
