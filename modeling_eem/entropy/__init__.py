"""Per-token entropies by several estimators: one file an estimator, one result type."""

from modeling_eem.entropy.causal import CausalEntropy
from modeling_eem.entropy.estimator import EntropyEstimator
from modeling_eem.entropy.exact import ExactEntropy, TwoModelEntropy
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.sliding import SlidingEntropy

__all__ = [
    "CausalEntropy",
    "EntropyEstimator",
    "ExactEntropy",
    "SlidingEntropy",
    "TokenEntropies",
    "TwoModelEntropy",
]
