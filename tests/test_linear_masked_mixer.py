"""The Linear for few rows: the same numbers as `nn.Linear`, whatever way they are computed."""

import pytest
import torch
from torch import nn

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.linear_masked_mixer import FEW_ROWS, FewRowsLinear, few_rows_linear


@pytest.mark.parametrize("shape", [(12,), (1, 12), (1, 1, 12), (5, 12), (2, 3, 12), (3, 1, 12)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_few_rows_are_a_linear(shape: tuple[int, ...], has_bias: bool) -> None:
    x, weight = torch.randn(shape), torch.randn(8, 12)
    bias = torch.randn(8) if has_bias else None
    for rows in (x, x.transpose(0, -2) if x.dim() > 2 else x):  # also rows that do not lie one after the other
        expected = nn.functional.linear(rows, weight, bias)
        torch.testing.assert_close(few_rows_linear(rows, weight, bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_rows", [0, 1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("num_outputs", [8, 511, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_layer_is_a_linear_for_any_rows(num_rows: int, num_outputs: int, dtype: torch.dtype) -> None:
    layer = FewRowsLinear(256, num_outputs).to(dtype)
    x = torch.randn(num_rows, 256, dtype=dtype)
    with torch.no_grad():
        expected = nn.functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(256, 512), (12, 8)], ids=["large", "small"])
def test_only_large_weights_go_the_other_way(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits a core's cache gains nothing, and keeps PyTorch's bits."""
    called = []
    monkeypatch.setattr("modeling_eem.linear_masked_mixer.few_rows_linear", lambda *_: called.append(1))
    with torch.no_grad():
        FewRowsLinear(*size)(torch.randn(1, size[0]))
    assert bool(called) == (size == (256, 512))


def test_gradients_are_those_of_a_linear() -> None:
    layer = FewRowsLinear(256, 512)
    layer(torch.randn(2, 256)).sum().backward()
    assert layer.weight.grad.any() and layer.bias.grad.any()


def test_autocast_decides_the_dtype() -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert FewRowsLinear(256, 512)(torch.randn(1, 256)).dtype == torch.bfloat16


def test_hooks_and_resized_heads_still_count() -> None:
    """It is called as a module, so what wraps its forward is not passed by; a resized head is a plain Linear again."""
    config = MaskedMixerConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, max_position_embeddings=8)
    model = MaskedMixerForCausalLM(config).eval()
    seen = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(24)
        torch.testing.assert_close(model(ids).logits[..., :20], before)
    assert len(seen) == 2
