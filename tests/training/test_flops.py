"""FLOPs of a training step against closed forms: 2 a multiply-add, forward once and backward twice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from modeling_eem import EEMForCausalLM
from modeling_eem.training import training_flops
from modeling_eem.training.flops import counted_flops

VOCAB_SIZE, LAYERS, LENGTH = 40, 2, 300


def _model(config: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config)


def _mixing(length: int, width: int) -> int:
    """Multiply-adds of the triangle in blocks of 64 columns: all positions from a block's begin on see the block."""
    starts = range(0, length, 64)
    return sum((min(s + 64, length) - s) * (length - s) * width for s in starts)


def _mixer(length: int, width: int) -> int:
    """Multiply-adds of a flat mixer's blocks, forward."""
    return LAYERS * (_mixing(length, width) + 8 * length * width**2)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_a_flat_mixer_costs_its_triangle_and_products(backbone_config: Callable[..., Any], length: int) -> None:
    d = 32
    model = _model(backbone_config(hidden_size=d, max_position_embeddings=LENGTH))
    assert training_flops(model, length) == 3 * 2 * (_mixer(length, d) + length * d * VOCAB_SIZE)


@pytest.mark.parametrize("heads, kernel, columns", [(4, 1, 8), (0, 3, 3 * 48), (2, 4, 6 * 16)])
def test_heads_and_kernels(backbone_config: Callable[..., Any], heads: int, kernel: int, columns: int) -> None:
    """Heads add a projection in and one out; taps are products of their own, three of a half for each two.

    Those have a text's columns and the zeros between two, 32 + 2 and (16 + 4) / 2, rounded up to sixteens.
    """
    d, t = 32, 200
    config = backbone_config(
        hidden_size=d, max_position_embeddings=t, num_mixing_heads=heads, mixing_kernel_size=kernel
    )
    num_heads = heads or 1
    mixing = LAYERS * num_heads * _mixing(t, columns)
    linear = LAYERS * (8 + 2 * (heads > 0)) * t * d**2 + t * d * VOCAB_SIZE
    assert training_flops(_model(config), t) == 6 * (mixing + linear)


@pytest.mark.parametrize("introduction, extra", [("token", 1), ("combination", 0)])
def test_eem_is_encoder_bottleneck_and_decoder(
    eem_config: Callable[..., Any], backbone_config: Callable[..., Any], introduction: str, extra: int
) -> None:
    d_enc, d, p = 16, 32, 6
    config = eem_config(
        memory_introduction=introduction,
        encoder_config=backbone_config(hidden_size=d_enc, max_position_embeddings=LENGTH, position_alignment="right"),
        decoder_config=backbone_config(hidden_size=d, max_position_embeddings=LENGTH + extra),
    )
    encoder = _mixer(LENGTH, d_enc) - 8 * (LENGTH - 1) * d_enc**2  # the last feed-forward, for the last output only
    bottleneck = d_enc * p + p * d_enc + d_enc * d
    decoder = _mixer(LENGTH + extra, d) + LENGTH * d * VOCAB_SIZE
    expected = 6 * (encoder + bottleneck + decoder)
    assert training_flops(EEMForCausalLM(config), LENGTH) == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama_costs_the_attention_that_it_computes(backbone_config: Callable[..., Any], attention: str) -> None:
    """Written out, attention is the whole square; fused and causal, the triangle that it computes."""
    d, t = 32, 100
    config = backbone_config("llama", hidden_size=d, max_position_embeddings=t, attn_implementation=attention)
    pairs = t**2 if attention == "eager" else t * (t + 1) // 2
    block = 4 * t * d**2 + 3 * t * d * (4 * d) + 2 * pairs * d
    expected = 6 * (LAYERS * block + t * d * VOCAB_SIZE)
    if attention == "sdpa":
        expected += LAYERS * 2 * pairs * d  # its backward makes the scores again
    # the rotary angles are a product too, forward only: t positions times half a head
    assert training_flops(_model(config), t) == pytest.approx(expected, abs=2 * t * d)


@pytest.mark.parametrize("is_causal, pairs", [(False, 5 * 8), (True, 1 + 2 + 3 + 4 + 5)])
def test_attention_counts_the_pairs_that_it_computes(is_causal: bool, pairs: int) -> None:
    q, k = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 8, 16)

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=is_causal)

    assert counted_flops(attend) == 2 * 2 * (2 * 3) * pairs * 16


@pytest.mark.parametrize("kind", ["masked_mixer", "llama", "eem"])
@pytest.mark.parametrize("is_training", [True, False])
def test_nothing_is_touched(
    backbone_config: Callable[..., Any], eem_config: Callable[..., Any], kind: str, is_training: bool
) -> None:
    """Noise and dropout draw numbers; the model's mode, gradients and the generator are as before."""
    if kind == "eem":
        model = _model(eem_config(noise_scale=0.5))
    else:
        model = _model(backbone_config(kind, **({"attention_dropout": 0.5} if kind == "llama" else {})))
    model.train(is_training)
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    state = torch.get_rng_state()
    flops = training_flops(model, 16)
    assert flops > 0 and flops == training_flops(model, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == is_training and all(module.training == is_training for module in model.modules())
    assert first.grad.eq(1).all() and all(p.grad is None for p in others)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_frozen_parts_cost_no_gradient(backbone_config: Callable[..., Any]) -> None:
    model = _model(backbone_config())
    whole = training_flops(model, 16)
    model.model.layers[0].requires_grad_(False)
    assert training_flops(model, 16) < whole
