"""What adapters, transforms, tracers, quantizers and one's own heads do to Llama, they do to these models."""

from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.autograd.forward_ad as forward_ad
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from modeling_eem import EEMForCausalLM
from modeling_eem.kernels import plain
from modeling_eem.models.loss_eem import is_plain_linear
from modeling_eem.models.quantization_eem import CODE_FORMATS

IDS = torch.tensor([[1, 5, 9, 7, 3, 8, 6, 2], [1, 4, 4, 30, 21, 12, 11, 9]])


@pytest.fixture
def eem(eem_config: Callable[..., Any]) -> Callable[..., EEMForCausalLM]:
    def make(**changes: Any) -> EEMForCausalLM:
        torch.manual_seed(0)
        return EEMForCausalLM(eem_config(**changes)).eval()

    return make


@pytest.fixture
def mixer(backbone_config: Callable[..., Any]) -> Callable[..., PreTrainedModel]:
    def make(**changes: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(backbone_config(**changes)).eval()

    return make


@pytest.mark.parametrize("saved", ["bottleneck", "encoder"])
def test_a_copy_that_peft_trains_follows_the_models_config(saved: str, eem: Callable[..., EEMForCausalLM]) -> None:
    adapters = LoraConfig(task_type="CAUSAL_LM", target_modules=["memory_proj"], modules_to_save=[saved])
    model = get_peft_model(eem(), adapters).merge_and_unload().eval()
    exact = model.encode(IDS)
    model.config.code_dtype = "int2"
    torch.testing.assert_close(model.encode(IDS), CODE_FORMATS["int2"].round(exact))
    model.config.noise_scale = 100.0
    assert (model.train().encode(IDS) - exact).abs().max() > 1


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_forward_derivatives_with_kernels(
    is_packed: bool, with_gradients: bool, mixer: Callable[..., PreTrainedModel]
) -> None:
    model = mixer(hidden_size=256)  # a width that the kernels take
    embeds, tangent = torch.randn(2, 2, 8, 256)
    given = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])} if is_packed else {}

    def derivative() -> Tensor:
        with torch.set_grad_enabled(with_gradients), forward_ad.dual_level():
            dual = forward_ad.make_dual(embeds, tangent)
            hidden = model.model(inputs_embeds=dual, use_cache=False, **given).last_hidden_state
            return forward_ad.unpack_dual(hidden).tangent.detach()

    with plain():
        expected = derivative()
    torch.testing.assert_close(derivative(), expected, rtol=1e-4, atol=1e-4)


def test_a_cached_step_with_gradients_sums_the_weights_anew(mixer: Callable[..., PreTrainedModel]) -> None:
    """Steps without gradients sum ahead what they will need; a constant has no gradient."""
    model = mixer()
    mixing = model.model.layers[0].mixing
    gradients = []
    for steps in ([1, 1], [2]):
        with torch.no_grad():
            outputs, first = model(IDS[:, :5], use_cache=True), 5
            for step in steps:
                outputs = model(IDS[:, first : first + step], past_key_values=outputs.past_key_values)
                first += step
        loss = model(IDS[:, 7:], past_key_values=outputs.past_key_values).logits.square().sum()
        gradients.append(torch.autograd.grad(loss, [mixing.weight, mixing.bias]))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["masked_mixer", "eem"])
def test_new_tokens_of_a_tied_head_are_as_small_as_the_old(
    kind: str, mixer: Callable[..., PreTrainedModel], eem: Callable[..., EEMForCausalLM]
) -> None:
    changes: dict[str, Any] = {"tie_word_embeddings": True}
    model = mixer(hidden_size=256, **changes) if kind == "masked_mixer" else eem(**changes)
    given = {"labels": IDS, "use_cache": False}
    before = model(IDS, **given).loss.item()
    model.resize_token_embeddings(60, mean_resizing=False)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model(IDS, **given).loss.item() < before + 1
    old, new = (rows.std().item() for rows in model.lm_head.weight.split([40, 20]))
    assert new == pytest.approx(old, rel=0.2)


@pytest.mark.parametrize("introduction", [None, "token", "embedding", "combination"])
def test_states_are_contiguous(
    introduction: str | None, mixer: Callable[..., PreTrainedModel], eem: Callable[..., EEMForCausalLM]
) -> None:
    model = mixer() if introduction is None else eem(memory_introduction=introduction)
    hidden = model.model(IDS, use_cache=False).last_hidden_state
    assert hidden.view(-1, hidden.shape[-1]).shape[0] == IDS.numel()
    safetensors.torch.save({"hidden": hidden.detach()})


@pytest.mark.parametrize("kind", ["masked_mixer", "eem"])
@pytest.mark.parametrize("is_training", [False, True])
def test_fake_tensors_have_no_values(
    kind: str, is_training: bool, backbone_config: Callable[..., Any], eem_config: Callable[..., Any]
) -> None:
    with FakeTensorMode():
        model = (
            EEMForCausalLM(eem_config()) if kind == "eem" else AutoModelForCausalLM.from_config(backbone_config())
        ).train(is_training)
        ids = torch.ones(2, 8, dtype=torch.long)
        loss = model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
    assert loss.shape == ()


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("output_logits", [False, True])
def test_weights_of_what_is_not_scored_may_be_nan(
    is_training: bool, output_logits: bool, eem: Callable[..., EEMForCausalLM]
) -> None:
    labels, weights = IDS.clone(), torch.full(IDS.shape, 0.5)
    labels[0, 3] = -100
    expected = eem()(IDS, labels=labels, loss_weights=weights).loss
    weights = weights.masked_fill(labels == -100, float("nan"))
    weights[:, 0] = float("nan")  # nothing predicts it
    model = eem().train(is_training)
    loss = model(IDS, labels=labels, loss_weights=weights, output_logits=output_logits).loss
    torch.testing.assert_close(loss, expected)


def test_a_head_whose_weight_was_swapped_is_called() -> None:
    """As torchao swaps it: a weight that is no plain tensor is not multiplied in chunks."""

    class Swapped(Tensor):
        pass

    head = nn.Linear(4, 8, bias=False)
    assert is_plain_linear(head)
    head.weight = nn.Parameter(head.weight.detach().as_subclass(Swapped))
    assert not is_plain_linear(head)


@pytest.mark.parametrize("kind", ["masked_mixer", "eem"])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_cache_goes_on_with_its_new_tokens_only(
    kind: str, padding: int, mixer: Callable[..., PreTrainedModel], eem: Callable[..., EEMForCausalLM]
) -> None:
    """It ends at the context, as it does with all ids."""
    model = mixer() if kind == "masked_mixer" else eem()
    prompt = IDS[:1]
    mask = torch.ones(1, 9, dtype=torch.long)
    mask[0, :padding] = 0

    def texts(is_whole: bool) -> list[int]:
        with torch.no_grad():
            cache = model(prompt, attention_mask=mask[:, :8], use_cache=True).past_key_values
        new = torch.tensor([[17]])
        ids = torch.cat([prompt, new], dim=1) if is_whole else new
        out = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=30, do_sample=False)
        return out[0, ids.shape[1] :].tolist()

    whole = texts(is_whole=True)
    assert texts(is_whole=False) == whole and len(whole) < 10


def test_a_filled_cache_keeps_its_code(eem: Callable[..., EEMForCausalLM]) -> None:
    model = eem()
    with torch.no_grad():
        cache = model(IDS[:1, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="goes on with its own code"):
        model.generate(IDS[:1, :5], past_key_values=cache, encoder_input_ids=IDS[1:])
    cache.batch_repeat_interleave(2)
    given = {"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 3}
    assert model.generate(IDS[:1, :5], past_key_values=cache, **given).shape == (2, 8)
