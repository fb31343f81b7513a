"""Token mixing: the equation, its reference, the fast path, and the rule of the diagonal."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from safetensors.torch import load_file
from torch import Tensor

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM, MaskedMixerModel, kernels
from modeling_eem.models.layout_masked_mixer import AlignedLayout, GatheredLayout, choose_layout
from modeling_eem.models.mixing_masked_mixer import (
    LOOK_AHEAD,
    continued_token_mixing,
    dense_token_mixing,
    gathered_token_mixing,
    next_token_mixing,
    reference_token_mixing,
    tap_product_mixing,
    token_mixing,
)

VARIANTS = {
    "flat": {},
    "kernel": {"mixing_kernel_size": 4},
    "heads": {"num_mixing_heads": 4},
    "heads and kernel": {"num_mixing_heads": 2, "mixing_kernel_size": 3},
}


def _mixing_inputs(heads: int, length: int, kernel: int, batch: int = 3, features: int = 8) -> tuple[Tensor, ...]:
    """`W [H, T, T, K]`, `bias [H, T]` and `x [B, T, D]` in float64, to be differentiated."""
    shapes = [(heads, length, length, kernel), (heads, length), (batch, length, features)]
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def _dense(weight: Tensor, bias: Tensor, x_BTD: Tensor, is_causal: bool) -> Tensor:
    """`dense_token_mixing` in the reference's layout."""
    x_HTBE = x_BTD.transpose(0, 1).unflatten(-1, (len(weight), -1)).movedim(2, 0)
    return dense_token_mixing(weight, bias, x_HTBE, is_causal).movedim(0, 2).flatten(2).transpose(0, 1)


@pytest.fixture(params=["kernels", "plain"], autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of this with the package's kernels, and as code from a checkpoint's folder runs."""
    with kernels.plain() if request.param == "plain" else nullcontext():
        yield


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 3, 8])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_reference_is_the_equation(heads: int, kernel: int, is_causal: bool) -> None:
    """`y[i, f] = bias[i] + sum_j sum_p W[i, j, p] x[j, f + p - (k - 1) // 2]` inside a head's features."""
    weight, bias, x = _mixing_inputs(heads, length=5, kernel=kernel)
    width = x.shape[-1] // heads
    expected = torch.zeros_like(x)
    for i in range(5):
        for f in range(x.shape[-1]):
            head, feature = divmod(f, width)
            expected[:, i, f] = bias[head, i]
            for j in range(i + 1 if is_causal else 5):
                for p in range(kernel):
                    source = feature + p - (kernel - 1) // 2
                    if 0 <= source < width:
                        expected[:, i, f] += weight[head, i, j, p] * x[:, j, head * width + source]
    torch.testing.assert_close(reference_token_mixing(weight, bias, x, is_causal), expected)


@pytest.mark.parametrize("new_length", [1, 3, 7])
@pytest.mark.parametrize("kernel", [1, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_last_rows_alone_are_those_of_the_whole(heads: int, kernel: int, new_length: int) -> None:
    weight, bias, x = _mixing_inputs(heads, length=9, kernel=kernel)
    expected = reference_token_mixing(weight[:, :7, :7], bias[:, :7], x[:, :7], is_causal=True)[:, -new_length:]
    actual = continued_token_mixing(weight, bias, x[:, :7].transpose(0, 1), new_length)
    torch.testing.assert_close(actual.transpose(0, 1), expected)


@pytest.mark.parametrize("kernel", [1, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_looking_ahead_changes_no_token(heads: int, kernel: int) -> None:
    """Past two look-aheads, up to the last row of W; what another position left is not used."""
    length = 2 * LOOK_AHEAD + 7
    weight, bias, x = _mixing_inputs(heads, length, kernel)
    expected_BTD = reference_token_mixing(weight, bias, x, is_causal=True)
    ahead = None
    for position in [*range(5, length), 3, 4, 30]:
        so_far = x[:, : position + 1].transpose(0, 1)
        actual, ahead = next_token_mixing(weight, bias, so_far, ahead)
        torch.testing.assert_close(actual[0], expected_BTD[:, position])


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("heads", [1, 4])
def test_dense_products_equal_the_reference(heads: int, kernel: int, is_causal: bool) -> None:
    """Outputs, and the gradients of weight, bias and input; above the diagonal these are exactly zero."""
    inputs = _mixing_inputs(heads, 33, kernel)
    actual, expected = (mix(*inputs, is_causal) for mix in (_dense, reference_token_mixing))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(expected)
    actual_grads, expected_grads = (torch.autograd.grad(y, inputs, upstream) for y in (actual, expected))
    torch.testing.assert_close(actual_grads, expected_grads, rtol=1e-10, atol=1e-10)
    if is_causal:
        assert not actual_grads[0].movedim(-1, 0).triu(1).any()


@pytest.mark.parametrize("kernel", [1, 4, 8])
def test_bfloat16_is_rounded_once(kernel: int) -> None:
    """At n = 1,024: no further from float64 than a plain bf16 convolution, in y and in the gradient of x."""
    n, width = 1024, 32
    bound = 1 / (n * kernel) ** 0.5
    weight = torch.empty(1, n, n, kernel).uniform_(-bound, bound).bfloat16()
    bias, x, upstream = (torch.randn(shape).bfloat16() for shape in ((1, n), (1, n, width), (1, n, width)))

    def run(dtype: torch.dtype, mix: Callable[..., Tensor]) -> list[Tensor]:
        given = x.to(dtype).requires_grad_()
        y = mix(weight.to(dtype), bias.to(dtype), given)
        return [y.detach(), *torch.autograd.grad(y, given, upstream.to(dtype))]

    def convolution(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        mask = torch.ones(n, n, dtype=weight.dtype).tril()[..., None]
        return F.conv1d(F.pad(x, ((kernel - 1) // 2, kernel // 2)), weight[0] * mask, bias[0])

    def ours(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return token_mixing(weight, bias, x.transpose(0, 1)[None], True)[0].transpose(0, 1)

    exact = run(torch.float64, convolution)
    errors = [
        [(one - other).abs().mean() for one, other in zip(run(torch.bfloat16, mix), exact)]
        for mix in (ours, convolution)
    ]
    for actual, allowed in zip(*errors):
        assert actual <= 1.001 * allowed


@pytest.mark.parametrize("kernel", [1, 4])
def test_gathered_equals_reference_at_any_positions(kernel: int) -> None:
    """`W[rows, columns]` where visible: each batch row against the reference on a matrix gathered for it."""
    weight, bias, x = _mixing_inputs(2, length=12, kernel=kernel, batch=2)
    positions = torch.stack([torch.randperm(12)[: x.shape[1]] for _ in range(2)])
    visible = torch.rand(2, 12, 12) < 0.5
    actual = gathered_token_mixing(weight, bias, x.unflatten(-1, (2, -1)), positions, positions, visible).flatten(2)
    for row in range(2):
        picked = weight[:, positions[row]][:, :, positions[row]] * visible[row][None, :, :, None]
        expected = reference_token_mixing(picked, bias[:, positions[row]], x[row : row + 1], is_causal=False)
        torch.testing.assert_close(actual[row : row + 1], expected)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
def test_gathered_path_equals_aligned_path(
    backbone_config: Callable[..., Any], pad_rows: Callable, variant: dict, is_causal: bool, side: str
) -> None:
    """The same positions, given and ranked by the mask: outputs on real tokens, and gradients of the weights."""
    model = MaskedMixerModel(backbone_config(is_causal=is_causal, **variant)).double()
    input_ids, mask = pad_rows([torch.randint(2, 40, (length,)) for length in (3, 9, 12)], side, 12)
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    results = []
    for given in (None, position_ids):
        layout = choose_layout(model.config, model.embed_tokens(input_ids), mask, given, past_length=0)
        assert isinstance(layout, AlignedLayout if given is None else GatheredLayout)
        model.zero_grad()
        hidden = model(input_ids, attention_mask=mask, position_ids=given, use_cache=False).last_hidden_state
        hidden[mask.bool()].square().sum().backward()
        results.append((hidden[mask.bool()], [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def _future(model: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each mixing weight of a model with the mask of what lies above its diagonal."""
    weights = [p for name, p in model.named_parameters() if name.endswith("mixing.weight")]
    n = model.config.max_position_embeddings
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    taps = model.config.mixing_kernel_size > 1
    return [(w, (future[..., None] if taps else future).expand_as(w)) for w in weights]


def _contaminate(model: torch.nn.Module) -> None:
    """What another program may leave above the diagonal: NaN and large numbers."""
    with torch.no_grad():
        for weight, future in _future(model):
            garbage = torch.full_like(weight, 1e3)
            garbage[..., ::2, :] = float("nan")
            weight[future] = garbage[future]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def mixer(request: pytest.FixtureRequest, backbone_config: Callable[..., Any]) -> MaskedMixerForCausalLM:
    return MaskedMixerForCausalLM(backbone_config(**request.param))


LAYOUTS: dict[str, dict[str, Any]] = {
    "aligned": {},
    "masked": {"attention_mask": torch.tensor([[0] * 3 + [1] * 13, [1] * 12 + [0] * 4])},
    "gathered": {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]])},
    "gathered, any order": {"position_ids": torch.tensor([[15, 14, 13, 12, 3, 4, 5, 6, 7, 8, 9, 11, 10, 2, 1, 0]])},
}


@pytest.mark.parametrize("inputs", LAYOUTS.values(), ids=LAYOUTS)
def test_garbage_above_the_diagonal_is_neither_used_nor_differentiated(
    mixer: MaskedMixerForCausalLM, inputs: dict[str, Tensor]
) -> None:
    input_ids = torch.randint(2, 40, (2, 16))
    clean = mixer(input_ids, labels=input_ids, **inputs)
    _contaminate(mixer)
    versions = [p._version for p in mixer.parameters()]
    soiled = mixer(input_ids, labels=input_ids, **inputs)
    soiled.loss.backward()
    assert torch.equal(clean.loss, soiled.loss)
    assert [p._version for p in mixer.parameters()] == versions, "forward or backward wrote to a parameter"
    for weight, future in _future(mixer):
        assert not weight.grad[future].any() and weight.grad[~future].any()


def test_garbage_above_the_diagonal_does_not_reach_generation(mixer: MaskedMixerForCausalLM) -> None:
    prompt = torch.randint(2, 40, (2, 4))
    options = {"max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    clean = mixer.eval().generate(prompt, **options).logits
    _contaminate(mixer)
    assert torch.equal(torch.stack(clean), torch.stack(mixer.generate(prompt, **options).logits))


def test_garbage_above_the_diagonal_is_not_saved(mixer: MaskedMixerForCausalLM, tmp_path: Path) -> None:
    _contaminate(mixer)
    mixer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for states in (saved, mixer.state_dict()):
        names = [name for name in states if name.endswith("mixing.weight")]
        assert len(names) == mixer.config.num_hidden_layers
        for name, (weight, future) in zip(names, _future(mixer)):
            assert not states[name][future].any()
            assert torch.equal(states[name][~future], weight[~future])


def test_a_soiled_checkpoint_is_loaded_and_saved_clean(mixer: MaskedMixerForCausalLM, tmp_path: Path) -> None:
    """Another program's file: the values are not used, not passed on, and do not come back by `load_state_dict`."""
    _contaminate(mixer)
    raw = {name: p.detach().clone() for name, p in mixer.named_parameters()}
    assert any(p.isnan().any() for p in raw.values())
    other = MaskedMixerForCausalLM(mixer.config)
    other.load_state_dict(raw)
    input_ids = torch.randint(2, 40, (2, 16))
    assert torch.equal(mixer(input_ids).logits, other(input_ids).logits)
    assert all(p.isfinite().all() for p in other.state_dict().values())


def test_full_matrices_of_a_non_causal_mixer_are_saved_whole(backbone_config: Callable[..., Any]) -> None:
    model = MaskedMixerModel(backbone_config(is_causal=False))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, model.get_parameter(name))
    assert model.state_dict()["layers.0.mixing.weight"].triu(1).any()


def test_training_keeps_exact_zeros_above_the_diagonal(mixer: MaskedMixerForCausalLM) -> None:
    """AdamW with decay, momentum and clipping: the parameter itself, not only its saved copy, stays triangular."""
    optimizer = torch.optim.AdamW(mixer.parameters(), lr=0.01, weight_decay=0.1)
    before = [weight.detach().clone() for weight, _ in _future(mixer)]
    for _ in range(3):
        input_ids = torch.randint(2, 40, (4, 16))
        mixer(input_ids, labels=input_ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for old, (weight, future) in zip(before, _future(mixer)):
        assert not weight[future].any()
        assert (old != weight)[~future].all()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("inputs", LAYOUTS.values(), ids=LAYOUTS)
def test_unwritten_memory_is_never_read(mixer: MaskedMixerForCausalLM, inputs: dict[str, Tensor]) -> None:
    input_ids = torch.randint(2, 40, (2, 16))
    mixer(input_ids, labels=input_ids, **inputs).loss.backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    assert mixer.eval()(input_ids, **inputs).logits.isfinite().all()


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [2, 3, 8])
@pytest.mark.parametrize("heads", [1, 2])
def test_taps_as_one_product(heads: int, kernel: int, is_causal: bool) -> None:
    """As GPUs mix in float32, where cuDNN's convolution would round to TF32: values and gradients."""
    inputs = _mixing_inputs(heads, length=5, kernel=kernel)

    def product(weight: Tensor, bias: Tensor, x_BTD: Tensor) -> Tensor:
        x_HTBE = x_BTD.transpose(0, 1).unflatten(-1, (heads, -1)).movedim(2, 0)
        return tap_product_mixing(weight, bias, x_HTBE, is_causal).movedim(0, 2).flatten(2).transpose(0, 1)

    expected, actual = reference_token_mixing(*inputs, is_causal), product(*inputs)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (actual, expected))):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_weight_whose_values_are_elsewhere_is_saved_as_it_is(changes: dict[str, int]) -> None:
    """DeepSpeed ZeRO-3 leaves an empty tensor in a parameter's place, and asks for the state dict."""
    config = MaskedMixerConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, max_position_embeddings=8, **changes)
    mixing = MaskedMixerModel(config).layers[0].mixing
    mixing.weight.data = torch.empty(0)
    assert not mixing.state_dict()["weight"].numel()


def test_layouts_move_with_the_layers() -> None:
    """accelerate's device maps move a layer's arguments to its device if they have `to`."""
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    aligned = send_to_device(AlignedLayout.from_mask(mask, "left"), "meta")
    assert aligned.order.is_meta and aligned.inverse.is_meta and aligned.is_real_TB1.is_meta
    assert send_to_device(AlignedLayout(), "meta") == AlignedLayout()
    gathered = send_to_device(GatheredLayout.from_positions(None, mask, 0, 3, True, torch.device("cpu")), "meta")
    assert gathered.rows_BQ.is_meta and gathered.columns_BT.is_meta and gathered.visible_BQT.is_meta
