"""MaskedMixerConfig: every field shows in a model, contradictions are named, files round-trip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM, MaskedMixerModel

INPUT_IDS = torch.arange(2, 12)[None]


def _logits(model: MaskedMixerForCausalLM) -> list[float]:
    return model(INPUT_IDS).logits.flatten().tolist()


# For each field another value than the tiny config's, and what a model shows of it.
SHOWS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "vocab_size": (41, lambda model: model(INPUT_IDS).logits.shape),
    "hidden_size": (48, lambda model: model.model(INPUT_IDS).last_hidden_state.shape),
    "intermediate_size": (60, lambda model: model.model.layers[0].mlp.up_proj.out_features),
    "num_hidden_layers": (3, lambda model: len(model(INPUT_IDS, output_hidden_states=True).hidden_states)),
    "max_position_embeddings": (20, lambda model: model.model.layers[0].mixing.weight.shape),
    "num_mixing_heads": (2, lambda model: model.model.layers[0].mixing.weight.shape),
    "mixing_kernel_size": (3, lambda model: model.model.layers[0].mixing.weight.shape),
    "is_causal": (False, lambda model: model.model.layers[0].mixing.weight.triu(1).any()),
    "position_alignment": ("right", _logits),
    "hidden_act": ("relu", _logits),
    "layer_norm_eps": (0.5, _logits),
    "use_cache": (False, lambda model: model(INPUT_IDS).past_key_values is None),
    "tie_word_embeddings": (True, lambda model: model.lm_head.weight is model.model.embed_tokens.weight),
    "pad_token_id": (7, lambda model: model.generation_config.pad_token_id),
    "bos_token_id": (7, lambda model: model.generate(max_new_tokens=1)[0, 0].item()),
    "eos_token_id": (list(range(40)), lambda model: model.generate(INPUT_IDS, max_new_tokens=4).shape),
}


def test_every_field_has_a_test() -> None:
    assert set(SHOWS) == set(MaskedMixerConfig.__annotations__) - {"model_type"}


@pytest.mark.parametrize("field", SHOWS)
def test_a_field_shows_in_the_model(field: str, backbone_config: Callable[..., Any]) -> None:
    value, shows = SHOWS[field]
    seen = []
    for config in (backbone_config(), backbone_config(**{field: value})):
        torch.manual_seed(0)
        if field == "is_causal":  # a causal language model refuses False
            model = MaskedMixerModel(config).eval()
            model.model = model
        else:
            model = MaskedMixerForCausalLM(config).eval()
        seen.append(shows(model))
    assert seen[0] != seen[1]


def test_a_config_has_the_documented_defaults() -> None:
    config = MaskedMixerConfig(hidden_size=96)
    assert config.intermediate_size == 384
    assert config.is_causal and config.position_alignment == "left" and not config.tie_word_embeddings
    assert config.hidden_act == "gelu" and config.layer_norm_eps == 1e-5


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"hidden_size": 30, "num_mixing_heads": 4}, r"hidden_size \(30\).*divisible.*num_mixing_heads \(4\)"),
        ({"num_mixing_heads": -1}, "num_mixing_heads.*-1"),
        ({"position_alignment": "center"}, "position_alignment.*'center'"),
        *[
            ({field: 0}, f"{field} must be at least 1")
            for field in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
        ],
        ({"mixing_kernel_size": 0}, "mixing_kernel_size must be at least 1"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1"),
    ],
)
def test_contradictions_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedMixerConfig(**bad)


def test_a_saved_config_loads_as_it_was(backbone_config: Callable[..., Any], tmp_path: Path) -> None:
    config = backbone_config(**{name: value for name, (value, _) in SHOWS.items()})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MaskedMixerConfig
    for name, (value, _) in SHOWS.items():
        assert getattr(loaded, name) == value
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()


def test_a_saved_config_may_hold_keys_of_a_later_version(tmp_path: Path) -> None:
    MaskedMixerConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_tomorrow": 1}))
    assert AutoConfig.from_pretrained(tmp_path).of_tomorrow == 1
