"""What hooks, pruning, tracing, functional transforms and FLOP counters do to Llama, they do to these models."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM, kernels
from modeling_eem.loading import has_plain_head
from modeling_eem.models.mixing_masked_mixer import is_watched

IDS = torch.arange(2, 18).view(2, 8)
KINDS = ["masked_mixer", "eem"]


@pytest.fixture
def make(backbone_config: Callable[..., Any], eem_config: Callable[..., Any]) -> Callable[[str], PreTrainedModel]:
    def model(kind: str) -> PreTrainedModel:
        torch.manual_seed(0)
        config = eem_config() if kind == "eem" else backbone_config(kind)
        return AutoModelForCausalLM.from_config(config).eval()

    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_on_the_head_counts_in_training(kind: str, make: Callable[[str], PreTrainedModel]) -> None:
    """The head's chunks would pass it by: logits of zero are the uniform distribution."""
    model = make(kind).train()
    assert has_plain_head(model)
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: logits * 0)
    assert model(IDS, labels=IDS).loss.item() == pytest.approx(math.log(model.config.vocab_size))
    assert not has_plain_head(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_with_weight_norm_trains(kind: str, make: Callable[[str], PreTrainedModel]) -> None:
    model = make(kind).train()
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    for _ in range(2):
        model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.lm_head.parameters())


def test_a_hook_on_all_modules_sees_every_linear(make: Callable[[str], PreTrainedModel]) -> None:
    model, seen = make("masked_mixer"), []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, inputs, output: seen.append(layer))
    try:
        model(IDS)
    finally:
        handle.remove()
    assert {layer for layer in model.modules() if type(layer) is nn.Linear} <= set(seen)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_every_hook_is_noticed_and_its_end_too(kind: str) -> None:
    layer, everywhere = nn.Linear(2, 2), nn.modules.module
    for register in (getattr(layer, f"register_{kind}_hook"), getattr(everywhere, f"register_module_{kind}_hook")):
        assert not is_watched(layer)
        handle = register(lambda *given: None)
        assert is_watched(layer)
        handle.remove()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert is_watched(layer)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_into_the_state_dict_reaches_the_model(
    kind: str, make: Callable[[str], PreTrainedModel]
) -> None:
    """As averages of weights and some callbacks do."""
    model = make(kind)
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert not any(parameter.any() for parameter in model.parameters())


def test_mixing_weights_can_be_pruned_and_parametrized(make: Callable[[str], PreTrainedModel]) -> None:
    model = make("masked_mixer")
    before = model(IDS).logits
    mixing = model.model.layers[0].mixing
    prune.identity(mixing, "weight")
    assert torch.equal(model(IDS).logits, before)
    assert "model.layers.0.mixing.weight_mask" in model.state_dict()
    prune.remove(mixing, "weight")
    parametrize.register_parametrization(mixing, "weight", nn.Identity())
    assert torch.equal(model(IDS).logits, before)
    assert "model.layers.0.mixing.parametrizations.weight.original" in model.state_dict()


def test_a_trace_of_the_model(make: Callable[[str], PreTrainedModel]) -> None:
    model = make("masked_mixer").requires_grad_(False)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids_BT: Tensor) -> Tensor:
            return self.model(ids_BT, use_cache=False).logits

    traced = torch.jit.trace(Logits(), IDS)
    torch.testing.assert_close(traced(IDS + 1), model(IDS + 1).logits)


def test_functional_transforms_give_the_gradients_of_backward(make: Callable[[str], PreTrainedModel]) -> None:
    model = make("masked_mixer")
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (IDS,), {"labels": IDS, "use_cache": False}).loss

    model(IDS, labels=IDS).loss.backward()
    gradients = torch.func.grad(loss)(weights)
    for name, parameter in weights.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
    along = {name: gradient.detach() for name, gradient in gradients.items()}
    _, slope = torch.func.jvp(loss, (weights,), (along,))
    assert slope.item() == pytest.approx(sum(g.square().sum().item() for g in along.values()), rel=1e-3)


def test_pytorchs_flop_counter_sees_the_kernels() -> None:
    config = MaskedMixerConfig(vocab_size=512, hidden_size=256, num_hidden_layers=1, max_position_embeddings=8)
    model = MaskedMixerForCausalLM(config).eval()
    with FlopCounterMode(display=False) as ours:
        model(IDS)
    with kernels.plain(), FlopCounterMode(display=False) as plain:
        model(IDS)
    assert ours.get_total_flops() == plain.get_total_flops() > 0


@pytest.mark.parametrize("intro", ["token", "embedding", "combination"])
@pytest.mark.parametrize("backbone", ["masked_mixer", "llama"])
@pytest.mark.parametrize("occluded", [True, torch.tensor([True, False])], ids=["all", "one"])
def test_a_cache_goes_on_occluded_as_it_was_begun(
    intro: str, backbone: str, occluded: bool | Tensor, eem_config: Callable[..., Any]
) -> None:
    model = EEMForCausalLM(eem_config(backbone, backbone, intro)).eval()
    whole = model(IDS, encoder_input_ids=IDS, occlude_memory=occluded, use_cache=False).logits
    reads = {"encoder_input_ids": IDS, "occlude_memory": occluded, "use_cache": True}
    for again in ({}, {"occlude_memory": occluded}):
        cache = model(IDS[:, :5], **reads).past_key_values
        rest = model(IDS[:, 5:], past_key_values=cache, attention_mask=torch.ones_like(IDS), **again).logits
        torch.testing.assert_close(rest, whole[:, 5:], rtol=1e-4, atol=1e-5)
    cache = model(IDS[:, :5], encoder_input_ids=IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="another occlude_memory"):
        model(IDS[:, 5:], past_key_values=cache, attention_mask=torch.ones_like(IDS), occlude_memory=occluded)


@pytest.mark.parametrize("wrong", [None, 1, [True, False], torch.tensor([1, 0])], ids=str)
def test_occlusion_is_boolean(wrong: Any, make: Callable[[str], PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="True, False or a boolean tensor"):
        make("eem")(IDS, labels=IDS, occlude_memory=wrong)


def test_changes_of_a_loaded_config_are_checked(make: Callable[[str], PreTrainedModel], tmp_path: Any) -> None:
    for kind, change in (("masked_mixer", "position_alignment"), ("eem", "noise_placement")):
        make(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(ValueError, match=f"{change} must be"):
            AutoModelForCausalLM.from_pretrained(tmp_path / kind, **{change: "rihgt"})


def test_a_backbones_config_that_names_a_dtype(eem_config: Callable[..., Any]) -> None:
    """As a config has it that was loaded: the whole is made in one precision."""
    config: EEMConfig = eem_config("llama", "llama", "token")
    assert isinstance(config.encoder_config, LlamaConfig)
    config.encoder_config.dtype = config.decoder_config.dtype = torch.bfloat16
    model = EEMForCausalLM(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(IDS, labels=IDS).loss.isfinite()


def test_a_draft_of_the_first_layers(make: Callable[[str], PreTrainedModel]) -> None:
    model = make("masked_mixer")
    num_layers = model.config.num_hidden_layers
    options = {"max_new_tokens": 4, "do_sample": False}
    plain = model.generate(IDS[:1], **options)
    assert torch.equal(model.generate(IDS[:1], assistant_early_exit=1, **options), plain)
    assert model.config.num_hidden_layers == num_layers


def test_a_cache_of_inference_mode_goes_on_outside_it(make: Callable[[str], PreTrainedModel]) -> None:
    model = make("masked_mixer")
    with torch.inference_mode():
        cache = model(IDS[:, :5], use_cache=True).past_key_values
    with torch.no_grad():
        rest = model(IDS[:, 5:], past_key_values=cache).logits
        torch.testing.assert_close(rest, model(IDS).logits[:, 5:], rtol=1e-4, atol=1e-5)


def test_prefix_tuning_is_refused(make: Callable[[str], PreTrainedModel]) -> None:
    peft = pytest.importorskip("peft")
    sizes = {"num_virtual_tokens": 3, "num_layers": 2, "token_dim": 32, "num_attention_heads": 2}
    model = peft.get_peft_model(make("masked_mixer"), peft.PrefixTuningConfig(task_type="CAUSAL_LM", **sizes))
    with pytest.raises(ValueError, match="an attention's keys and values"):
        model(input_ids=IDS, labels=IDS)


def test_checkpointing_does_not_go_on_from_a_cache(make: Callable[[str], PreTrainedModel]) -> None:
    model = make("masked_mixer")
    cache = model(IDS[:, :5], use_cache=True).past_key_values
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing drops the cache"):
        model.train()(IDS[:, 5:], past_key_values=cache, labels=IDS[:, 5:])
