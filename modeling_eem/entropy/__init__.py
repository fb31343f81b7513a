"""Per-token entropies by several estimators: one file for each estimator, one result type."""

from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.causal import CausalEntropy
from modeling_eem.entropy.exact import ExactEntropy, TwoModelEntropy
from modeling_eem.entropy.gradient_input import GradientInputEntropy
from modeling_eem.entropy.occlusion import OcclusionEntropy
from modeling_eem.entropy.patches import conditional_entropies, entropy_patches
from modeling_eem.entropy.registry import ESTIMATORS, estimate, estimator_class
from modeling_eem.entropy.regression import RegressionEntropy
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.sliding import SlidingEntropy
from modeling_eem.entropy.teacher import TeacherEntropy

__all__ = [
    "ESTIMATORS",
    "CausalEntropy",
    "EntropyEstimator",
    "ExactEntropy",
    "GradientInputEntropy",
    "OcclusionEntropy",
    "RegressionEntropy",
    "SlidingEntropy",
    "TeacherEntropy",
    "TokenEntropies",
    "TwoModelEntropy",
    "conditional_entropies",
    "entropy_patches",
    "estimate",
    "estimator_class",
]
