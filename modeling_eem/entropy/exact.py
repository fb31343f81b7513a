"""Exact entropies: what the last token of a prefix adds to the prefix's code length.

`H(x_j | x_<j) = S(BOS … x_j) - S(BOS … x_{j-1})`, where `S(w)` is the summed cross-entropy of w as a window of its
own, which the encoder reads whole. The code's bits are the same in both terms and cancel. `S(BOS) = 0`. Source: Badger
& Neligeorge 2025, arXiv 2511.10618.
"""

from typing import ClassVar

import torch
from torch import Tensor
from transformers.utils import logging

from modeling_eem.entropy.base import EEMEstimator
from modeling_eem.entropy.prefixes import is_prefix_consistent, prefix_nats
from modeling_eem.loading import evaluating
from modeling_eem.models.modeling_eem import EEMForCausalLM

logger = logging.get_logger(__name__)


class PrefixEstimator(EEMEstimator):
    """Estimators that show the model prefixes of a text."""

    def __init__(self, model: EEMForCausalLM, batch_tokens: int = 4096):
        super().__init__(model, batch_tokens)
        self.encodes_prefixes = _checked_consistency(model)

    def nats(self, windows: list[Tensor], prefixes: list[tuple[int, int]]) -> Tensor:
        """See `prefix_nats`."""
        return prefix_nats(self.model, windows, prefixes, self.batch_tokens, self.encodes_prefixes)


def _checked_consistency(model: EEMForCausalLM) -> bool:
    if model.config.random_prefix_probability == 0:
        logger.warning(
            f"{model.config.name_or_path or type(model).__name__} was trained with random_prefix_probability=0: it "
            "has met no short prefixes except those in its data, so their entropies may be far off."
        )
    with evaluating(model):
        return is_prefix_consistent(model)


class ExactEntropy(PrefixEstimator):
    """`S(BOS … x_j) - S(BOS … x_{j-1})` by one model, in nats.

    A row's values telescope: their sum is S(row). A single value may be negative: the longer prefix has another code.
    """

    method: ClassVar[str] = "exact"

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        prefixes = [(number, length) for number, row in enumerate(rows) for length in range(1, len(row) + 1)]
        sums = self.nats(rows, prefixes).split([len(row) for row in rows])
        return [torch.cat([sums_T.new_full((1,), float("nan")), sums_T.diff()]) for sums_T in sums]


class TwoModelEntropy(EEMEstimator):
    """`S_2(BOS … x_j) - S_1(BOS … x_{j-1})`, in nats: the longer prefix by one model, the shorter by another.

    The models were trained at neighbouring lengths: each meets prefixes of the length it knows. Their values do not
    telescope. Both need codes of the same number of bits; otherwise the codes do not cancel.

    Args:
        longer, shorter: θ2 and θ1.
    """

    method: ClassVar[str] = "two_models"
    num_models: ClassVar[int] = 2

    def __init__(self, longer: EEMForCausalLM, shorter: EEMForCausalLM, batch_tokens: int = 4096):
        super().__init__(longer, batch_tokens)
        self.longer = ExactEntropy(longer, batch_tokens)
        self.shorter = ExactEntropy(shorter, batch_tokens)
        if longer.config.vocab_size != shorter.config.vocab_size:
            raise ValueError(
                f"the models have {longer.config.vocab_size:,} and {shorter.config.vocab_size:,} tokens: both must "
                "have been trained with the same tokenizer."
            )
        if longer.config.code_size != shorter.config.code_size:
            raise ValueError(
                f"the models' codes hold {longer.config.code_size} and {shorter.config.code_size} numbers: only equal "
                "codes cancel."
            )
        if longer.config.code_dtype != shorter.config.code_dtype:
            raise ValueError(
                f"the models' codes are stored as {longer.config.code_dtype} and {shorter.config.code_dtype}: only "
                "equal codes cancel."
            )

    @property
    def max_length(self) -> int:
        shorter = self.shorter.model.config.max_position_embeddings
        return min(self.longer.model.config.max_position_embeddings, shorter + 1)

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        lengths = [len(row) - 1 for row in rows]
        text = [(number, length) for number, row in enumerate(rows) for length in range(2, len(row) + 1)]
        before = [(number, length - 1) for number, length in text]
        shorter_rows = [row[:-1].to(self.shorter.model.device) for row in rows]
        with evaluating(self.shorter.model):
            shorter = self.shorter.nats(shorter_rows, before)
        values = (self.longer.nats(rows, text) - shorter).split(lengths)
        return [torch.cat([values_T.new_full((1,), float("nan")), values_T]) for values_T in values]
