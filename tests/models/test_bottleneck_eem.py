"""The bottleneck and what stands around it: noise, rounding, backbones, and text checked where it enters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_eem import EEMForCausalLM
from modeling_eem.models.quantization_eem import CODE_FORMATS


def _ids(*shape: int) -> Tensor:
    return torch.randint(2, 40, shape)


@pytest.mark.parametrize("size", [6, None])
@pytest.mark.parametrize("placement", ["bottleneck", "encoder_output"])
def test_noise_is_uniform_in_training_only(placement: str, size: int | None, eem_config: Callable[..., Any]) -> None:
    """U(-q, q), on the code, or on the encoder's output before `down`; from the global generator."""
    eem = EEMForCausalLM(eem_config(bottleneck_size=size, noise_scale=0.25, noise_placement=placement)).eval()
    outputs = []  # of the encoder, as the bottleneck takes them
    if size is not None:
        eem.model.encoder.bottleneck.down.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    input_ids = _ids(64, 12)
    clean = eem.encode(input_ids)
    assert torch.equal(clean, eem.encode(input_ids)) and torch.equal(clean, eem(input_ids).code)
    eem.train()
    torch.manual_seed(3)
    noisy = eem.encode(input_ids)
    if placement == "encoder_output" and size is not None:
        noise = outputs[-1] - outputs[0]
    else:
        noise = noisy - clean
        assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert noise.abs().max() <= 0.25 + 1e-5 and noise.min() < -0.23 and noise.max() > 0.23
    assert abs(noise.mean()) < 0.03 and noise.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.1)
    torch.manual_seed(3)
    assert torch.equal(noisy, eem(input_ids, labels=input_ids).code), "the same seed gives the same noise"
    assert (noisy != eem.encode(input_ids)).all()


@pytest.mark.parametrize("placement", ["bottleneck", "encoder_output"])
def test_a_code_passed_in_gets_no_noise(placement: str, eem_config: Callable[..., Any]) -> None:
    eem = EEMForCausalLM(eem_config(noise_scale=0.25, noise_placement=placement)).eval()
    input_ids, code = _ids(2, 12), torch.randn(2, 6)
    expected = eem(input_ids, code=code).logits
    output = eem.train()(input_ids, code=code)
    assert torch.equal(output.code, code)
    torch.testing.assert_close(output.logits, expected)


@pytest.mark.parametrize("name", CODE_FORMATS)
def test_codes_are_rounded_outside_training(name: str, eem_config: Callable[..., Any]) -> None:
    """Encoded or passed in, once or twice."""
    torch.manual_seed(0)
    exact = EEMForCausalLM(eem_config()).eval()
    torch.manual_seed(0)
    eem = EEMForCausalLM(eem_config(code_dtype=name)).eval()
    input_ids = _ids(3, 12)
    raw = exact.encode(input_ids)
    rounded = CODE_FORMATS[name].round(raw)
    assert (rounded != raw).any()
    torch.testing.assert_close(eem.encode(input_ids), rounded)
    torch.testing.assert_close(eem(input_ids).logits, exact(input_ids, code=rounded).logits)
    for code in (raw, rounded):
        output = eem(input_ids, code=code)
        torch.testing.assert_close(output.code, rounded, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output.logits, exact(input_ids, code=rounded).logits, rtol=1e-5, atol=1e-5)
    eem.train()
    assert torch.equal(eem.encode(input_ids), raw) and torch.equal(eem(input_ids, code=raw).code, raw)


@pytest.mark.parametrize(
    "input_ids, mask, message",
    [
        ([[3, 40]], None, "input_ids holds 40, outside the vocabulary of 40"),
        ([[3, -1]], None, "input_ids holds -1, outside the vocabulary of 40"),
        ([[3, 4], [5, 6]], [[0, 1], [0, 0]], "attention_mask: row 1 is all padding"),
        ([[]], None, "at least one token"),
        ([3, 4], None, r"input_ids must be \[batch, tokens\]"),
    ],
)
def test_bad_text_is_named_where_it_enters(
    input_ids: list, mask: list | None, message: str, eem_config: Callable[..., Any]
) -> None:
    mask = None if mask is None else torch.tensor(mask)
    eem = EEMForCausalLM(eem_config())
    with pytest.raises(ValueError, match=message):
        eem.encode(torch.tensor(input_ids, dtype=torch.long), mask)


@pytest.mark.parametrize("side", ["encoder_config", "decoder_config"])
@pytest.mark.parametrize(
    "model_type, sizes, message",
    [
        ("bert", {"num_attention_heads": 2}, "a 'bert' model is not a causal language model's backbone"),
        ("rwkv", {"attention_hidden_size": 32}, "a 'rwkv' backbone does not take past_key_values, position_ids"),
    ],
)
def test_a_backbone_that_cannot_serve_is_refused(
    side: str, model_type: str, sizes: dict[str, int], message: str, eem_config: Callable[..., Any]
) -> None:
    length = 16 + (side == "decoder_config")
    backbone = {"model_type": model_type, "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, **sizes}
    with pytest.raises(ValueError, match=f"{side}: {message}"):
        EEMForCausalLM(eem_config(**{side: backbone | {"max_position_embeddings": length}}))
