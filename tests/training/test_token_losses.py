"""Token losses one by one: the number that `selective` keeps, and losses for another Trainer."""

import math
from fractions import Fraction

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from modeling_eem.training import TokenLossOptions, token_loss_function
from modeling_eem.training.token_losses import Tokens, focal, selective


@pytest.mark.parametrize("share", [0.01, 0.07, 0.1, 0.28, 0.3, 0.55, 0.6, 0.7, 1.0])
def test_selective_keeps_an_exact_ceiling(share: float) -> None:
    """0.6 of 5 is 3, and 0.07 of 100 is 7; in float32 the one, in float64 the other comes out above."""
    for size in range(1, 301):
        losses = torch.rand(size) + 1
        tokens = Tokens(losses, torch.zeros(size), segments=torch.zeros(size, dtype=torch.long))
        kept = selective(tokens, TokenLossOptions(selected_fraction=share)).count_nonzero().item()
        assert kept == math.ceil(size * Fraction(str(share))), size


def test_a_token_loss_for_compute_loss_func() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    labels = torch.randint(40, (2, 8))
    labels[0, 3:] = -100
    outputs = model(labels.clamp(min=0))
    own = model(labels.clamp(min=0), labels=labels, num_items_in_batch=5).loss
    torch.testing.assert_close(token_loss_function("cross_entropy")(outputs, labels, num_items_in_batch=5), own)
    scored = labels[:, 1:] != -100
    losses = torch.nn.functional.cross_entropy(outputs.logits[:, :-1][scored], labels[:, 1:][scored], reduction="none")
    expected = focal(Tokens(losses), TokenLossOptions(focal_gamma=3.0)).mean()
    loss = token_loss_function("focal", focal_gamma=3.0)
    torch.testing.assert_close(loss(outputs, labels), expected)
    with torch.no_grad():  # evaluation
        torch.testing.assert_close(loss(outputs, labels), losses.mean())
    empty = loss(outputs, torch.full_like(labels, -100), num_items_in_batch=torch.tensor(0))
    (gradient,) = torch.autograd.grad(empty, outputs.logits)
    assert empty == 0 and not gradient.any()


@pytest.mark.parametrize("name", ["hinge", "selective", "mile", "focus"])
def test_losses_that_a_function_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' cannot be a compute_loss_func, only cross_entropy or focal can"):
        token_loss_function(name)(CausalLMOutput(), torch.zeros(1, 2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_of_a_token_that_is_certain_has_a_gradient(gamma: float) -> None:
    losses = torch.tensor([0.0, 1e-6, 2.0], requires_grad=True)
    focal(Tokens(losses), TokenLossOptions(focal_gamma=gamma)).sum().backward()
    assert losses.grad is not None and losses.grad.isfinite().all()
    exact = torch.tensor([1e-6, 2.0], dtype=torch.float64, requires_grad=True)
    ((1 - (-exact).exp()) ** gamma * exact).sum().backward()
    torch.testing.assert_close(losses.grad[1:].double(), exact.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [{"focal_gamma": -1.0}, {"focal_gamma": float("nan")}, {"selected_fraction": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        token_loss_function("focal", **options)
