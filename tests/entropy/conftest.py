"""Tiny models with a context of 16 tokens and rows for them, for the tests of every estimator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from modeling_eem import EEMForCausalLM


@pytest.fixture(scope="session")
def make_eem(eem_config: Callable[..., Any]) -> Callable[..., EEMForCausalLM]:
    """Entropy estimation models of any pair of backbones, as if they had been trained with short prefixes."""

    def make(*args: Any, **changes: Any) -> EEMForCausalLM:
        return EEMForCausalLM(eem_config(*args, **{"random_prefix_probability": 0.1, **changes})).eval()

    return make


@pytest.fixture(scope="session")
def make_causal(backbone_config: Callable[..., Any]) -> Callable[..., PreTrainedModel]:
    def make(model_type: str, **changes: Any) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(backbone_config(model_type, **changes)).eval()

    return make


@pytest.fixture(scope="session")
def make_regression(backbone_config: Callable[..., Any]) -> Callable[..., PreTrainedModel]:
    def make(model_type: str, **changes: Any) -> PreTrainedModel:
        return AutoModelForTokenClassification.from_config(
            backbone_config(model_type, **{"num_labels": 1, **changes})
        ).eval()

    return make


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Tensor]]:
    """Rows of random ids of the given lengths, BOS first."""

    def make(*lengths: int) -> list[Tensor]:
        return [torch.cat([torch.tensor([1]), torch.randint(2, 40, (length - 1,))]) for length in lengths]

    return make


@pytest.fixture(scope="session")
def plain_nats() -> Callable[[EEMForCausalLM, Tensor], Tensor]:
    """`S(w)` as it is defined: the model's own logits, a window of its own, a sum in float64."""

    @torch.no_grad()
    def nats(model: EEMForCausalLM, window: Tensor) -> Tensor:
        log_probs = model(input_ids=window[None], labels=window[None]).logits[0, :-1].double().log_softmax(-1)
        return -log_probs.gather(1, window[1:, None]).sum()

    return nats
