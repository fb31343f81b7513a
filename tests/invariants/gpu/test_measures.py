"""Token losses and entropy estimators on a GPU, against the CPU in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from modeling_eem import EEMForCausalLM
from modeling_eem.entropy import ESTIMATORS, estimate
from modeling_eem.models.loss_eem import linear_token_loss
from modeling_eem.training import TOKEN_LOSSES
from modeling_eem.training.token_loss_head import TokenLossHead
from modeling_eem.training.token_losses import TokenLossOptions
from modeling_eem.training.training_forward import forward_replaced


@pytest.mark.parametrize("name", TOKEN_LOSSES)
@pytest.mark.parametrize("kind", ["mixer", "eem, llama"])
def test_token_losses_and_gradients_are_the_cpus(
    name: str,
    kind: str,
    dtype: torch.dtype,
    make_model: Callable,
    on_device: Callable,
    autocast: Callable,
    device: torch.device,
    assert_near: Callable,
) -> None:
    """Through the chunked head, in mixed precision, where `selective` may choose another of two equal tokens."""
    if name == "selective" and dtype != torch.float32:
        pytest.skip("ranks")
    model = make_model(kind).train()
    ids_BT = torch.randint(2, 40, (3, 12))
    entropies_BT = torch.rand(3, 12) * 4
    found = []
    for its, where in ((on_device(model, torch.float32), device), (model, torch.device("cpu"))):
        head = TokenLossHead(its, TOKEN_LOSSES[name], TokenLossOptions())
        rows = {"input_ids": ids_BT.to(where), "labels": ids_BT.to(where), "token_entropies": entropies_BT.to(where)}
        with forward_replaced(its, head), autocast(dtype if its is not model else torch.float32):
            loss = its(**rows).loss
        gradients = torch.autograd.grad(loss, list(its.parameters()))
        found.append([loss.cpu(), torch.cat([x.flatten().cpu() for x in gradients])])
    assert_near(*found, dtype)


def test_the_chunked_head(dtype: torch.dtype, device: torch.device, assert_near: Callable) -> None:
    """More tokens than a chunk; losses, predictive entropies and gradients of half-precision weights."""
    hidden_ND, weight_VD, labels_N = torch.randn(1100, 32), torch.randn(70, 32) / 6, torch.randint(70, (1100,))
    labels_N[::7] = -100
    found = []
    for where, its_dtype in ((device, dtype), (torch.device("cpu"), torch.float32)):
        hidden, weight = (x.to(where, its_dtype).requires_grad_() for x in (hidden_ND, weight_VD))
        total, losses, entropies = linear_token_loss(
            hidden, weight, labels_N.to(where), lambda losses, entropies, chunk: losses * entropies, with_entropy=True
        )
        found.append([total / 1100, losses, entropies, *torch.autograd.grad(total / 1100, (hidden, weight))])
    assert_near(*found, dtype)


@pytest.fixture
def estimated(eem_config: Callable, backbone_config: Callable, harness_model: Callable[..., Path]) -> dict[str, Any]:
    """Method → its models, and what else it is made of; one for each estimator there is."""

    def eem(encoder: str, decoder: str) -> EEMForCausalLM:
        return EEMForCausalLM(eem_config(encoder, decoder, random_prefix_probability=0.1)).eval()

    causal = AutoModelForCausalLM.from_config(backbone_config("llama")).eval()
    made = {
        "exact": [eem("llama", "llama")],
        "two_models": [eem("llama", "masked_mixer"), eem("masked_mixer", "llama")],
        "sliding": [eem("masked_mixer", "masked_mixer")],
        "occlusion": [eem("masked_mixer", "llama")],
        "gradient_input": [eem("llama", "masked_mixer")],
        "causal": [causal],
        "teacher": [AutoModelForCausalLM.from_pretrained(harness_model("llama")).eval()],
        "regression": [
            AutoModelForTokenClassification.from_config(backbone_config("masked_mixer", num_labels=1)).eval()
        ],
    }
    assert made.keys() == ESTIMATORS.keys()
    return made


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_estimator_gives_the_cpus_values(
    method: str,
    estimated: dict[str, Any],
    dtype: torch.dtype,
    on_device: Callable,
    harness_model: Callable[..., Path],
    assert_near: Callable,
) -> None:
    """Half precision, where weights are rounded and then all is: a tenth of the nats, float16 a fortieth."""
    models = estimated[method]
    rows: dict[str, Any]
    options = {"alignment": "token"} if method == "regression" else {}
    if method == "teacher":
        tokenizer = AutoTokenizer.from_pretrained(harness_model("llama"))
        rows, others = {"texts": ["The sea was calm.", "A ship came home."], "tokenizer": tokenizer}, [tokenizer] * 2
    else:
        lengths = (3, 16, 9)
        ids_BT = torch.zeros(3, 16, dtype=torch.long)
        mask_BT = (torch.arange(16) < torch.tensor(lengths)[:, None]).long()
        ids_BT = torch.randint(2, 40, (3, 16)) * mask_BT
        ids_BT[:, 0] = 1
        rows, others = {"input_ids": ids_BT, "attention_mask": mask_BT}, []
    expected = estimate(method, *models, *others, **rows, **options).values
    actual = estimate(method, *(on_device(model, dtype) for model in models), *others, **rows, **options).values
    if dtype == torch.float32:
        assert_near(actual, expected, dtype)
        return
    assert torch.equal(actual.isnan(), expected.isnan())
    share = 0.1 if dtype == torch.bfloat16 else 0.025
    assert _distance(actual, expected) <= share


def _distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).nan_to_num().norm() / expected.nan_to_num().norm())
