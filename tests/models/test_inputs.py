"""What a model is given: wrong shapes and values are a ValueError of one line, the same in `encode` and `forward`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache

from modeling_eem import (
    EEMAutoencoder,
    EEMAutoencoderConfig,
    EEMForCausalLM,
    MaskedMixerForCausalLM,
    MaskedMixerForTokenClassification,
)

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
ONES = torch.ones_like(IDS)
NAMES = ["mixer", "classifier", "eem", "eem, llama", "autoencoder"]


@pytest.fixture(scope="module")
def models(backbone_config: Callable[..., Any], eem_config: Callable[..., Any]) -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    encoder = backbone_config(hidden_size=16, position_alignment="right")
    autoencoder = EEMAutoencoderConfig(encoder_config=encoder, decoder_config=backbone_config(), bottleneck_size=6)
    made = {
        "mixer": MaskedMixerForCausalLM(backbone_config()),
        "classifier": MaskedMixerForTokenClassification(backbone_config(num_labels=1)),
        "eem": EEMForCausalLM(eem_config()),
        "eem, llama": EEMForCausalLM(eem_config("llama", "llama")),
        "autoencoder": EEMAutoencoder(autoencoder),
    }
    return {name: model.eval() for name, model in made.items()}


# Arguments beside IDS, and part of the message.
FOR_ALL: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": IDS[:0]}, "input_ids"),
    ({"input_ids": IDS[:, :0]}, "input_ids"),
    ({"input_ids": IDS[0]}, "input_ids"),
    ({"input_ids": IDS.repeat(1, 5)}, "max_position_embeddings"),
    ({"input_ids": IDS.float()}, "input_ids must be integers"),
    ({"input_ids": IDS.bool()}, "input_ids must be integers"),
    ({"input_ids": IDS + 40}, "outside the vocabulary"),
    ({"input_ids": IDS - 8}, "outside the vocabulary"),
    ({"attention_mask": ONES[:1]}, "attention_mask"),
    ({"attention_mask": ONES[:, :3]}, "attention_mask"),
    ({"attention_mask": ONES[0]}, "attention_mask"),
    ({"labels": IDS[:1]}, "labels"),
    ({"labels": IDS[:, :3]}, "labels"),
    ({"labels": IDS[..., None]}, "labels"),
]
WITH_A_CODE: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": IDS + 40}, "outside the vocabulary"),
    ({"attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])}, "row 1 is all padding"),
    ({"position_ids": torch.arange(4)[None]}, "position_ids"),
    ({"inputs_embeds": torch.randn(2, 4, 32)}, "inputs_embeds"),
]


@pytest.mark.parametrize(("change", "message"), FOR_ALL)
@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_refused(
    name: str, change: dict[str, Any], message: str, models: dict[str, PreTrainedModel]
) -> None:
    with pytest.raises(ValueError, match=message):
        models[name](**{"input_ids": IDS, **change})


@pytest.mark.parametrize(("change", "message"), WITH_A_CODE)
@pytest.mark.parametrize("name", ["eem", "eem, llama", "autoencoder"])
def test_wrong_values_are_refused_where_a_code_is_made(
    name: str, change: dict[str, Any], message: str, models: dict[str, PreTrainedModel]
) -> None:
    with pytest.raises(ValueError, match=message):
        models[name](**{"input_ids": IDS, **change})
    if change.keys() <= {"input_ids", "attention_mask"}:
        with pytest.raises(ValueError, match=message):
            models[name].encode(**{"input_ids": IDS, **change})


@pytest.mark.parametrize(
    "labels", [IDS + 34, IDS - 5, IDS.float(), IDS > 4], ids=["large", "negative", "real", "bool"]
)
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", ["mixer", "eem", "eem, llama", "autoencoder"])
def test_labels_that_are_no_tokens_are_refused(
    name: str, is_training: bool, labels: Tensor, models: dict[str, PreTrainedModel]
) -> None:
    try:
        with pytest.raises(ValueError, match="labels (must be integers|holds (40|-1|-2))"):
            models[name].train(is_training)(IDS, labels=labels)
    finally:
        models[name].eval()


@pytest.mark.parametrize("code", [torch.randn(2, 5), torch.randn(1, 6), torch.randn(6), torch.randn(2, 1, 6)])
@pytest.mark.parametrize("name", ["eem", "eem, llama", "autoencoder"])
def test_codes_of_another_shape_are_refused(name: str, code: Tensor, models: dict[str, PreTrainedModel]) -> None:
    text = {"attention_mask": ONES} if name == "autoencoder" else {"input_ids": IDS}
    with pytest.raises(ValueError, match="(code|attention_mask) must be"):
        models[name](code=code, **text)


@pytest.mark.parametrize("weights", [torch.ones(2, 3), torch.ones(1, 4), torch.ones(2, 4, 1)])
def test_loss_weights_of_another_shape_are_refused(weights: Tensor, models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="loss_weights must be"):
        models["eem"](IDS, labels=IDS, loss_weights=weights)


def test_another_text_for_the_encoder_has_as_many_rows(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="encoder_input_ids"):
        models["eem"](IDS, encoder_input_ids=IDS[:1])
    with pytest.raises(ValueError, match="row 0 is all padding"):
        models["eem"](IDS, encoder_input_ids=IDS, encoder_attention_mask=0 * ONES)


@pytest.mark.parametrize(
    "positions",
    [
        torch.tensor([[-1, 0, 1, 2]]),
        torch.tensor([[0, 1, 2, 16]]),
        torch.arange(4),
        torch.arange(3)[None],
        torch.arange(4).repeat(3, 1),
    ],
)
def test_positions_that_are_not_there_are_refused(positions: Tensor, models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="position_ids must be"):
        models["mixer"](IDS, position_ids=positions)


def test_a_position_of_padding_may_be_anything(models: dict[str, PreTrainedModel]) -> None:
    """As `mask.cumsum(-1) - 1` gives it."""
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        given = models["mixer"](IDS, attention_mask=mask, position_ids=mask.cumsum(-1) - 1).logits
        own = models["mixer"](IDS, attention_mask=mask).logits
    torch.testing.assert_close(given[mask.bool()], own[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["eem", "autoencoder", "classifier"])
def test_what_wrappers_pass_as_none_is_taken(name: str, models: dict[str, PreTrainedModel]) -> None:
    """As peft passes it."""
    expected = models[name](IDS, labels=IDS).loss
    for use_cache in (False, None):
        given = models[name](IDS, labels=IDS, position_ids=None, inputs_embeds=None, use_cache=use_cache)
        assert torch.equal(given.loss, expected)


@pytest.mark.parametrize("name", ["mixer", "eem"])
def test_a_cache_of_other_rows_is_refused(name: str, models: dict[str, PreTrainedModel]) -> None:
    """One new row would be spread over all rows of the cache."""
    with torch.no_grad():
        for rows in (1, 3):
            cache = models[name](IDS, labels=IDS, use_cache=True).past_key_values
            with pytest.raises(ValueError, match="the cache holds 2 rows|code must be"):
                models[name](IDS[:1].repeat(rows, 1)[:, :1], past_key_values=cache)


def test_occlusion_is_asked_for_row_by_row(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="occlude_memory must be"):
        models["eem"](IDS, labels=IDS, occlude_memory=torch.tensor([True]))


@pytest.mark.parametrize("embeds", [torch.randn(2, 4, 31), torch.randn(2, 32), torch.randn(2, 0, 32)])
def test_embeddings_of_another_shape_are_refused(embeds: Tensor, models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="inputs_embeds must be"):
        models["mixer"](inputs_embeds=embeds)


@pytest.mark.parametrize("name", ["mixer", "eem", "eem, llama"])
def test_static_caches_are_refused(name: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[name]
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(IDS, max_new_tokens=4, cache_implementation="static", do_sample=False)
    cache = StaticCache(config=LlamaConfig(hidden_size=32, num_attention_heads=2), max_cache_len=16)
    with pytest.raises(ValueError, match="cache_implementation"):
        model(IDS, past_key_values=cache)


PACKED = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])
SPARSE = torch.tensor([[0, 2, 4, 6]])


@pytest.mark.parametrize("positions", [PACKED, SPARSE], ids=["packed", "sparse"])
def test_a_cache_at_given_positions_is_not_continued(positions: Tensor, models: dict[str, PreTrainedModel]) -> None:
    """Its positions are not kept: a next step would take the ranks, and be another text's."""
    mixer = models["mixer"]
    cache = mixer(IDS, position_ids=positions, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be continued"):
        mixer(IDS[:, :1], past_key_values=cache)
    # A step to a position of one's own is that of the whole row; a second one is refused.
    whole = mixer(IDS, position_ids=torch.tensor([[0, 1, 2, 7]])).logits[:, -1:]
    cache = mixer(IDS[:, :3], use_cache=True).past_key_values
    step = mixer(IDS[:, 3:], position_ids=torch.tensor([[7]]), past_key_values=cache)
    torch.testing.assert_close(step.logits, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be continued"):
        mixer(IDS[:, :1], past_key_values=step.past_key_values)


@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])], ids=["full", "left-padded"])
def test_a_cache_at_the_ranks_is_continued(mask: Tensor | None, models: dict[str, PreTrainedModel]) -> None:
    """Positions given that are what the mask says anyway."""
    mixer = models["mixer"]
    positions = torch.arange(4)[None] if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    whole = mixer(IDS, attention_mask=mask).logits[:, 3:]
    before = None if mask is None else mask[:, :3]
    cache = DynamicCache()
    mixer(IDS[:, :3], attention_mask=before, position_ids=positions[:, :3], past_key_values=cache)
    step = mixer(IDS[:, 3:], attention_mask=mask, position_ids=positions[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(step, whole, rtol=1e-5, atol=1e-5)


# Without a cache, Llama's own mask looks at values: an EEM of Llamas has no more to offer.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "eem, llama"])
def test_meta_tensors_have_shapes(name: str, models: dict[str, PreTrainedModel]) -> None:
    """As of Llama: what a model costs can be asked without its weights."""
    config = models[name].config
    with torch.device("meta"):
        model = type(models[name])(config).eval()
        llama = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=64, vocab_size=40))
    ids, mask = torch.empty(2, 4, dtype=torch.long, device="meta"), torch.ones(2, 4, device="meta", dtype=torch.long)
    expected = llama(ids, labels=ids)
    for given in ({}, {"attention_mask": mask}):
        output = model(ids, labels=ids, **given)
        assert output.loss.shape == expected.loss.shape and output.logits.is_meta
        assert output.logits.shape == (2, 4, 1 if name == "classifier" else 40)
    if name == "mixer":
        cache = model(ids, use_cache=True, position_ids=torch.empty(1, 4, device="meta", dtype=torch.long))
        assert model(ids[:, :1], past_key_values=cache.past_key_values).logits.shape == (2, 1, 40)
