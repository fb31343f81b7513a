"""Masked mixers: sizes, initialisation, causality, positions and padding, losses."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM, MaskedMixerForTokenClassification, MaskedMixerModel
from modeling_eem.models.layout_masked_mixer import AlignedLayout

VARIANTS: dict[str, dict[str, Any]] = {
    "flat": {},
    "kernel": {"mixing_kernel_size": 4},
    "heads": {"num_mixing_heads": 4},
    "heads and kernel": {"num_mixing_heads": 2, "mixing_kernel_size": 3},
    "tied": {"tie_word_embeddings": True},
}
ALIGNMENTS = ["left", "right"]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def mixer(variant: dict[str, Any], backbone_config: Callable[..., Any]) -> MaskedMixerForCausalLM:
    return MaskedMixerForCausalLM(backbone_config(**variant)).eval()


def _ids(*shape: int) -> Tensor:
    return torch.randint(2, 40, shape)


# Sizes and initialisation


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("h", [0, 1, 4])
def test_parameters_follow_the_formulas(backbone_config: Callable[..., Any], h: int, k: int) -> None:
    """A flat block has `8d² + 9d + k n² + n`; heads replace `k n² + n` by `h (k n² + n) + 2d² + 2d`."""
    d, n = 24, 10
    model = MaskedMixerForCausalLM(
        backbone_config(hidden_size=d, max_position_embeddings=n, num_mixing_heads=h, mixing_kernel_size=k)
    )
    mixing = h * (k * n**2 + n) + 2 * d**2 + 2 * d if h else k * n**2 + n
    assert sum(p.numel() for p in model.model.layers[0].parameters()) == 8 * d**2 + 9 * d + mixing
    assert model.num_parameters() == 2 * 40 * d + 2 * (8 * d**2 + 9 * d + mixing)


def _assert_uniform(values: Tensor, bound: float) -> None:
    """U(-bound, bound), by its extremes and its standard deviation."""
    assert values.abs().max() <= bound
    assert values.max() > 0.8 * bound and values.min() < -0.8 * bound
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize("kernel", [1, 4])
@pytest.mark.parametrize("heads", [0, 2])
def test_weights_begin_uniform_and_causal_beside_normal_embeddings(
    backbone_config: Callable[..., Any], heads: int, kernel: int
) -> None:
    config = backbone_config(
        hidden_size=64, max_position_embeddings=128, num_mixing_heads=heads, mixing_kernel_size=kernel, vocab_size=500
    )
    model = MaskedMixerForCausalLM(config)
    embeddings = model.model.embed_tokens.weight
    assert embeddings.std().item() == pytest.approx(1, abs=0.02) and abs(embeddings.mean()) < 0.02
    seen = torch.ones(128, 128, dtype=torch.bool).tril()
    for block in model.model.layers:
        weight = block.mixing.weight if kernel == 1 else block.mixing.weight.movedim(-1, 0)
        bound = 1 / math.sqrt(128 * kernel)
        _assert_uniform(weight[..., seen], bound)
        _assert_uniform(block.mixing.bias, bound)
        assert not weight[..., ~seen].any()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _assert_uniform(module.weight, 1 / math.sqrt(module.in_features))
            if module.bias is not None:
                _assert_uniform(module.bias, 1 / math.sqrt(module.in_features))
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5 and (module.weight == 1).all() and not module.bias.any()
    assert model.lm_head.bias is None


# The equation


def test_blocks_are_the_equations(backbone_config: Callable[..., Any]) -> None:
    """`x = x + Mix(LN(x)); x = x + FF(LN(x))` with exact GELU, no norm at the end, the head on the raw stream."""
    model = MaskedMixerForCausalLM(backbone_config(num_mixing_heads=2)).eval()
    input_ids = _ids(3, 16)
    x = model.model.embed_tokens(input_ids)
    for block in model.model.layers:
        heads = block.mixing.in_proj(block.mixing_layernorm(x)).chunk(2, dim=-1)
        mixed = [
            weight.tril() @ head + bias[:, None]
            for weight, bias, head in zip(block.mixing.weight, block.mixing.bias, heads)
        ]
        x = x + block.mixing.out_proj(torch.cat(mixed, dim=-1))
        x = x + block.mlp.down_proj(F.gelu(block.mlp.up_proj(block.mlp_layernorm(x)), approximate="none"))
    torch.testing.assert_close(model(input_ids).logits, x @ model.lm_head.weight.T)


@pytest.mark.parametrize("activation", ["gelu", "silu", "relu"])
@pytest.mark.parametrize("width", [32, 256])
@pytest.mark.parametrize("shape", [(1, 1), (1,), (2, 1)])
def test_a_feed_forward_of_one_row_is_that_of_many(
    activation: str, width: int, shape: tuple[int, ...], backbone_config: Callable[..., Any]
) -> None:
    """One row without gradients is activated in another way; in a small layer it has the same bits even so."""
    mlp = MaskedMixerModel(backbone_config(hidden_size=width, hidden_act=activation)).layers[0].mlp
    x = torch.randn(*shape, width)
    with torch.no_grad():
        one = mlp(x)
    expected = mlp(x).detach()
    assert one.shape == x.shape and not one.requires_grad
    torch.testing.assert_close(one, expected)
    assert width == 256 or torch.equal(one, expected)


def test_hidden_states_are_the_residual_stream(mixer: MaskedMixerForCausalLM) -> None:
    input_ids = _ids(2, 9)
    output = mixer(input_ids, output_hidden_states=True)
    states = output.hidden_states
    assert len(states) == mixer.config.num_hidden_layers + 1
    assert torch.equal(states[0], mixer.model.embed_tokens(input_ids))
    assert torch.equal(states[1], mixer.model.layers[0](states[0], layout=AlignedLayout()))
    assert torch.equal(mixer.lm_head(states[-1]), output.logits)
    assert mixer(input_ids).hidden_states is None


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_one_output_of_each_row_can_be_read(
    alignment: str, variant: dict[str, Any], backbone_config: Callable[..., Any]
) -> None:
    """The values, and the gradients of what earlier blocks did for them."""
    model = MaskedMixerModel(backbone_config(position_alignment=alignment, **variant))
    ids, mask = _ids(3, 7), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
    last = torch.tensor([6, 3, 6])
    whole = model(ids, attention_mask=mask).last_hidden_state[torch.arange(3), last]
    read = model(ids, attention_mask=mask, read_positions=last).last_hidden_state
    assert read.shape == (3, 1, 32)
    torch.testing.assert_close(read[:, 0], whole)
    for one, other in zip(*(torch.autograd.grad(h.square().sum(), list(model.parameters())) for h in (read, whole))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_embeddings_can_be_given(mixer: MaskedMixerForCausalLM) -> None:
    input_ids = _ids(2, 9)
    embeds = mixer.model.embed_tokens(input_ids)
    assert torch.equal(mixer(inputs_embeds=embeds).logits, mixer(input_ids).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        mixer(input_ids, inputs_embeds=embeds)


def test_logits_to_keep(mixer: MaskedMixerForCausalLM) -> None:
    input_ids = _ids(2, 9)
    logits = mixer(input_ids).logits
    torch.testing.assert_close(mixer(input_ids, logits_to_keep=1).logits, logits[:, -1:])
    torch.testing.assert_close(mixer(input_ids, logits_to_keep=torch.tensor([0, 4])).logits, logits[:, [0, 4]])


# Causality


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_no_logit_sees_a_later_token(
    variant: dict[str, Any], alignment: str, backbone_config: Callable[..., Any]
) -> None:
    model = MaskedMixerForCausalLM(backbone_config(position_alignment=alignment, **variant)).eval()
    input_ids = _ids(2, 12)
    places = torch.randperm(16)[None, :12]
    # With right alignment positions must not fall.
    for position_ids in (None, places.sort().values, *([places] if alignment == "left" else [])):
        logits = model(input_ids, position_ids=position_ids).logits
        for t in range(12):
            changed = input_ids.clone()
            changed[:, t:] = (changed[:, t:] - 1) % 38 + 2
            after = model(changed, position_ids=position_ids).logits
            assert torch.equal(after[:, :t], logits[:, :t])
            assert (after[:, t:] != logits[:, t:]).any(-1).all()


def test_a_non_causal_mixer_sees_later_tokens(variant: dict[str, Any], backbone_config: Callable[..., Any]) -> None:
    config = backbone_config(is_causal=False, **variant)
    model = MaskedMixerModel(config).eval()
    input_ids = _ids(2, 12)
    changed = input_ids.clone()
    changed[:, -1] = (changed[:, -1] - 1) % 38 + 2
    before, after = (model(ids).last_hidden_state for ids in (input_ids, changed))
    assert (before != after).any(-1).all()
    with pytest.raises(ValueError, match="is_causal=True"):
        MaskedMixerForCausalLM(config)


# Positions and padding


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_padding_is_inert(
    variant: dict[str, Any],
    alignment: str,
    side: str,
    rows: int,
    backbone_config: Callable[..., Any],
    pad_rows: Callable,
    assert_same_logits: Callable,
) -> None:
    """A text has the same logits alone, and padded in a batch of 1 or 5."""
    model = MaskedMixerForCausalLM(backbone_config(position_alignment=alignment, **variant)).eval()
    texts = [_ids(length) for length in (7, 1, 14, 12, 3)[:rows]]
    input_ids, mask = pad_rows(texts, side, width=14)
    logits = model(input_ids, attention_mask=mask).logits
    for row, row_mask, text in zip(logits, mask, texts):
        assert_same_logits(row[row_mask.bool()], model(text[None]).logits[0])


@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
def test_padding_is_inert_without_causality(
    variant: dict[str, Any],
    side: str,
    backbone_config: Callable[..., Any],
    pad_rows: Callable,
    assert_same_logits: Callable,
) -> None:
    model = MaskedMixerModel(backbone_config(is_causal=False, **variant)).eval()
    texts = [_ids(length) for length in (7, 1, 14)]
    input_ids, mask = pad_rows(texts, side, width=14)
    hidden = model(input_ids, attention_mask=mask).last_hidden_state
    for row, row_mask, text in zip(hidden, mask, texts):
        assert_same_logits(row[row_mask.bool()], model(text[None]).last_hidden_state[0])


def test_alignment_decides_which_rows_a_short_text_reads(backbone_config: Callable[..., Any]) -> None:
    """Left: the first token is on row 0 of W; right: the last one on row n - 1."""
    for alignment, rows in (("left", slice(0, 5)), ("right", slice(11, 16))):
        model = MaskedMixerModel(backbone_config(position_alignment=alignment)).eval()
        model(_ids(1, 5)).last_hidden_state.square().sum().backward()
        read = model.layers[0].mixing.weight.grad.any(dim=1)
        assert read.nonzero().flatten().tolist() == list(range(16))[rows]


@pytest.mark.parametrize("mask", [None, torch.ones(1, 14, dtype=torch.long)], ids=["no mask", "all-ones mask"])
def test_packed_rows_equal_separate_rows(
    mixer: MaskedMixerForCausalLM, mask: Tensor | None, assert_same_logits: Callable
) -> None:
    """Restarting positions separate documents, whatever mask and cache are there by default."""
    texts = [_ids(length) for length in (5, 1, 6, 2)]
    position_ids = torch.cat([torch.arange(len(text)) for text in texts])[None]
    packed = mixer(torch.cat(texts)[None], attention_mask=mask, position_ids=position_ids, use_cache=True).logits[0]
    assert_same_logits(packed, torch.cat([mixer(text[None]).logits[0] for text in texts]))


def test_packed_rows_of_a_non_causal_mixer_are_separate(
    variant: dict[str, Any], backbone_config: Callable[..., Any], assert_same_logits: Callable
) -> None:
    model = MaskedMixerModel(backbone_config(is_causal=False, **variant)).eval()
    texts = [_ids(length) for length in (5, 1, 6, 2)]
    position_ids = torch.cat([torch.arange(len(text)) for text in texts])[None]
    packed = model(torch.cat(texts)[None], position_ids=position_ids).last_hidden_state[0]
    assert_same_logits(packed, torch.cat([model(text[None]).last_hidden_state[0] for text in texts]))


def test_packed_rows_may_be_padded(
    mixer: MaskedMixerForCausalLM, pad_rows: Callable, assert_same_logits: Callable
) -> None:
    texts = [_ids(length) for length in (4, 7)]
    packed = torch.cat(texts)
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    expected = torch.cat([mixer(text[None]).logits[0] for text in texts])
    for side in ("left", "right", "both"):
        input_ids, mask = pad_rows([packed], side, width=16)
        position_ids = torch.zeros_like(input_ids).masked_scatter(mask.bool(), positions)
        logits = mixer(input_ids, attention_mask=mask, position_ids=position_ids).logits
        assert_same_logits(logits[mask.bool()], expected)


def test_position_ids_index_the_matrices(mixer: MaskedMixerForCausalLM) -> None:
    """Text that begins elsewhere reads other rows, and one row of positions serves a whole batch."""
    input_ids = _ids(3, 8)
    plain = mixer(input_ids).logits
    torch.testing.assert_close(mixer(input_ids, position_ids=torch.arange(8)[None]).logits, plain)
    shifted = mixer(input_ids, position_ids=torch.arange(8)[None] + 4).logits
    assert (shifted - plain).abs().amax(dim=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("is_causal", [True, False])
def test_right_alignment_refuses_packing_and_caches(is_causal: bool, backbone_config: Callable[..., Any]) -> None:
    model = MaskedMixerModel(backbone_config(position_alignment="right", is_causal=is_causal)).eval()
    input_ids = _ids(1, 6)
    with pytest.raises(ValueError, match="position_alignment='left'"):
        model(input_ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    cache = MaskedMixerModel(backbone_config()).eval()(input_ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="use_cache=False"):
        model(input_ids, past_key_values=cache)
    assert model(input_ids, use_cache=True).past_key_values is None


def test_a_text_longer_than_the_context_is_refused(mixer: MaskedMixerForCausalLM) -> None:
    with pytest.raises(ValueError, match="17 tokens.*max_position_embeddings=16"):
        mixer(_ids(1, 17))
    cache = mixer(_ids(1, 16)).past_key_values
    with pytest.raises(ValueError, match="17 tokens.*max_position_embeddings=16"):
        mixer(_ids(1, 1), past_key_values=cache)


def test_a_mask_of_another_shape_is_refused(mixer: MaskedMixerForCausalLM) -> None:
    with pytest.raises(ValueError, match="attention_mask"):
        mixer(_ids(1, 4), attention_mask=torch.ones(1, 3))


# Losses


@pytest.fixture
def scored(mixer: MaskedMixerForCausalLM) -> dict[str, Tensor]:
    """A padded batch with labels, some of them -100."""
    input_ids = _ids(4, 16)
    mask = torch.ones_like(input_ids)
    mask[0, :5] = 0
    labels = input_ids.masked_fill((mask == 0) | (torch.rand(4, 16) < 0.2), -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def test_loss_in_training_and_evaluation_is_cross_entropy(
    mixer: MaskedMixerForCausalLM, scored: dict[str, Tensor]
) -> None:
    """In chunks (training), from kept logits (evaluation, or asked for), and by PyTorch: values and gradients."""
    kept = mixer(**scored)
    expected = F.cross_entropy(kept.logits[:, :-1].flatten(0, 1), scored["labels"][:, 1:].flatten())
    expected_grads = torch.autograd.grad(expected, list(mixer.parameters()), retain_graph=True)
    mixer.train()
    chunked, asked = mixer(**scored), mixer(**scored, output_logits=True)
    assert chunked.logits is None and asked.logits is not None
    for loss in (kept.loss, chunked.loss, asked.loss):
        torch.testing.assert_close(loss, expected)
        grads = torch.autograd.grad(loss, list(mixer.parameters()))
        torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("logits_to_keep", [1, torch.tensor([3])])
def test_the_loss_is_of_all_labels_whatever_logits_are_kept(
    mixer: MaskedMixerForCausalLM, scored: dict[str, Tensor], logits_to_keep: int | Tensor
) -> None:
    output = mixer(**scored, logits_to_keep=logits_to_keep)
    assert output.logits.shape[1] == 1
    torch.testing.assert_close(output.loss, mixer(**scored).loss)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_denominator_can_be_given(
    mixer: MaskedMixerForCausalLM, scored: dict[str, Tensor], is_training: bool
) -> None:
    """Micro-batches of 1 and 3 rows over the labelled tokens of both add up to the whole batch's loss."""
    mixer.train(is_training)
    num_items = (scored["labels"][:, 1:] != -100).sum()
    parts = [{name: x[rows] for name, x in scored.items()} for rows in (slice(0, 1), slice(1, 4))]
    for items in (num_items, num_items.item()):
        total = sum(mixer(**part, num_items_in_batch=items).loss for part in parts)
        torch.testing.assert_close(total, mixer(**scored).loss)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_loss_is_float32_under_bf16_autocast(
    mixer: MaskedMixerForCausalLM, scored: dict[str, Tensor], is_training: bool
) -> None:
    mixer.train(is_training)
    with torch.autocast("cpu", torch.bfloat16):
        output = mixer(**scored)
        hidden = mixer.model(scored["input_ids"]).last_hidden_state
    assert output.loss.dtype == torch.float32
    assert (hidden != mixer.model(scored["input_ids"]).last_hidden_state).any(), "autocast reached no product"
    torch.testing.assert_close(output.loss, mixer(**scored).loss, rtol=0.02, atol=0.02)
    output.loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in mixer.parameters())


def test_a_tied_head_is_the_embedding_table(backbone_config: Callable[..., Any]) -> None:
    tied, untied = (MaskedMixerForCausalLM(backbone_config(tie_word_embeddings=tie)) for tie in (True, False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.num_parameters() - tied.num_parameters() == 40 * 32


# Token classification


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_regression_is_a_masked_mean_squared_error(
    variant: dict[str, Any], alignment: str, backbone_config: Callable[..., Any]
) -> None:
    """One number a token; labels that are NaN or -100 are not scored and leave no NaN in the gradients."""
    config = backbone_config(num_labels=1, position_alignment=alignment, **variant)
    model = MaskedMixerForTokenClassification(config)
    input_ids = _ids(2, 10)
    labels = torch.rand(2, 10) * 5
    is_scored = torch.rand(2, 10) < 0.7
    labels[~is_scored] = torch.tensor([float("nan"), -100.0]).repeat(10)[: (~is_scored).sum()]
    output = model(input_ids, labels=labels)
    assert output.logits.shape == (2, 10, 1)
    expected = (output.logits.squeeze(-1) - labels)[is_scored].square().mean()
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad.isfinite().all() and grad.any() for grad in grads.values())


def test_classes_are_scored_by_cross_entropy(backbone_config: Callable[..., Any]) -> None:
    model = MaskedMixerForTokenClassification(backbone_config(num_labels=3))
    labels = torch.randint(3, (2, 10))
    labels[0, :4] = -100
    output = model(_ids(2, 10), labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[labels != -100], labels[labels != -100]))


def test_token_scores_come_from_the_prefix_or_from_all_tokens(backbone_config: Callable[..., Any]) -> None:
    """A causal and a non-causal regression model; padding is inert for both."""
    input_ids = _ids(1, 10)
    changed = input_ids.clone()
    changed[:, -1] = (changed[:, -1] - 1) % 38 + 2
    for is_causal in (True, False):
        model = MaskedMixerForTokenClassification(backbone_config(num_labels=1, is_causal=is_causal)).eval()
        scores = model(input_ids).logits
        assert torch.equal(scores[:, :-1], model(changed).logits[:, :-1]) == is_causal
        padded = model(F.pad(input_ids, (3, 0)), attention_mask=F.pad(torch.ones(1, 10), (3, 0))).logits
        torch.testing.assert_close(padded[:, 3:], scores, rtol=1e-5, atol=1e-5)


def test_a_tied_head_begins_near_the_uniform_loss() -> None:
    config = MaskedMixerConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, max_position_embeddings=16, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    model = MaskedMixerForCausalLM(config)
    input_ids = torch.randint(500, (4, 16))
    loss = model(input_ids=input_ids, labels=input_ids).loss
    assert abs(loss.item() - math.log(500)) < 2  # with embeddings N(0, 1) it is 60
