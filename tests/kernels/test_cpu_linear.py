"""The kernels of plain Linears: the same numbers as PyTorch's own, whatever way they are computed."""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.kernels import cpu_linear
from modeling_eem.kernels.cpu_linear import FEW_ROWS
from modeling_eem.models.mixing_masked_mixer import activated_linear, linear, product


@pytest.mark.parametrize("shape", [(12,), (1, 12), (1, 1, 12), (5, 12), (2, 3, 12), (3, 1, 12)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_few_rows_are_a_linear(shape: tuple[int, ...], has_bias: bool) -> None:
    x, weight = torch.randn(shape), torch.randn(8, 12)
    bias = torch.randn(8) if has_bias else None
    for rows in (x, x.transpose(0, -2) if x.dim() > 2 else x):  # also rows that do not lie one after the other
        expected = nn.functional.linear(rows, weight, bias)
        torch.testing.assert_close(cpu_linear.few_rows_linear(rows, weight, bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_rows", [0, 1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("num_outputs", [8, 511, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_layer_is_a_linear_for_any_rows(num_rows: int, num_outputs: int, dtype: torch.dtype) -> None:
    layer = nn.Linear(256, num_outputs).to(dtype)
    x = torch.randn(num_rows, 256, dtype=dtype)
    with torch.no_grad():
        expected = nn.functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(linear(layer, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(256, 512), (12, 8)], ids=["large", "small"])
@pytest.mark.parametrize("is_intel", [False, True])
def test_only_large_weights_go_the_other_way(
    size: tuple[int, int], is_intel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits a core's cache gains nothing; nor does what MKL reads faster."""
    called = []
    monkeypatch.setattr(cpu_linear, "MKL_IS_AT_HOME", is_intel)
    monkeypatch.setattr("modeling_eem.kernels.cpu_linear.few_rows_linear", lambda *_: called.append(1))
    with torch.no_grad():
        linear(nn.Linear(*size), torch.randn(1, size[0]))
    assert bool(called) == (size == (256, 512) and not is_intel)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 300])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(1, 1), (17, 33), (256, 512)])
def test_a_product_of_rows_is_one(num_rows: int, num_inputs: int, num_outputs: int) -> None:
    x, bias = torch.randn(num_rows, num_inputs), torch.randn(num_outputs)
    dense, wide = torch.randn(num_outputs, num_inputs), torch.randn(num_outputs, 2 * num_inputs)
    # As it is, as a transpose, and with gaps between its rows.
    for weight in (dense, dense.T.contiguous().T, wide[:, :num_inputs]):
        expected = (x.double() @ weight.double().T + bias.double()).float()
        torch.testing.assert_close(cpu_linear.onednn(x, weight, bias), expected, rtol=1e-5, atol=1e-4)


def test_gradients_are_those_of_a_linear() -> None:
    """First and second ones, of a sum that is not linear in the weights."""
    layer, x = nn.Linear(24, 16), torch.randn(3, 5, 24, requires_grad=True)
    plain = nn.Linear(24, 16)
    plain.load_state_dict(layer.state_dict())
    found = []
    for run, module in ((lambda: linear(layer, x), layer), (lambda: plain(x), plain)):
        wanted = (x, module.weight, module.bias)
        first = torch.autograd.grad(run().pow(3).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(grad.pow(2).sum() for grad in first), wanted)
        found.append([*first, *second])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert all(grad.any() for grad in found[0])


def test_only_wanted_gradients_are_formed() -> None:
    layer = nn.Linear(24, 16).requires_grad_(False)
    x = torch.randn(9, 24, requires_grad=True)
    linear(layer, x).sum().backward()
    assert x.grad.any() and layer.weight.grad is None and layer.bias.grad is None


def test_bits_do_not_depend_on_the_place_of_the_weights_or_the_number_of_rows() -> None:
    x, weight = torch.randn(300, 40), torch.randn(24, 40)
    expected = product(x, weight)
    for offset in (1, 3, 16):
        moved = torch.empty(weight.numel() + offset)[offset:].view_as(weight).copy_(weight)
        assert torch.equal(product(x, moved), expected)
    for num_rows in (2, 3, 33, 299):
        assert torch.equal(product(x[:num_rows], weight), expected[:num_rows])


@pytest.mark.parametrize(
    "switch",
    ["torch.backends.mkldnn.enabled", "modeling_eem.kernels.cpu_linear.HAS_ONEDNN"],
    ids=["off", "not built"],
)
def test_without_onednn_it_is_pytorchs_linear(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(300, 40), torch.randn(24, 40)
    monkeypatch.setattr(switch, False)
    with patch.object(nn.functional, "linear", wraps=nn.functional.linear) as linear:
        product(x, weight)
    linear.assert_called_once()


def test_other_kinds_of_tensors_are_left_to_pytorch() -> None:
    """Shards (DTensor) and quantized weights are subclasses, which only PyTorch's own functions know."""

    class Shard(torch.Tensor):
        pass

    x, weight = torch.randn(300, 40), torch.randn(24, 40).as_subclass(Shard)
    with patch.object(nn.functional, "linear", wraps=nn.functional.linear) as linear:
        assert type(product(x, weight)) is Shard
    linear.assert_called_once()


def test_a_weight_may_be_a_part_of_the_layers() -> None:
    """Tensor parallelism puts its shard in the weight's place; the layer's own sizes then are not the weight's."""
    layer = nn.Linear(256, 1024, bias=False)
    layer.weight = nn.Parameter(layer.weight[:511].detach().clone())
    for num_rows in (1, 300):
        x = torch.randn(num_rows, 256)
        with torch.no_grad():
            torch.testing.assert_close(linear(layer, x), x @ layer.weight.T, rtol=1e-5, atol=1e-5)


def test_mistakes_are_told_as_by_pytorch() -> None:
    layer = nn.Linear(24, 16)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(layer, torch.randn(3, 12))
    with pytest.raises(RuntimeError, match="meta"):
        linear(nn.Linear(24, 16, device="meta"), torch.randn(3, 24))


def test_frozen_layers_hold_nothing_they_do_not_need() -> None:
    held = []
    x = torch.randn(9, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor.shape), lambda _: None):
        linear(nn.Linear(24, 16).requires_grad_(False), x)
    assert held == [(16, 24)]


def test_functional_gradients_and_vmap() -> None:
    layer, x = nn.Linear(24, 16), torch.randn(5, 3, 24)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return linear(self.layer, rows)

    net = Net()

    def loss(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, {"layer.weight": weight}, (rows,)).pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(layer.weight.detach(), x)
    loop = torch.stack([torch.autograd.grad(loss(layer.weight, rows), layer.weight)[0] for rows in x])
    torch.testing.assert_close(each, loop, rtol=1e-4, atol=1e-4)


def test_autocast_decides_the_dtype() -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(nn.Linear(256, 512), torch.randn(1, 256)).dtype == torch.bfloat16


needs_bfloat16 = pytest.mark.skipif(not cpu_linear.has_bfloat16(), reason="oneDNN has no bfloat16 here")


@needs_bfloat16
@pytest.mark.parametrize("is_autocast", [True, False])
def test_a_bias_in_bfloat16_goes_by_onednn(is_autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of the rounded numbers, rounded once more; gradients in each tensor's own dtype."""
    layer, x = nn.Linear(48, 32), torch.randn(6, 5, 48)
    if not is_autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    x.requires_grad_()
    called = []
    monkeypatch.setattr(
        cpu_linear, "onednn", lambda *given, whole=cpu_linear.onednn: called.append(1) or whole(*given)
    )
    upstream = torch.randn(6, 5, 32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        y = linear(layer, x)
    y.backward(upstream)
    assert called and y.dtype == torch.bfloat16
    exact = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (x, layer.weight, layer.bias)]
    exact_y = nn.functional.linear(*exact)
    exact_y.backward(upstream.double())
    torch.testing.assert_close(y.double(), exact_y, rtol=2**-8, atol=1e-6)
    for tensor, exact_tensor in zip((x, layer.weight, layer.bias), exact):
        assert tensor.grad is not None and tensor.grad.dtype == tensor.dtype
        torch.testing.assert_close(tensor.grad.double(), exact_tensor.grad, rtol=2**-8, atol=1e-5)


@needs_bfloat16
def test_without_a_bias_bfloat16_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "onednn", lambda *_: pytest.fail("there was no bias to save"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear(nn.Linear(48, 32, bias=False), torch.randn(5, 48))


def _activated(layer: nn.Linear, activation: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return linear(layer, activation(x))


@pytest.mark.skipif(not cpu_linear.HAS_ONEDNN, reason="oneDNN is missing")
@pytest.mark.parametrize("is_low", [False, pytest.param(True, marks=needs_bfloat16)])
def test_a_gelu_before_a_linear_is_not_kept(is_low: bool) -> None:
    """The numbers and gradients of one that is, bit for bit, and half of the memory."""
    layer, x = nn.Linear(48, 32), torch.randn(6, 5, 48, requires_grad=True)
    results, sizes = [], []
    for way in (activated_linear, _activated):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_low),
        ):
            y = way(layer, ACT2FN["gelu"], x.bfloat16() if is_low else x)
        results.append([y, *torch.autograd.grad(y.float().pow(2).sum(), (x, layer.weight, layer.bias))])
        sizes.append(sum(kept.values()))
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs)
    assert sizes[1] - sizes[0] == x.numel()


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu_python"])
def test_other_activations_are_called(activation: str) -> None:
    layer, x = nn.Linear(48, 32), torch.randn(5, 48)
    assert torch.equal(activated_linear(layer, ACT2FN[activation], x), _activated(layer, ACT2FN[activation], x))


def test_second_gradients_through_a_gelu() -> None:
    layer, x = nn.Linear(6, 4), torch.randn(3, 6, requires_grad=True)

    def second(way: Callable) -> torch.Tensor:
        (first,) = torch.autograd.grad(way(layer, ACT2FN["gelu"], x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), layer.weight)[0]

    torch.testing.assert_close(second(activated_linear), second(_activated), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("watched", [0, 1])
def test_a_watched_layer_or_activation_is_called(watched: int) -> None:
    modules, seen = (nn.Linear(6, 4), ACT2FN["gelu"]), []
    modules[watched].register_forward_hook(lambda *_: seen.append(1))
    activated_linear(*modules, torch.randn(3, 6))
    assert seen


def test_without_autocast_a_mixture_of_dtypes_is_refused_as_by_pytorch() -> None:
    layer = nn.Linear(6, 4)
    for x, mixed in ((torch.randn(3, 6).bfloat16(), layer), (torch.randn(3, 6), nn.Linear(6, 4).bfloat16())):
        with pytest.raises(RuntimeError, match="dtype"):
            linear(mixed, x)


HOOKS: dict[str, Callable[[nn.Module, list], object]] = {
    "forward": lambda layer, seen: layer.register_forward_hook(lambda *_: seen.append(1)),
    "before forward": lambda layer, seen: layer.register_forward_pre_hook(lambda *_: seen.append(1)),
    "backward": lambda layer, seen: layer.register_full_backward_hook(lambda *_: seen.append(1)),
    "before backward": lambda layer, seen: layer.register_full_backward_pre_hook(lambda *_: seen.append(1)),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_watched_layer_is_called(hook: str) -> None:
    config = MaskedMixerConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, max_position_embeddings=8)
    model = MaskedMixerForCausalLM(config)
    seen: list[int] = []
    HOOKS[hook](model.model.layers[0].mlp.up_proj, seen)
    ids = torch.tensor([[1, 2, 3]])
    model(ids, labels=ids).loss.backward()
    assert seen == [1]


def test_a_layer_whose_forward_was_replaced_is_called() -> None:
    """As accelerate does for offloaded weights."""
    layer, x = nn.Linear(24, 16), torch.randn(3, 24)
    layer.forward = lambda rows: rows * 2
    assert torch.equal(linear(layer, x), x * 2)


def test_another_class_is_called() -> None:
    """As quantized and adapted layers are."""

    class Doubled(nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows * 2

    x = torch.randn(3, 24)
    assert torch.equal(linear(Doubled(24, 16), x), x * 2)


def test_a_resized_head_still_counts() -> None:
    config = MaskedMixerConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, max_position_embeddings=8)
    model = MaskedMixerForCausalLM(config).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(24)
        torch.testing.assert_close(model(ids).logits[..., :20], before)
