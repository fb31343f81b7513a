"""Token mixing by blocks: the reference's numbers, whatever the length, the heads and the taps."""

import pytest
import torch
from torch import Tensor

from modeling_eem.kernels.cpu_mixing import block_token_mixing
from modeling_eem.models.mixing_masked_mixer import reference_token_mixing

BLOCK_LENGTHS = [1, 7, 63, 64, 65, 300]  # around one block and its multiples


def _mixing_inputs(heads: int, length: int, kernel: int, batch: int = 3, features: int = 8) -> tuple[Tensor, ...]:
    """`W [H, T, T, K]`, `bias [H, T]` and `x [B, T, D]` in float64, to be differentiated."""
    shapes = [(heads, length, length, kernel), (heads, length), (batch, length, features)]
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def _fast_token_mixing(weight: Tensor, bias: Tensor, x_BTD: Tensor, is_causal: bool) -> Tensor:
    """`block_token_mixing` in the reference's layout."""
    x_HTBE = x_BTD.transpose(0, 1).unflatten(-1, (len(weight), -1)).movedim(2, 0)
    return block_token_mixing(weight, bias, x_HTBE, is_causal).movedim(0, 2).flatten(2).transpose(0, 1)


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("heads", [1, 4])
def test_fast_equals_reference(heads: int, kernel: int, is_causal: bool, length: int) -> None:
    """Outputs, and the gradients of weight, bias and input; above the diagonal these are exactly zero."""
    inputs = _mixing_inputs(heads, length, kernel)
    actual, expected = (mix(*inputs, is_causal) for mix in (_fast_token_mixing, reference_token_mixing))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(expected)
    actual_grads, expected_grads = (torch.autograd.grad(y, inputs, upstream) for y in (actual, expected))
    torch.testing.assert_close(actual_grads, expected_grads, rtol=1e-10, atol=1e-10)
    if is_causal:
        future = actual_grads[0].movedim(-1, 0).triu(1)
        assert not future.any()


@pytest.mark.parametrize("kernel", [4, 8])
def test_halved_taps_are_as_accurate_in_float32(kernel: int) -> None:
    """The sums and differences of a halving cost a bit or two, not digits."""
    exact = _mixing_inputs(1, 300, kernel)
    rounded = tuple(x.detach().float().requires_grad_() for x in exact)
    upstream = torch.randn_like(exact[2])
    expected, actual = (
        torch.autograd.grad(_fast_token_mixing(*inputs, True), inputs, upstream.to(inputs[0].dtype))
        for inputs in (exact, rounded)
    )
    for one, other in zip(actual, expected):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("needed", range(3))
def test_fast_gradients_of_one_input_alone(needed: int, kernel: int) -> None:
    """A frozen weight, or a first layer whose input has no gradient, changes nothing for the others."""
    inputs = [x.detach().requires_grad_(i == needed) for i, x in enumerate(_mixing_inputs(2, 130, kernel))]
    grads = [mix(*inputs, True).square().sum() for mix in (_fast_token_mixing, reference_token_mixing)]
    actual, expected = (torch.autograd.grad(y, inputs[needed]) for y in grads)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("features", [1, 5])
@pytest.mark.parametrize("kernel", [2, 3, 8])
def test_taps_move_over_features_never_over_tokens(kernel: int, features: int) -> None:
    """A change of token j reaches no output before j, also where a kernel is wider than the features."""
    weight, bias, x = _mixing_inputs(1, length=140, kernel=kernel, features=features)
    changed = x.detach().clone()
    changed[:, 130:] = torch.randn_like(changed[:, 130:])
    before, after = (_fast_token_mixing(weight, bias, inputs, True) for inputs in (x, changed))
    assert torch.equal(before[:, :130], after[:, :130])
    assert (before[:, 130:] != after[:, 130:]).all()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [1, 4, 5])
def test_unwritten_memory_is_never_read_across_blocks(kernel: int, is_causal: bool) -> None:
    inputs = _mixing_inputs(2, 300, kernel)
    grads = torch.autograd.grad(_fast_token_mixing(*inputs, is_causal).sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_declined(dtype: torch.dtype) -> None:
    weight, bias, x = (x.detach() for x in _mixing_inputs(1, 65, 4))
    x_HTBE = x.transpose(0, 1)[None]
    assert block_token_mixing(weight.to(dtype), bias.to(dtype), x_HTBE.to(dtype), True) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block_token_mixing(weight.float(), bias.float(), x_HTBE.float(), True) is None


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("features", [85, 128])
def test_wide_rows_in_float32(kernel: int, features: int) -> None:
    """With 256 columns and more, products without taps go by oneDNN; 85 features are a column short."""
    inputs = [x.detach().float().requires_grad_() for x in _mixing_inputs(1, 130, kernel, features=features)]
    actual, expected = (mix(*inputs, True) for mix in (_fast_token_mixing, reference_token_mixing))
    upstream = torch.randn_like(expected)
    pairs = [
        (actual, expected),
        *zip(*(torch.autograd.grad(y, inputs, upstream) for y in (actual, expected))),
    ]
    for one, other in pairs:
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
