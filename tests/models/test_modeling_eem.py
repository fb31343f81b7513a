"""Entropy estimation models: the definition, padding, causality, codes, noise, refusals and sizes."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_eem import EEMConfig, EEMForCausalLM, EEMModel

PAIRS = [
    ("masked_mixer", "masked_mixer"),
    ("llama", "llama"),
    ("masked_mixer", "llama"),
    ("llama", "masked_mixer"),
    ("gpt_neox", "qwen2"),
    ("gpt2", "gpt2"),
]
INTRODUCTIONS = ["token", "embedding", "combination"]
EVERY = {
    f"{encoder}-{decoder}, {introduction}, {'bottleneck' if size else 'whole'}": (encoder, decoder, introduction, size)
    for (encoder, decoder), introduction, size in itertools.product(PAIRS, INTRODUCTIONS, [6, None])
}


@pytest.fixture(params=EVERY.values(), ids=EVERY)
def eem(request: pytest.FixtureRequest, eem_config: Callable[..., Any]) -> EEMForCausalLM:
    encoder, decoder, introduction, size = request.param
    return EEMForCausalLM(eem_config(encoder, decoder, introduction, bottleneck_size=size)).eval()


@pytest.fixture(params=INTRODUCTIONS)
def mixer_eem(request: pytest.FixtureRequest, eem_config: Callable[..., Any]) -> EEMForCausalLM:
    return EEMForCausalLM(eem_config(memory_introduction=request.param)).eval()


def _ids(*shape: int) -> Tensor:
    return torch.randint(2, 40, shape)


def _other(input_ids: Tensor) -> Tensor:
    """Another token at every place."""
    return (input_ids - 1) % 38 + 2


# What is computed


def test_code_and_logits_follow_the_definition(eem: EEMForCausalLM) -> None:
    """`z = W_down e + c`; memory `W_proj W_up z` before or on the token embeddings, or z itself beside them."""
    model, config = eem.model, eem.config
    input_ids = _ids(3, 12)
    encoder = model.encoder
    e = encoder.backbone(inputs_embeds=encoder.embed_tokens(input_ids), use_cache=False).last_hidden_state[:, -1]
    down, up = encoder.bottleneck.down, encoder.bottleneck.up
    z = e if config.bottleneck_size is None else e @ down.weight.T + down.bias
    text = model.embed_tokens(input_ids)
    if config.memory_introduction == "embedding":
        assert up is None and model.memory_proj is None
        inputs = torch.cat([z[:, None].expand(-1, 12, -1), text], dim=-1)
    else:
        vector = z if config.bottleneck_size is None else z @ up.weight.T + up.bias
        memory = (vector @ model.memory_proj.weight.T + model.memory_proj.bias)[:, None]
        inputs = torch.cat([memory, text], dim=1) if config.memory_introduction == "token" else text + memory
    hidden = model.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -12:]
    output = eem(input_ids, output_hidden_states=True)
    torch.testing.assert_close(output.code, z)
    torch.testing.assert_close(output.logits, hidden @ eem.lm_head.weight.T)
    assert len(output.hidden_states) == 3 and all(states.shape == (3, 12, 32) for states in output.hidden_states)


def test_every_parameter_gets_a_gradient(eem: EEMForCausalLM) -> None:
    """A tensor without one would break distributed training with find_unused_parameters=False."""
    input_ids = _ids(4, 16)
    eem.train()(input_ids, labels=input_ids).loss.backward()
    assert [name for name, p in eem.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in eem.parameters())


@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
def test_padding_is_inert(eem: EEMForCausalLM, side: str, pad_rows: Callable, assert_same_logits: Callable) -> None:
    """A text has the same logits and code alone, and padded in a batch of 1 or 5; with its memory and without."""
    texts = [_ids(length) for length in (7, 1, 14, 12, 3)]
    for rows in (texts, texts[:1]):
        input_ids, mask = pad_rows(rows, side, width=14)
        for occluded in (False, True):
            batch = eem(input_ids, attention_mask=mask, occlude_memory=occluded)
            for row, (text, row_mask) in enumerate(zip(rows, mask)):
                alone = eem(text[None], occlude_memory=occluded)
                assert_same_logits(batch.logits[row, row_mask.bool()], alone.logits[0])
                if not occluded:
                    assert_same_logits(batch.code[row], alone.code[0])


def test_no_logit_sees_a_later_token_with_a_fixed_memory(eem: EEMForCausalLM) -> None:
    input_ids = _ids(2, 12)
    code = torch.randn(2, eem.config.code_size)
    logits = eem(input_ids, code=code).logits
    for t in range(12):
        changed = input_ids.clone()
        changed[:, t:] = _other(changed[:, t:])
        after = eem(changed, code=code).logits
        assert torch.equal(after[:, :t], logits[:, :t])
        assert (after[:, t:] != logits[:, t:]).any(-1).all()


def test_the_code_is_seen_at_every_position(eem: EEMForCausalLM) -> None:
    input_ids = _ids(2, 12)
    code = torch.randn(2, eem.config.code_size)
    logits, others = (eem(input_ids, code=z).logits for z in (code, code + 1))
    assert (logits - others).abs().amax(-1).min() > 1e-4
    only_first = code + torch.tensor([[0.0], [1.0]])
    assert torch.equal(eem(input_ids, code=only_first).logits[0], logits[0]), "a code reached another row"


def test_the_encoder_reads_the_scored_text_unless_it_is_told_otherwise(eem: EEMForCausalLM) -> None:
    """All of it, the last token too; or `encoder_input_ids`, of any length and padding; or nothing, given a code."""
    input_ids = _ids(2, 12)
    changed = input_ids.clone()
    changed[:, -1] = _other(changed[:, -1])
    assert (eem.encode(input_ids) != eem.encode(changed)).any(-1).all()
    plain = eem(input_ids)
    torch.testing.assert_close(plain.code, eem.encode(input_ids))
    for reads in ({"code": plain.code}, {"encoder_input_ids": input_ids}):
        torch.testing.assert_close(eem(input_ids, **reads).logits, plain.logits)
    context = F.pad(_ids(2, 5), (3, 0))
    mask = (context != 0).long()
    output = eem(input_ids, encoder_input_ids=context, encoder_attention_mask=mask)
    torch.testing.assert_close(output.code, eem.encode(context[:, 3:]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits, eem(input_ids, code=output.code).logits)


def test_an_occluded_memory_leaves_nothing_of_the_code(eem: EEMForCausalLM) -> None:
    input_ids = _ids(2, 12)
    occluded = eem(input_ids, occlude_memory=True)
    assert occluded.code is None
    for reads in ({"code": torch.randn(2, eem.config.code_size)}, {"encoder_input_ids": _other(input_ids)}):
        assert torch.equal(eem(input_ids, occlude_memory=True, **reads).logits, occluded.logits)
    assert (eem(input_ids).logits - occluded.logits).abs().amax(-1).min() > 1e-4
    changed = input_ids.clone()
    changed[:, -1] = _other(changed[:, -1])
    assert torch.equal(eem(changed, occlude_memory=True).logits[:, :-1], occluded.logits[:, :-1])


def test_an_occluded_memory_is_zero(eem: EEMForCausalLM) -> None:
    """Where the memory enters; a position of attention is masked besides (below)."""
    introduction, width = eem.config.memory_introduction, eem.config.code_size
    if introduction == "token" and eem.config.decoder_config.model_type != "masked_mixer":
        return
    input_ids = _ids(2, 12)
    text = eem.model.embed_tokens(input_ids)
    inputs = text
    if introduction == "token":
        inputs = torch.cat([torch.zeros(2, 1, 32), text], dim=1)
    if introduction == "embedding":
        inputs = torch.cat([torch.zeros(2, 12, width), text], dim=-1)
    expected = eem.model.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -12:]
    torch.testing.assert_close(eem.model(input_ids, occlude_memory=True).last_hidden_state, expected)


@pytest.mark.parametrize("decoder", ["llama", "gpt_neox", "qwen2"])
def test_an_occluded_position_is_masked_where_there_is_attention(decoder: str, eem_config: Callable[..., Any]) -> None:
    """Rotary positions are relative, so the decoder without its memory's position is the decoder of the text alone."""
    eem = EEMForCausalLM(eem_config("llama", decoder)).eval()
    input_ids = _ids(2, 12)
    alone = eem.model.decoder(inputs_embeds=eem.model.embed_tokens(input_ids)).last_hidden_state
    occluded = eem.model(input_ids, occlude_memory=True).last_hidden_state
    torch.testing.assert_close(occluded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, changes", [("masked_mixer", {"position_alignment": "right"}), ("llama", {})])
def test_a_causal_encoder_and_a_global_one(
    kind: str, changes: dict[str, Any], eem_config: Callable[..., Any], backbone_config: Callable[..., Any]
) -> None:
    """In a global encoder alone do earlier outputs know the last token; the code is read from the last one of both."""
    input_ids = torch.arange(2, 14)[None]
    changed = torch.cat([input_ids[:, :-1], _other(input_ids[:, -1:])], dim=1)
    codes = []
    for is_causal in (True, False):
        torch.manual_seed(0)
        config = backbone_config(kind, hidden_size=16, is_causal=is_causal, **changes)
        eem = EEMForCausalLM(eem_config(encoder_config=config)).eval()
        encoder = eem.model.encoder
        before, after = (
            encoder.backbone(inputs_embeds=encoder.embed_tokens(ids), use_cache=False).last_hidden_state
            for ids in (input_ids, changed)
        )
        assert torch.equal(before[:, :-1], after[:, :-1]) == is_causal
        codes.append(eem.encode(input_ids))
        torch.testing.assert_close(codes[-1], encoder.bottleneck.down(before[:, -1]))
    assert (codes[0] != codes[1]).any()


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("llama", {"attn_implementation": "eager"}),
        ("masked_mixer", {}),
        ("masked_mixer", {"num_mixing_heads": 2}),
        ("masked_mixer", {"mixing_kernel_size": 3}),
        ("masked_mixer", {"mixing_kernel_size": 8, "num_mixing_heads": 2}),
    ],
)
@pytest.mark.parametrize("introduction", INTRODUCTIONS)
def test_gradients_of_the_code_can_be_batched(
    introduction: str, decoder: str, options: dict, eem_config: Callable[..., Any], backbone_config: Callable[..., Any]
) -> None:
    """Gradient x input asks for one vector-Jacobian product an output: all in one batch, as in a loop."""
    slots = int(introduction == "token")
    config = backbone_config(decoder, max_position_embeddings=16 + slots, **options)
    eem = EEMForCausalLM(eem_config(memory_introduction=introduction, decoder_config=config)).eval()
    code = torch.randn(1, 6, requires_grad=True)
    norms = eem(_ids(1, 5), code=code).logits.abs().sum(-1)[0]
    loop = torch.cat([torch.autograd.grad(norm, code, retain_graph=True)[0] for norm in norms])
    batched = torch.autograd.grad(norms, code, torch.eye(5), is_grads_batched=True)[0]
    torch.testing.assert_close(batched.squeeze(1), loop, rtol=1e-4, atol=1e-5)


# Refusals and the warning


def test_positions_and_embeddings_are_refused(mixer_eem: EEMForCausalLM) -> None:
    input_ids = _ids(1, 6)
    with pytest.raises(ValueError, match="no position_ids"):
        mixer_eem(input_ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    with pytest.raises(ValueError, match="no inputs_embeds"):
        mixer_eem(input_ids, inputs_embeds=torch.randn(1, 6, 32))
    mixer_eem(input_ids, position_ids=None, inputs_embeds=None)


@pytest.mark.parametrize("decoder", ["masked_mixer", "llama"])
@pytest.mark.parametrize("introduction", INTRODUCTIONS)
def test_text_longer_than_the_context_is_refused(
    introduction: str, decoder: str, eem_config: Callable[..., Any]
) -> None:
    """16 tokens fit in every mode, 17 in none: to encode, to decode, to read beside, and through a cache."""
    eem = EEMForCausalLM(eem_config("llama", decoder, introduction)).eval()
    text, code = _ids(1, 16), torch.randn(1, 6)
    cache = eem(text, code=code).past_key_values
    for call in (
        lambda: eem(_ids(1, 17)),
        lambda: eem(_ids(1, 17), code=code),
        lambda: eem.encode(_ids(1, 17)),
        lambda: eem(text, encoder_input_ids=_ids(1, 17)),
        lambda: eem(_ids(1, 1), past_key_values=cache),
    ):
        with pytest.raises(ValueError, match="17 tokens.*max_position_embeddings=16"):
            call()


def test_the_oracle_is_warned_about_once(mixer_eem: EEMForCausalLM) -> None:
    """Where the encoder reads what nothing says is scored; not with labels, a code, a cache or another text."""
    input_ids = _ids(1, 6)
    logger = logging.get_logger("modeling_eem.models.modeling_eem")
    logging.warning_once.cache_clear()
    with CaptureLogger(logger) as capture:
        output = mixer_eem(input_ids, labels=input_ids)
        mixer_eem(input_ids, code=output.code)
        mixer_eem(input_ids, encoder_input_ids=input_ids)
        mixer_eem(input_ids, occlude_memory=True)
        mixer_eem(input_ids, past_key_values=output.past_key_values)
    assert capture.out == ""
    with CaptureLogger(logger) as capture:
        for _ in range(3):
            mixer_eem(input_ids)
    assert capture.out.count("encoder reads input_ids, the very tokens") == 1


def test_a_cache_of_unknown_code_is_refused(eem_config: Callable[..., Any]) -> None:
    """A decoder's own cache, filled elsewhere: the other introductions need the code at every step."""
    for introduction in ("embedding", "combination"):
        eem = EEMForCausalLM(eem_config("llama", "llama", introduction)).eval()
        cache = eem.model.decoder(inputs_embeds=torch.randn(1, 4, 32), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="pass the code"):
            eem(_ids(1, 1), past_key_values=cache)
        assert eem(_ids(1, 1), past_key_values=cache, code=torch.randn(1, 6)).logits.shape == (1, 1, 40)


# Sizes


def _llama(width: int, layers: int, length: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=8000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=length,
    )


@pytest.mark.parametrize(
    "encoder_width, width, layers, millions", [(128, 256, 8, 15.66), (256, 512, 16, 94.32), (512, 1024, 24, 524.46)]
)
def test_published_transformer_sizes(encoder_width: int, width: int, layers: int, millions: float) -> None:
    config = EEMConfig(
        encoder_config=_llama(encoder_width, layers, 1024),
        decoder_config=_llama(width, layers, 1025),
        bottleneck_size=64,
    )
    with torch.device("meta"):
        assert round(EEMForCausalLM(config).num_parameters() / 1e6, 2) == millions


def test_the_published_causal_baseline() -> None:
    with torch.device("meta"):
        assert round(LlamaForCausalLM(_llama(512, 16, 1024)).num_parameters() / 1e6, 1) == 75.3


@pytest.mark.parametrize("introduction", INTRODUCTIONS)
@pytest.mark.parametrize(
    "encoder_width, width, layers, n, size",
    [(256, 1024, 16, 1024, 64), (1024, 1024, 4, 512, None), (1024, 1024, 8, 512, None)],
)
def test_published_mixer_sizes_follow_the_formulas(
    introduction: str, encoder_width: int, width: int, layers: int, n: int, size: int | None
) -> None:
    """Flat blocks `8d² + 9d + n² + n`, the bottleneck, the projection, two tables and a head."""
    if introduction == "embedding" and size is None:
        width *= 2  # the code takes 1024 of it
    decoder_n = n + int(introduction == "token")
    config = EEMConfig(
        encoder_config={"hidden_size": encoder_width, "num_hidden_layers": layers, "max_position_embeddings": n},
        decoder_config={"hidden_size": width, "num_hidden_layers": layers, "max_position_embeddings": decoder_n},
        bottleneck_size=size,
        memory_introduction=introduction,
    )
    expected = sum(layers * (8 * d**2 + 9 * d + m**2 + m) for d, m in ((encoder_width, n), (width, decoder_n)))
    text_width = width
    if size is not None:
        expected += encoder_width * size + size
    if introduction == "embedding":
        text_width -= config.code_size
    else:
        expected += encoder_width * width + width + (0 if size is None else size * encoder_width + encoder_width)
    with torch.device("meta"):
        model = EEMForCausalLM(config)
    assert model.num_parameters() == expected + 8000 * (encoder_width + text_width + width)


def test_weights_begin_as_each_parts_rule_says(
    eem_config: Callable[..., Any], backbone_config: Callable[..., Any]
) -> None:
    """Both embedding tables N(0, 1), projections PyTorch's defaults, backbones their own (here 0.02)."""
    config = eem_config(
        encoder_config=backbone_config("llama", hidden_size=64, vocab_size=1000, initializer_range=0.02),
        decoder_config=backbone_config(
            "llama", hidden_size=64, vocab_size=1000, initializer_range=0.02, max_position_embeddings=17
        ),
        bottleneck_size=32,
    )
    model = EEMModel(config)
    for table in (model.embed_tokens, model.encoder.embed_tokens):
        assert table.weight.std().item() == pytest.approx(1, abs=0.02)
    for linear in (model.memory_proj, model.encoder.bottleneck.down, model.encoder.bottleneck.up):
        bound = linear.in_features**-0.5
        for values in (linear.weight, linear.bias):
            assert 0.8 * bound < values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)
    for backbone in (model.encoder.backbone, model.decoder):
        assert backbone.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
