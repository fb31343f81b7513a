"""What a transformers user expects to work does, for every class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_eem import (
    EEMAutoencoder,
    EEMAutoencoderConfig,
    EEMConfig,
    EEMForCausalLM,
    EEMModel,
    MaskedMixerConfig,
    MaskedMixerForCausalLM,
    MaskedMixerForTokenClassification,
    MaskedMixerModel,
)

AUTO_CLASSES = [
    (AutoModel, "masked_mixer", MaskedMixerModel),
    (AutoModel, "eem", EEMModel),
    (AutoModel, "eem_autoencoder", EEMAutoencoder),
    (AutoModelForCausalLM, "masked_mixer", MaskedMixerForCausalLM),
    (AutoModelForCausalLM, "eem", EEMForCausalLM),
    (AutoModelForTokenClassification, "masked_mixer", MaskedMixerForTokenClassification),
]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 40}


def _assert_same_state(actual: Any, expected: Any) -> None:
    actual_state, expected_state = actual.state_dict(), expected.state_dict()
    assert actual_state.keys() == expected_state.keys()
    assert [name for name, x in expected_state.items() if not torch.equal(actual_state[name], x)] == []


# Auto classes and files


@pytest.mark.parametrize("auto_class, model_type, model_class", AUTO_CLASSES)
def test_auto_classes_make_our_configs_and_models(auto_class: type, model_type: str, model_class: type) -> None:
    sizes = SMALL if model_type == "masked_mixer" else {"encoder_config": SMALL, "decoder_config": SMALL}
    config = AutoConfig.for_model(model_type, **sizes)
    assert type(config) in (MaskedMixerConfig, EEMConfig, EEMAutoencoderConfig) and config.model_type == model_type
    assert type(auto_class.from_config(config)) is model_class


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["whole", "sharded"])
def test_save_and_load_are_bit_equal(
    model: Any, options: dict[str, str], tmp_path: Path, batch: dict[str, Tensor], output_of: Callable
) -> None:
    model.save_pretrained(tmp_path, **options)
    shards = list(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 2) == bool(options) == (tmp_path / "model.safetensors.index.json").exists()
    torch.manual_seed(99)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    _assert_same_state(loaded, model)
    assert not loaded.training
    assert torch.equal(output_of(loaded, batch), output_of(model, batch))


@pytest.mark.parametrize("name", ["mixer", "mixer, tied", "mixer classifier", "eem", "eem, llama"])
def test_a_head_and_its_base_share_a_checkpoint(name: str, make_model: Callable[[str], Any], tmp_path: Path) -> None:
    """AutoModel takes the stack out of a language model's checkpoint; a language model adds a head to a stack's."""
    model = make_model(name)
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is type(model.model)
    _assert_same_state(base, model.model)
    base.save_pretrained(tmp_path / "base")
    again, report = type(model).from_pretrained(tmp_path / "base", output_loading_info=True)
    _assert_same_state(again.model, base)
    assert {name.split(".")[0] for name in report["missing_keys"]} <= {"lm_head", "score"}
    assert not report["unexpected_keys"]


def test_a_checkpoint_loads_in_its_dtype_or_another(
    model: Any, tmp_path: Path, batch: dict[str, Tensor], output_of: Callable, loss_of: Callable
) -> None:
    """A bf16 checkpoint reloads as bf16 unless told otherwise, and computes in it, forward and backward."""
    exact = output_of(model, batch)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    for options, dtype in (
        ({}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float32}, torch.float32),
        ({"dtype": "float16"}, torch.float16),
    ):
        loaded = type(model).from_pretrained(tmp_path, **options)
        assert {p.dtype for p in loaded.parameters()} == {dtype} == {loaded.dtype}
        if dtype != torch.float16:
            values = output_of(loaded, batch)
            assert values.dtype == dtype
            assert (values.float() - exact).norm() < 0.05 * exact.norm()
        if options == {}:
            loss_of(loaded.train(), batch).backward()
            assert all(p.grad.isfinite().all() for p in loaded.parameters())


def test_a_device_map_changes_no_output(
    model: Any, tmp_path: Path, batch: dict[str, Tensor], output_of: Callable
) -> None:
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map="cpu")
    assert torch.equal(output_of(loaded, batch), output_of(model, batch))


def test_loading_draws_no_numbers_for_weights_it_has(model: Any, tmp_path: Path) -> None:
    """Nothing of an initialisation survives a checkpoint, not even in what is tied or masked."""
    model.save_pretrained(tmp_path)
    loaded = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded.append(type(model).from_pretrained(tmp_path))
    _assert_same_state(*loaded)


# Embeddings


@pytest.mark.parametrize("size", [50, 30])
def test_resize_token_embeddings(
    model: Any, size: int, tmp_path: Path, batch: dict[str, Tensor], output_of: Callable, loss_of: Callable
) -> None:
    """Every table and the head, old rows kept; the model trains, saves and loads at its new size."""
    tables = {name: p.detach().clone() for name, p in model.named_parameters() if 40 in p.shape}
    before = output_of(model, batch)
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == size
    if hasattr(model.config, "encoder_config"):
        assert model.config.encoder_config.vocab_size == model.config.decoder_config.vocab_size == size
    for name, old in tables.items():
        new = model.get_parameter(name)
        assert new.shape[0] == size, name
        assert torch.equal(new[: min(size, 40)], old[: min(size, 40)]), name
    after = output_of(model, batch)
    shared = min(size, 40, before.shape[-1])
    torch.testing.assert_close(after[:, :shared], before[:, :shared])
    batch["input_ids"][0, 0] = size - 1
    loss_of(model.train(), batch).backward()
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.vocab_size == size
    assert torch.equal(output_of(loaded, batch), output_of(model, batch))


def test_a_tied_head_stays_tied(make_model: Callable[[str], Any], tmp_path: Path) -> None:
    for name in ("mixer, tied", "eem, tied gpt2"):
        model = make_model(name)
        model.resize_token_embeddings(50)
        model.save_pretrained(tmp_path / name)
        for tied in (model, type(model).from_pretrained(tmp_path / name)):
            assert tied.lm_head.weight is tied.get_input_embeddings().weight and len(tied.lm_head.weight) == 50


# Training and attention


def test_activation_checkpointing_changes_nothing(model: Any, batch: dict[str, Tensor], loss_of: Callable) -> None:
    """Loss and gradients; layers run again in backward, in every backbone there is."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    calls: list[Any] = []
    for layer in layers:  # a part of it, because a layer's own hooks stay outside the checkpoint
        next(layer.children()).register_forward_pre_hook(lambda module, _: calls.append(module))
    model.train()
    parameters = list(model.parameters())
    results = []
    for checkpoints in (False, True):
        if checkpoints:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        calls.clear()
        loss = loss_of(model, batch)
        results.append((loss, torch.autograd.grad(loss, parameters)))
        assert len(calls) == len(layers) * (1 + checkpoints)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["eem, llama", "autoencoder, llama"])
def test_sdpa_equals_eager(
    name: str, make_model: Callable[[str], Any], tmp_path: Path, batch: dict[str, Tensor], output_of: Callable
) -> None:
    """Chosen at loading or later, for both backbones; eager returns attentions."""
    make_model(name).save_pretrained(tmp_path)
    models = {kind: AutoModel.from_pretrained(tmp_path, attn_implementation=kind) for kind in ("sdpa", "eager")}
    for kind, model in models.items():
        for backbone in (model.encoder.backbone, model.decoder):
            assert backbone.config._attn_implementation == kind
            assert backbone.layers[0].self_attn.config._attn_implementation == kind
    outputs = [output_of(model, batch) for model in models.values()]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    attentions = models["eager"](**batch, output_attentions=True).attentions
    assert len(attentions) == 2 and attentions[0].shape[:2] == (3, 2)
    models["eager"].set_attn_implementation("sdpa")
    assert torch.equal(output_of(models["eager"], batch), outputs[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_masks_of_any_dtype(model: Any, dtype: torch.dtype, batch: dict[str, Tensor]) -> None:
    masks = [batch["attention_mask"], batch["attention_mask"].to(dtype)]
    plain, other = (model(batch["input_ids"], attention_mask=mask) for mask in masks)
    key = "logits" if "logits" in plain else "last_hidden_state"
    assert torch.equal(plain[key], other[key])


def test_what_is_returned(model: Any, batch: dict[str, Tensor]) -> None:
    """Hidden states and tuples where asked for, by argument or by config; a cache unless told otherwise."""
    assert model(**batch).hidden_states is None
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_hidden_layers + 1
    named = model(**batch)
    unnamed = model(**batch, return_dict=False)
    assert isinstance(unnamed, tuple) and torch.equal(unnamed[0], next(iter(named.values())))
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == len(states)
    if "past_key_values" in named:
        model.config.use_cache = False
        assert model(**batch).past_key_values is None


# Generation


def test_special_tokens_reach_generation(causal_lm: Any, tmp_path: Path) -> None:
    """Those of the config, before a file, after, and where the config is all there is; EOS stops, padding follows."""
    prompt = torch.randint(2, 40, (8, 3))
    free = causal_lm.generate(prompt, do_sample=False, max_new_tokens=6)[:, 3:]
    eos = free[0, 1].item()
    causal_lm.config.eos_token_id = eos
    causal_lm.generation_config.eos_token_id = eos
    causal_lm.save_pretrained(tmp_path)
    loaded = [type(causal_lm).from_pretrained(tmp_path)]
    (tmp_path / "generation_config.json").unlink()
    loaded += [type(causal_lm).from_pretrained(tmp_path), type(causal_lm)(causal_lm.config)]
    for model in loaded:
        settings = model.generation_config
        assert [settings.bos_token_id, settings.pad_token_id, settings.eos_token_id] == [1, 0, eos]
    stopped = loaded[0].generate(prompt, do_sample=False, max_new_tokens=6)[:, 3:]
    is_done = (free == eos).cumsum(-1) - (free == eos).int() > 0
    assert is_done.any()
    assert torch.equal(stopped, free.masked_fill(is_done, 0)[:, : stopped.shape[1]])


# Pipelines


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Forty words: w0 is padding, w1 BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", padding_side="left")


def test_text_generation_pipeline(causal_lm: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """From a folder, one prompt or a padded batch of them; the text is what `generate` gives."""
    causal_lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generator = pipeline("text-generation", model=str(tmp_path), device="cpu")
    assert type(generator.model) is type(causal_lm)
    prompts = ["w3 w4 w5", "w6"]
    options = {"do_sample": False, "max_new_tokens": 5, "return_full_text": False}
    texts = [generator(prompt, **options)[0]["generated_text"] for prompt in prompts]
    for prompt, text in zip(prompts, texts):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        expected = causal_lm.generate(**inputs, do_sample=False, max_new_tokens=5)[0, inputs.input_ids.shape[1] :]
        assert text.split() == tokenizer.decode(expected, skip_special_tokens=True).split()
    batched = generator(prompts, batch_size=2, **options)
    assert [result[0]["generated_text"].split() for result in batched] == [text.split() for text in texts]


def test_token_classification_pipeline(make_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast) -> None:
    classifier = pipeline("token-classification", model=make_model("mixer classifier"), tokenizer=tokenizer)
    assert [entity["word"] for entity in classifier("w3 w4 w5", ignore_labels=[])] == ["w3", "w4", "w5"]
