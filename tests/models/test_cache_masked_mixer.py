"""The cache that grows in place holds what one that concatenates holds, whatever is done to it in between."""

import copy

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.models.cache_masked_mixer import MixingLayer, grow_in_place


def states(length: int, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    keys = torch.randn(batch_size, 1, length, 6)
    return keys, keys[..., :0]


@pytest.mark.parametrize("room", [1, 64], ids=["grows at every step", "has room"])
def test_holds_what_a_concatenating_layer_holds(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_eem.models.cache_masked_mixer._LEAST_ROOM", room)
    torch.manual_seed(0)
    ours, theirs = MixingLayer(), DynamicLayer()
    for length in (5, 1, 1, 3):
        new = states(length)
        for layer in (ours, theirs):
            layer.update(*new)
        assert torch.equal(ours.keys, theirs.keys)
        assert ours.get_seq_length() == theirs.get_seq_length()
    for change in (
        lambda layer: layer.crop(-4),
        lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.batch_select_indices(torch.tensor([3, 0])),
    ):
        for layer in (ours, theirs):
            change(layer)
        new = states(2, ours.keys.shape[0])
        for layer in (ours, theirs):
            layer.update(*new)
        assert torch.equal(ours.keys, theirs.keys)
    for layer in (ours, theirs):
        layer.reset()
        layer.update(*new)
    assert torch.equal(ours.keys, theirs.keys)


@torch.no_grad()
def test_a_new_token_is_written_where_the_last_ones_lie() -> None:
    layer = MixingLayer()
    layer.update(*states(5))
    place = layer.keys.data_ptr()
    layer.update(*states(1))
    assert layer.keys.data_ptr() == place


def test_copies_do_not_share_their_memory() -> None:
    layer = MixingLayer()
    layer.update(*states(5))
    other = copy.deepcopy(layer)
    held = layer.keys.clone()
    other.update(*states(1))
    layer.update(*states(1))
    assert torch.equal(layer.keys[..., :5, :], held)
    assert torch.equal(other.keys[..., :5, :], held)
    assert not torch.equal(layer.keys, other.keys)


def test_what_autograd_holds_is_not_overwritten() -> None:
    layer = MixingLayer()
    first, _ = states(3)
    first.requires_grad_()
    held, _ = layer.update(first, first[..., :0])
    loss = held.square().sum()
    layer.update(*(state.requires_grad_() for state in states(1)))
    loss.backward()
    torch.testing.assert_close(first.grad, 2 * first.detach())


@pytest.mark.parametrize("with_config", [False, True])
def test_only_empty_layers_are_replaced(with_config: bool) -> None:
    config = MaskedMixerConfig(
        vocab_size=11, hidden_size=6, num_hidden_layers=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=0
    )
    cache = DynamicCache(config=config) if with_config else DynamicCache()
    MaskedMixerForCausalLM(config).eval()(torch.tensor([[0, 3, 4]]), past_key_values=cache)
    assert all(type(layer) is MixingLayer for layer in cache.layers)
    filled = DynamicCache()
    filled.update(*states(3), 0)
    grow_in_place(filled)
    assert type(filled.layers[0]) is DynamicLayer


def test_what_was_looked_ahead_goes_with_the_tokens_it_read() -> None:
    """Cropping and choosing other texts, between tokens: the next logits are those of the texts read anew."""
    torch.manual_seed(0)
    config = MaskedMixerConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, max_position_embeddings=40)
    model = MaskedMixerForCausalLM(config).eval()
    ids = torch.randint(20, (2, 30))
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache)
        for position in range(5, 12):
            model(ids[:, position : position + 1], past_key_values=cache)
        cache.crop(-3)
        other = torch.cat([ids[:, :9], ids[:, 20:22]], dim=-1)
        for position in (9, 10):
            logits = model(other[:, position : position + 1], past_key_values=cache).logits
        torch.testing.assert_close(logits[:, -1], model(other, use_cache=False).logits[:, -1], rtol=1e-4, atol=1e-4)
        cache.reorder_cache(torch.tensor([1, 1]))
        swapped = torch.cat([other[[1, 1]], ids[:, :2]], dim=-1)
        for position in (11, 12):
            logits = model(swapped[:, position : position + 1], past_key_values=cache).logits
        torch.testing.assert_close(logits[:, -1], model(swapped, use_cache=False).logits[:, -1], rtol=1e-4, atol=1e-4)


def test_an_offloaded_layer_keeps_no_buffer() -> None:
    """The buffer is the memory that offloading is to free; the next token finds what was cached."""
    layer, other = MixingLayer(), DynamicLayer()
    with torch.no_grad():
        for _ in range(3):
            new = torch.randn(2, 1, 3, 4)
            expected = other.update(new, new[..., :0])[0]
            torch.testing.assert_close(layer.update(new, new[..., :0])[0], expected)
            layer.offload()
            assert layer.buffer_TBD is layer.view is layer.ahead is None
            layer.prefetch()
