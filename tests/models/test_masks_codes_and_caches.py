"""What an EEM reads: any mask of zeros and others, padding on either side, one code, and a cache that knows both."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, EEMForCausalLM
from modeling_eem.entropy import CausalEntropy
from modeling_eem.loading import has_plain_head

IDS = torch.arange(2, 18).view(2, 8)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
OTHER_MASKS = {
    "bool": MASK.bool(),
    "twice": 2 * MASK,
    "bytes": (255 * MASK).byte(),
    "halves": 0.5 * MASK,
    "documents": MASK * torch.tensor([2] * 4 + [1] * 4),
}


@pytest.fixture
def eem(eem_config: Callable[..., Any]) -> Callable[..., EEMForCausalLM]:
    def make(decoder: str = "llama", introduction: str = "token", **changes: Any) -> EEMForCausalLM:
        torch.manual_seed(0)
        return EEMForCausalLM(eem_config("masked_mixer", decoder, introduction, **changes)).eval()

    return make


@pytest.mark.parametrize("name", OTHER_MASKS)
@pytest.mark.parametrize("decoder", ["llama", "masked_mixer"])
def test_what_is_not_zero_is_text(decoder: str, name: str, eem: Callable[..., EEMForCausalLM]) -> None:
    model = eem(decoder)
    expected, actual = (model(IDS, attention_mask=mask).logits[MASK.bool()] for mask in (MASK, OTHER_MASKS[name]))
    torch.testing.assert_close(actual, expected)


def test_an_autoencoder_takes_any_mask_too(backbone_config: Callable[..., Any]) -> None:
    encoder = backbone_config(hidden_size=16, position_alignment="right")
    config = EEMAutoencoderConfig(encoder_config=encoder, decoder_config=backbone_config())
    model = EEMAutoencoder(config).eval()
    expected = model(IDS, attention_mask=MASK).logits[MASK.bool()]
    torch.testing.assert_close(model(IDS, attention_mask=OTHER_MASKS["documents"]).logits[MASK.bool()], expected)


def test_left_padding_must_not_push_the_memory_out_of_a_window(eem_config: Callable[..., Any]) -> None:
    """The memory stands before the padding, and a sliding window counts places, not tokens."""
    for introduction, context in (("token", 17), ("combination", 16)):
        decoder = AutoConfig.for_model(
            "mistral",
            vocab_size=eem_config().vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=context,
            sliding_window=6,
        )
        model = EEMForCausalLM(eem_config(decoder_config=decoder, memory_introduction=introduction)).eval()
        code = torch.randn(2, 6)
        alone = model(IDS[:1, 2:], code=code[:1]).logits
        if introduction == "token":
            with pytest.raises(ValueError, match="pad on the right"):
                model(IDS, attention_mask=MASK, code=code)
        else:
            torch.testing.assert_close(model(IDS, attention_mask=MASK, code=code).logits[:1, 2:], alone)
        right = model(IDS.roll(-2, 1), attention_mask=MASK.roll(-2, 1), code=code).logits[:1, :6]
        torch.testing.assert_close(right, alone)


def test_the_pad_token_of_a_call_hides_padding_from_the_encoder(eem: Callable[..., EEMForCausalLM]) -> None:
    model = eem()
    model.generation_config.pad_token_id = None
    prompt = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)

    def code(**changes: Any) -> Tensor:
        options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
        return model.generate(prompt, **options, **changes).past_key_values.code

    expected = code(attention_mask=(prompt != 0).long())
    torch.testing.assert_close(code(pad_token_id=0), expected)
    torch.testing.assert_close(code(generation_config=GenerationConfig(pad_token_id=0)), expected)
    assert not torch.allclose(code(), expected)


def test_a_mask_of_nothing_is_refused(eem: Callable[..., EEMForCausalLM]) -> None:
    model = eem()
    for given in ({}, {"code": torch.randn(2, 6)}):
        for call in (model, model.generate):
            with pytest.raises(ValueError, match="pass these too"):
                call(IDS, encoder_attention_mask=MASK, **given)


def test_guidance_is_refused(eem: Callable[..., EEMForCausalLM]) -> None:
    """Its pass without the prompt would encode the very text that was generated."""
    with pytest.raises(ValueError, match="guidance_scale"):
        eem().generate(IDS, guidance_scale=3.0, max_new_tokens=2)


@pytest.mark.parametrize("introduction", ["token", "embedding", "combination"])
def test_a_cache_goes_on_with_its_own_code(introduction: str, eem: Callable[..., EEMForCausalLM]) -> None:
    model, (code, other) = eem(introduction=introduction), torch.randn(2, 2, 6)
    cache = model(IDS[:, :5], code=code, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="another code"):
        model(IDS[:, 5:], past_key_values=cache, code=other)
    with pytest.raises(ValueError, match="leave encoder_input_ids out"):
        model(IDS[:, 5:], past_key_values=cache, encoder_input_ids=IDS)
    rest = model(IDS[:, 5:], past_key_values=cache, code=code)
    assert torch.equal(rest.code, code)
    torch.testing.assert_close(rest.logits, model(IDS, code=code).logits[:, 5:], rtol=1e-4, atol=1e-5)


def test_a_callers_own_cache_may_be_occluded(eem: Callable[..., EEMForCausalLM]) -> None:
    model, code, cache = eem(), torch.randn(2, 6), DynamicCache()
    reads = {"code": code, "occlude_memory": True}
    model(IDS[:, :5], past_key_values=cache, **reads)
    rest = model(IDS[:, 5:], past_key_values=cache, **reads).logits
    torch.testing.assert_close(rest, model(IDS, **reads).logits[:, 5:], rtol=1e-4, atol=1e-5)


def test_a_prompt_in_chunks_that_begin_with_padding(eem: Callable[..., EEMForCausalLM]) -> None:
    model = eem()
    mask = torch.tensor([[0] * 4 + [1] * 4, [1] * 8])
    options = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(IDS, prefill_chunk_size=4, **options), model.generate(IDS, **options))


def test_adapters_of_both_halves_get_gradients_under_reentrant_checkpoints(eem: Callable[..., EEMForCausalLM]) -> None:
    peft = pytest.importorskip("peft")
    model = eem()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    config = peft.LoraConfig(target_modules=["up_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).train()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    assert all(weight.grad is not None for weight in adapted.parameters() if weight.requires_grad)
    model = eem()
    model.enable_input_require_grads()
    assert model.model.encoder.embed_tokens._forward_hooks
    model.disable_input_require_grads()
    assert not model.model.encoder.embed_tokens._forward_hooks


def test_parts_keep_their_own_mode(eem: Callable[..., EEMForCausalLM], backbone_config: Callable[..., Any]) -> None:
    model = eem(noise_scale=0.5).train()
    model.model.encoder.eval()
    assert has_plain_head(model)
    assert model.training and not model.model.encoder.training
    causal = AutoModelForCausalLM.from_config(backbone_config()).train()
    causal.model.layers[0].eval()
    CausalEntropy(causal)
    assert causal.training and not causal.model.layers[0].training


def test_a_cached_loop_trains_frozen_models_mixing(backbone_config: Callable[..., Any]) -> None:
    """What autograd holds for W's gradient must not be written over by the next token."""
    model = AutoModelForCausalLM.from_config(backbone_config()).eval().requires_grad_(False)
    weight = model.model.layers[0].mixing.weight.requires_grad_(True)
    cache, total = None, torch.zeros(())
    for position in range(3):
        outputs = model(IDS[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache, total = outputs.past_key_values, total + outputs.logits.square().sum()
    (step_by_step,) = torch.autograd.grad(total, weight)
    (at_once,) = torch.autograd.grad(model(IDS[:, :3]).logits.square().sum(), weight)
    torch.testing.assert_close(step_by_step, at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["llama", "masked_mixer"])
def test_exports_of_any_batch(decoder: str, eem: Callable[..., EEMForCausalLM]) -> None:
    class Logits(nn.Module):
        def __init__(self, model: EEMForCausalLM):
            super().__init__()
            self.model = model

        def forward(self, ids_BT: Tensor) -> Tensor:
            return self.model(ids_BT, use_cache=False).logits

    model = Logits(eem(decoder))
    program = export(model, (IDS,), dynamic_shapes={"ids_BT": {0: Dim("batch", max=8)}}, strict=False)
    rows = torch.cat([IDS, IDS.flip(1)])
    torch.testing.assert_close(program.module()(rows), model(rows), rtol=1e-4, atol=1e-5)


def test_a_backbone_without_a_cache_is_refused(eem_config: Callable[..., Any]) -> None:
    decoder = AutoConfig.for_model("openai-gpt", vocab_size=eem_config().vocab_size, n_positions=17, n_embd=36)
    with pytest.raises(ValueError, match="does not take past_key_values"):
        EEMForCausalLM(eem_config(decoder_config=decoder))


def test_a_backbone_of_ones_own(eem_config: Callable[..., Any]) -> None:
    """Registered as docs/extend.md says; without a cache it runs with use_cache=False."""

    class OwnConfig(PreTrainedConfig):
        model_type = "own_gru"
        vocab_size: int = eem_config().vocab_size
        hidden_size: int = 32
        num_hidden_layers: int = 1
        max_position_embeddings: int = 17

    class OwnModel(PreTrainedModel):
        config_class = OwnConfig

        def __init__(self, config: OwnConfig):
            super().__init__(config)
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
            self.post_init()

        def forward(
            self,
            inputs_embeds: Tensor,
            attention_mask: Tensor | None = None,
            position_ids: Tensor | None = None,
            past_key_values: Any = None,
            **kwargs: Any,
        ) -> BaseModelOutputWithPast:
            return BaseModelOutputWithPast(last_hidden_state=self.gru(inputs_embeds)[0])

    class OwnForCausalLM(OwnModel):
        pass

    AutoConfig.register("own_gru", OwnConfig, exist_ok=True)
    AutoModel.register(OwnConfig, OwnModel, exist_ok=True)
    config = eem_config(decoder_config=OwnConfig())
    with pytest.raises(ValueError, match="not a causal language model's backbone"):
        EEMForCausalLM(config)
    AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM, exist_ok=True)
    model = EEMForCausalLM(config).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_config_of_the_call_adds_to_the_models_own(eem: Callable[..., EEMForCausalLM]) -> None:
    """As transformers takes them: a config without a pad token leaves the model's."""
    model = eem()
    model.generation_config.pad_token_id = 0
    prompt = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    settings = GenerationConfig(max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    code = model.generate(prompt, generation_config=settings).past_key_values.code
    torch.testing.assert_close(code, model.encode(prompt, (prompt != 0).long()))
    with pytest.raises(ValueError, match="guidance_scale"):
        model.generate(prompt, generation_config=GenerationConfig(guidance_scale=2.0))


@pytest.mark.parametrize("introduction", ["token", "embedding", "combination"])
@pytest.mark.parametrize("decoder", ["llama", "masked_mixer"])
def test_a_cache_without_text_begins_anew(decoder: str, introduction: str, eem: Callable[..., EEMForCausalLM]) -> None:
    """Cropped to nothing, it holds no memory either: not the earlier code's, and not one more."""
    model = eem(decoder, introduction)
    with torch.no_grad():
        code, other = model.encode(IDS), model.encode(IDS.flip(0))
        cache = model(IDS, code=code, use_cache=True).past_key_values
        cache.crop(-IDS.shape[1])
        for mask in (None, torch.ones_like(IDS)):
            logits = model(IDS, code=other, attention_mask=mask, past_key_values=cache).logits
            torch.testing.assert_close(logits, model(IDS, code=other, use_cache=False).logits, rtol=1e-4, atol=1e-4)
            cache.crop(-IDS.shape[1])
