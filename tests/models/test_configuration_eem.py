"""EEMConfig and EEMAutoencoderConfig: fields show in a model, contradictions are named, files round-trip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, EEMConfig, EEMForCausalLM, MaskedMixerConfig
from modeling_eem.models.configuration_eem import EncoderDecoderConfig

INPUT_IDS = torch.arange(2, 12)[None]
LLAMA = {"model_type": "llama", "vocab_size": 40, "hidden_size": 32, "num_attention_heads": 2}
CONFIGS = [EEMConfig, EEMAutoencoderConfig]


def _noisy_code(model: Any) -> list[float]:
    return model.train().encode(INPUT_IDS).flatten().tolist()


SHOWS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "encoder_config": (
        {**LLAMA, "max_position_embeddings": 16},
        lambda model: type(getattr(model, "model", model).encoder.backbone),
    ),
    "decoder_config": (
        {**LLAMA, "max_position_embeddings": 17},
        lambda model: type(getattr(model, "model", model).decoder),
    ),
    "bottleneck_size": (5, lambda model: model.encode(INPUT_IDS).shape),
    "noise_scale": (1.0, _noisy_code),
    "noise_placement": ("encoder_output", _noisy_code),
    "code_dtype": ("int2", lambda model: model.encode(INPUT_IDS).tolist()),
}
EEM_SHOWS = SHOWS | {
    "memory_introduction": ("combination", lambda model: model(INPUT_IDS).logits.tolist()),
    "code_dropout": (1.0, lambda model: model.train()(INPUT_IDS, output_logits=True).logits.tolist()),
    # A record of how the model was trained, which the data collator applies.
    "random_prefix_probability": (0.5, lambda model: model.config.random_prefix_probability),
}
AUTOENCODER_SHOWS = SHOWS | {
    "decoder_config": ({**LLAMA, "max_position_embeddings": 16}, SHOWS["decoder_config"][1]),
    "memory_expansion": ("unroll", lambda model: type(model.expansion)),
}


@pytest.fixture
def autoencoder_config(backbone_config: Callable[..., Any]) -> Callable[..., EEMAutoencoderConfig]:
    encoder = backbone_config(hidden_size=16, position_alignment="right")
    return lambda **changes: EEMAutoencoderConfig(
        **{"encoder_config": encoder, "decoder_config": backbone_config(), "bottleneck_size": 6, **changes}
    )


def test_every_field_has_a_test() -> None:
    for config_class, shows in ((EEMConfig, EEM_SHOWS), (EEMAutoencoderConfig, AUTOENCODER_SHOWS)):
        fields = {*EncoderDecoderConfig.__annotations__, *config_class.__annotations__}
        assert set(shows) == fields - {"model_type", "sub_configs_defaults"}


def _assert_shows(field: str, make: Callable[..., Any], model_class: type, shows: dict[str, Any]) -> None:
    value, show = shows[field]
    common = {"noise_scale": 1.0} if field == "noise_placement" else {}
    seen = []
    for changes in ({}, {field: value}):
        torch.manual_seed(0)
        model = model_class(make(**common, **changes)).eval()
        torch.manual_seed(1)
        seen.append(show(model))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("field", EEM_SHOWS)
def test_a_field_shows_in_the_model(field: str, eem_config: Callable[..., Any]) -> None:
    _assert_shows(field, eem_config, EEMForCausalLM, EEM_SHOWS)


@pytest.mark.parametrize("field", AUTOENCODER_SHOWS)
def test_a_field_shows_in_the_autoencoder(field: str, autoencoder_config: Callable[..., Any]) -> None:
    _assert_shows(field, autoencoder_config, EEMAutoencoder, AUTOENCODER_SHOWS)


# Derived properties

DERIVED = {
    "vocab_size": 41,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "max_position_embeddings": 12,
    "use_cache": False,
    "tie_word_embeddings": True,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": 7,
}
ON_BOTH = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}


@pytest.mark.parametrize("how", ["set", "constructor"])
@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("introduction", ["token", "combination"])
def test_derived_values_are_the_decoders(
    introduction: str, name: str, how: str, eem_config: Callable[..., Any]
) -> None:
    """Read from the decoder's config, and set there (in both, where both must agree)."""
    value = DERIVED[name]
    in_decoder = value + 1 if name == "max_position_embeddings" and introduction == "token" else value
    plain = eem_config(memory_introduction=introduction)
    if how == "set":
        config = eem_config(memory_introduction=introduction)
        setattr(config, name, value)
    else:
        config = eem_config(memory_introduction=introduction, **{name: value})
    assert getattr(config, name) == value != getattr(plain, name)
    assert getattr(config.decoder_config, name) == in_decoder
    in_encoder = value if name in ON_BOTH else getattr(plain.encoder_config, name)
    assert getattr(config.encoder_config, name) == in_encoder


def test_the_code_is_the_bottlenecks_or_the_encoders_size(eem_config: Callable[..., Any]) -> None:
    assert eem_config().code_size == 6
    assert eem_config(bottleneck_size=None).code_size == 16


def test_generation_asks_the_decoder(eem_config: Callable[..., Any]) -> None:
    config = eem_config()
    assert config.get_text_config(decoder=True) is config.decoder_config
    assert config.get_text_config() is config and not config.is_encoder_decoder


# How configs are made


def test_defaults_are_masked_mixers_that_fit() -> None:
    """A right-aligned encoder; a decoder as long as the text, and one position more for a `token` memory."""
    for config, length in (
        (EEMConfig(), 513),
        (EEMConfig(memory_introduction="combination"), 512),
        (EEMAutoencoderConfig(), 512),
        (EEMConfig(encoder_config={"max_position_embeddings": 30}), 31),
    ):
        assert type(config.encoder_config) is type(config.decoder_config) is MaskedMixerConfig
        assert config.encoder_config.position_alignment == "right"
        assert config.decoder_config.position_alignment == "left"
        assert config.decoder_config.max_position_embeddings == length
    assert EEMConfig().bottleneck_size == 64 and EEMAutoencoderConfig().bottleneck_size is None


def test_a_config_and_its_dict_make_the_same(eem_config: Callable[..., Any]) -> None:
    for encoder, decoder in (("masked_mixer", "llama"), ("gpt_neox", "qwen2"), ("gpt2", "gpt2")):
        config = eem_config(encoder, decoder)
        encoder_dict, decoder_dict = config.encoder_config.to_dict(), config.decoder_config.to_dict()
        same = EEMConfig(encoder_config=encoder_dict, decoder_config=decoder_dict, bottleneck_size=6)
        assert same.to_dict() == config.to_dict()
        assert type(same.decoder_config) is type(config.decoder_config)


def test_configs_are_copied() -> None:
    """One config for both sides stays the caller's, and the sides stay apart."""
    llama = LlamaConfig(vocab_size=40, max_position_embeddings=16)
    config = EEMConfig(encoder_config=llama, decoder_config=llama, memory_introduction="combination")
    config.hidden_size = 64
    config.pad_token_id = 9
    assert llama.hidden_size == config.encoder_config.hidden_size == 4096 and llama.pad_token_id is None


@pytest.mark.parametrize(
    "encoder, decoder",
    [("masked_mixer", "masked_mixer"), ("llama", "gpt_neox"), ("qwen2", "gpt2"), ("gpt2", "masked_mixer")],
)
def test_a_saved_config_loads_as_it_was(
    encoder: str, decoder: str, eem_config: Callable[..., Any], tmp_path: Path
) -> None:
    """Values that are a backbone class's defaults but not ours, and the reverse, come back too."""
    config = eem_config(
        encoder,
        decoder,
        noise_scale=0.0625,
        noise_placement="encoder_output",
        code_dtype="float8_e4m3fn",
        random_prefix_probability=0.25,
        code_dropout=0.125,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is EEMConfig
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert type(loaded.encoder_config) is type(config.encoder_config)
    assert type(loaded.decoder_config) is type(config.decoder_config)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize("alignment", ["left", "right"])
def test_round_trip_of_an_encoders_alignment(config_class: type, alignment: str, tmp_path: Path) -> None:
    """`left` is a masked mixer's default and `right` an encoder's: neither may turn into the other."""
    config_class(encoder_config={"position_alignment": alignment}).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).encoder_config.position_alignment == alignment


def test_a_saved_config_may_hold_keys_of_a_later_version(tmp_path: Path) -> None:
    """What a user's dict may not: files come from other versions."""
    EEMConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    saved["of_tomorrow"] = saved["decoder_config"]["of_tomorrow"] = 1
    path.write_text(json.dumps(saved))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.of_tomorrow == loaded.decoder_config.of_tomorrow == 1


# Contradictions


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(
    "bad, message",
    [
        ({"encoder_config": {"hiden_size": 8}}, "encoder_config: MaskedMixerConfig.*'hiden_size'.*'hidden_size'"),
        ({"decoder_config": {**LLAMA, "rms_norm_epz": 1.0}}, "decoder_config: LlamaConfig.*'rms_norm_eps'"),
        ({"decoder_config": {"model_type": "lama"}}, "decoder_config: unknown model_type 'lama'"),
        ({"encoder_config": {"model_type": "mamba"}}, "encoder_config: .*'mamba'.*no max_position_embeddings"),
        ({"decoder_config": {"hidden_size": 30, "num_mixing_heads": 4}}, "hidden_size.*divisible by num_mixing_heads"),
        (
            {"decoder_config": {"vocab_size": 9}},
            r"encoder_config.vocab_size \(8000\).*decoder_config.vocab_size \(9\)",
        ),
        ({"encoder_config": LLAMA}, "encoder_config.vocab_size.*decoder_config.vocab_size.*differ"),
        (
            {"decoder_config": {"max_position_embeddings": 600}},
            "raise encoder_config.max_position_embeddings or lower",
        ),
        ({"bottleneck_size": 0}, "bottleneck_size must be at least 1, or None"),
        ({"noise_scale": -0.5}, "noise_scale.*-0.5"),
        ({"noise_placement": "decoder"}, "noise_placement.*'decoder'"),
        ({"code_dtype": "int9"}, "code_dtype.*float8_e4m3fn.*'int9'"),
    ],
)
def test_contradictions_are_named(config_class: type[PreTrainedConfig], bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(**bad)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"memory_introduction": "prefix"}, "memory_introduction.*'token', 'embedding' or 'combination'.*'prefix'"),
        (
            {"decoder_config": {"max_position_embeddings": 512}},
            "one position of the decoder: set decoder_config.max_position_embeddings to 513",
        ),
        ({"random_prefix_probability": 1.5}, "random_prefix_probability.*1.5"),
        ({"random_prefix_probability": -0.1}, "random_prefix_probability.*-0.1"),
        ({"code_dropout": 1.5}, "code_dropout.*1.5"),
        ({"decoder_config": {"is_causal": False}}, "decoder_config.is_causal must be True"),
        (
            {"decoder_config": LlamaConfig(vocab_size=8000, max_position_embeddings=513, is_causal=False)},
            "decoder_config.is_causal must be True",
        ),
        ({"decoder_config": {"position_alignment": "right"}}, "decoder_config.position_alignment must be 'left'"),
        (
            {"memory_introduction": "embedding", "decoder_config": {"tie_word_embeddings": True}},
            "decoder_config.tie_word_embeddings must be False",
        ),
        (
            {"memory_introduction": "embedding", "tie_word_embeddings": True},
            "decoder_config.tie_word_embeddings must be False",
        ),
        ({"memory_introduction": "embedding", "bottleneck_size": 512}, r"code \(512 numbers\).*width \(512\)"),
        ({"memory_introduction": "embedding", "bottleneck_size": None}, r"code \(512 numbers\).*width \(512\)"),
    ],
)
def test_contradictions_of_an_eem_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EEMConfig(**bad)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"memory_expansion": "tile"}, "memory_expansion.*'repeat' or 'unroll'.*'tile'"),
        ({"memory_expansion": "unroll", "encoder_config": {"hidden_size": 31}}, "even encoder_config.hidden_size.*31"),
        # Its decoder has no token embeddings that a head could be tied to: True would be ignored.
        ({"decoder_config": {"tie_word_embeddings": True}}, "tie_word_embeddings"),
    ],
)
def test_contradictions_of_an_autoencoder_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EEMAutoencoderConfig(**bad)


def test_both_sides_of_an_autoencoder_may_see_all_tokens() -> None:
    EEMAutoencoderConfig(encoder_config={"is_causal": False}, decoder_config={"is_causal": False})
    EEMConfig(encoder_config={"is_causal": False})
