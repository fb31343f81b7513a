"""Every model on a GPU: outputs, losses and gradients, whole weights in half precision and mixed precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_eem import EEMForCausalLM, kernels


def test_outputs_are_the_cpus(
    model: Any,
    dtype: torch.dtype,
    batch: dict[str, Tensor],
    batch_there: dict[str, Tensor],
    on_device: Callable,
    output_of: Callable,
    assert_near: Callable,
) -> None:
    assert_near(output_of(on_device(model, dtype), batch_there), output_of(model, batch), dtype)


def _loss_and_gradients(loss_of: Callable, model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    loss = loss_of(model, batch)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def test_losses_and_gradients_in_mixed_precision(
    model: Any,
    dtype: torch.dtype,
    batch: dict[str, Tensor],
    batch_there: dict[str, Tensor],
    on_device: Callable,
    autocast: Callable,
    loss_of: Callable,
    assert_near: Callable,
) -> None:
    """Weights stay in float32, as the trainer has them. Gradients as one vector: a bias's own may be all rounding.

    With `repeat` a decoder's positions begin all but equal, and its first LayerNorms magnify what rounding makes of
    the difference: in half precision those gradients need only be numbers, on a CPU as well.
    """
    there = on_device(model, torch.float32).train()
    with autocast(dtype):
        loss = loss_of(there, batch_there)
    gradients = torch.autograd.grad(loss, list(there.parameters()))
    expected_loss, *expected = _loss_and_gradients(loss_of, model.train(), batch)
    assert_near(loss, expected_loss, dtype)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    ours, cpus = (torch.cat([x.flatten().cpu() for x in some]) for some in (gradients, expected))
    is_repeated = model.config.to_dict().get("memory_expansion") == "repeat"
    if is_repeated and dtype != torch.float32:
        assert ours.isfinite().all()
    else:
        assert_near(ours, cpus, dtype)


def test_packed_rows_have_the_cpus_logits(
    make_model: Callable, dtype: torch.dtype, device: torch.device, on_device: Callable, assert_near: Callable
) -> None:
    model = make_model("mixer, heads and kernel")
    rows = {"input_ids": torch.randint(2, 40, (2, 9)), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])}
    there = {name: x.to(device) for name, x in rows.items()}
    with torch.no_grad():
        assert_near(on_device(model, dtype)(**there).logits, model(**rows).logits, dtype)


def test_noise_is_drawn_from_the_devices_generator(
    eem_config: Callable, device: torch.device, on_device: Callable, batch_there: dict[str, Tensor], loss_of: Callable
) -> None:
    """A seed repeats it, and another seed does not."""
    there = on_device(EEMForCausalLM(eem_config(noise_scale=0.5)).train(), torch.float32)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(loss_of(there, batch_there).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", ["mixer", "mixer, heads and kernel", "eem, embedding", "eem, llama", "autoencoder"])
def test_compiled_losses_and_gradients_are_the_eager_ones(
    name: str,
    dtype: torch.dtype,
    make_model: Callable,
    batch_there: dict[str, Tensor],
    on_device: Callable,
    autocast: Callable,
    loss_of: Callable,
    device: torch.device,
    assert_near: Callable,
) -> None:
    """By inductor on a GPU; on a CPU, where that takes minutes, its graph is run as it was traced."""
    torch._dynamo.reset()
    there = on_device(make_model(name), torch.float32).train()
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    found = []
    for function in (compiled, loss_of):
        with autocast(dtype):
            loss = function(there, batch_there)
        gradients = torch.autograd.grad(loss, list(there.parameters()))
        found.append([loss.cpu(), torch.cat([x.flatten().cpu() for x in gradients])])
    assert_near(*found, dtype)


def test_triton_mixing_is_the_dense_product(dtype: torch.dtype, device: torch.device, assert_near: Callable) -> None:
    """The GPU's own tiles, at lengths around them; forward and all gradients, against the dense product here."""
    if device.type == "cpu":
        pytest.skip("interpreted in tests/kernels/test_cuda_mixing.py")
    from modeling_eem.kernels.cuda import triangle_token_mixing
    from modeling_eem.models.mixing_masked_mixer import dense_token_mixing

    for heads, length, texts, features in ((1, 1, 1, 1), (1, 129, 3, 50), (4, 512, 8, 64), (1, 1024, 4, 512)):
        weight, x = torch.randn(heads, length, length, 1) / length**0.5, torch.randn(heads, length, texts, features)
        inputs = [weight, torch.randn(heads, length), x]
        found = []
        for mix, where, its_dtype in (
            (triangle_token_mixing, device, dtype),
            (dense_token_mixing, torch.device("cpu"), torch.float32),
        ):
            tensors = [x.to(where, its_dtype).requires_grad_() for x in inputs]
            y = mix(*tensors, True)
            upstream = torch.linspace(-1, 1, y.numel()).view(y.shape).to(where, its_dtype)
            found.append([y, *torch.autograd.grad(y, tensors, upstream)])
        assert not found[0][1][..., 0].triu(1).any()
        lengths = [x.norm().clamp(min=1) for x in found[1]]
        assert_near(
            [x.cpu() / n for x, n in zip(found[0], lengths)], [x / n for x, n in zip(found[1], lengths)], dtype
        )


def test_a_step_with_triton_is_the_dense_step(
    make_model: Callable,
    dtype: torch.dtype,
    batch_there: dict[str, Tensor],
    on_device: Callable,
    autocast: Callable,
    loss_of: Callable,
    device: torch.device,
    assert_near: Callable,
) -> None:
    if device.type == "cpu":
        pytest.skip("interpreted in tests/kernels/test_cuda_mixing.py")
    there = on_device(make_model("mixer"), torch.float32).train()
    found = []
    for ways in (kernels.triton(), kernels.plain()):
        with ways, autocast(dtype):
            loss = loss_of(there, batch_there)
            gradients = torch.autograd.grad(loss, list(there.parameters()))
        found.append([loss.cpu(), torch.cat([x.flatten().cpu() for x in gradients])])
    assert_near(*found, dtype)
