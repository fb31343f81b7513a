"""`torch.compile(fullgraph=True)` equals eager, in values and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_eem import EEMForCausalLM

COMPILED = ["mixer, heads and kernel", "mixer classifier", "eem, embedding", "eem, llama", "autoencoder"]
COMPILED_SLOWLY = ["mixer", "eem", "eem, tied gpt2", "autoencoder, llama"]


def _assert_compiles(model: Any, batch: dict[str, Tensor], loss_of: Callable, backend: str = "aot_eager") -> None:
    """The training loss and its gradients in one graph, from padded rows and from full ones."""
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    model.train()
    for inputs in (batch, {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}):
        results = []
        for function in (loss_of, compiled):
            torch.manual_seed(0)
            loss = function(model, inputs)
            results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPILED + [pytest.param(name, marks=pytest.mark.slow) for name in COMPILED_SLOWLY])
def test_every_model_compiles_to_one_graph(
    name: str, make_model: Callable[[str], Any], batch: dict[str, Tensor], loss_of: Callable, output_of: Callable
) -> None:
    model = make_model(name)
    _assert_compiles(model, batch, loss_of)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output_of(compiled, batch), output_of(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixer, heads and kernel", "eem", "eem, llama", "autoencoder"])
def test_compiles_whole_with_inductor(
    name: str, make_model: Callable[[str], Any], batch: dict[str, Tensor], loss_of: Callable
) -> None:
    _assert_compiles(make_model(name), batch, loss_of, backend="inductor")


def test_noise_compiles_to_the_eager_draw(
    eem_config: Callable[..., Any], batch: dict[str, Tensor], loss_of: Callable
) -> None:
    """The compiled draw is the eager one: from the global generator, in the same order."""
    _assert_compiles(EEMForCausalLM(eem_config(noise_scale=0.5)), batch, loss_of)


def test_packed_rows_compile(make_model: Callable[[str], Any]) -> None:
    torch._dynamo.reset()
    model = make_model("mixer, heads and kernel")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = {"input_ids": torch.randint(2, 40, (2, 9)), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])}
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
