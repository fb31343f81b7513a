"""Configurations of entropy estimation models and autoencoders: two backbones and what stands between them."""

import copy
import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, TypeGuard

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_masked_mixer import MaskedMixerConfig
from .quantization_eem import CODE_FORMATS

if TYPE_CHECKING:
    from .configuration_masked_mixer import CompletedField

    BackboneField = CompletedField[PreTrainedConfig | dict[str, Any] | None, PreTrainedConfig]

# Keys a config takes beside its dataclass fields; the last two are older names that transformers still converts.
_COMMON_KEYS = {"model_type", "attn_implementation", "num_labels", "is_causal", "name_or_path"}
_COMMON_KEYS |= {"rope_theta", "rope_scaling"}


class _BackboneSpec(SubConfigSpec):
    """Any config that `AutoConfig` knows, and this project's own even if nobody registered it."""

    def get_config_class(self, model_type: str | None = None) -> type[PreTrainedConfig]:
        return (
            MaskedMixerConfig if model_type == MaskedMixerConfig.model_type else super().get_config_class(model_type)
        )


_BACKBONE = _BackboneSpec(AutoConfig, model_type=MaskedMixerConfig.model_type)


def _resolve(field: str, value: PreTrainedConfig | dict | None, mixer_defaults: dict[str, Any]) -> PreTrainedConfig:
    """A copy of a backbone's config, or a config made from a dict; without `model_type` a masked mixer's.

    Raises:
        ValueError: for an unknown `model_type`, or a key that the config does not have.
    """
    if isinstance(value, PreTrainedConfig):
        return copy.deepcopy(value)
    value = dict(value or {})
    model_type = value.pop("model_type", MaskedMixerConfig.model_type)
    if model_type != MaskedMixerConfig.model_type and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{field}: unknown model_type {model_type!r}; use 'masked_mixer' or a type that AutoConfig knows."
        )
    config_class = _BACKBONE.get_config_class(model_type)
    if config_class is MaskedMixerConfig:
        value = mixer_defaults | value
    known = {f.name for f in dataclasses.fields(config_class)} | set(config_class().to_dict()) | _COMMON_KEYS
    known |= set(config_class.attribute_map)
    for key in sorted(set(value) - known):
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(f"{field}: {config_class.__name__} has no key {key!r}{hint}")
    return config_class(**value)


# Values of the decoder's config that can be read and given as the whole config's own.
_DERIVED = {"vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "use_cache"}
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
# What they are for a decoder's config that does not name them, as a config of one's own may not.
_DEFAULTS = {"use_cache": True, "tie_word_embeddings": False, **dict.fromkeys(_SPECIAL_TOKENS)}
_DERIVED |= {"tie_word_embeddings", *_SPECIAL_TOKENS}


def _from_decoder(name: str, on_both: bool = False) -> property:
    """A property that reads the decoder's config; where both must agree, setting it also sets the encoder's."""

    def get(self: "EncoderDecoderConfig") -> Any:
        if name in _DEFAULTS:
            return getattr(self.decoder_config, name, _DEFAULTS[name])
        return getattr(self.decoder_config, name)

    def set_(self: "EncoderDecoderConfig", value: Any) -> None:
        setattr(self.decoder_config, name, value)
        if on_both:
            setattr(self.encoder_config, name, value)

    return property(get, set_, doc=f"`decoder_config.{name}`.")


@strict
class EncoderDecoderConfig(PreTrainedConfig):
    """What entropy estimation models and autoencoders share: an encoder, its bottleneck and a decoder.

    Args:
        encoder_config, decoder_config: configs of any causal backbone that `AutoModel` knows, or their dicts. A dict
            without `model_type` is a masked mixer's, right-aligned for the encoder.
        bottleneck_size: numbers `n_p` in the code, or None for the encoder's output itself.
        noise_scale: q of the uniform noise U(-q, q) that is added in training, half the step of the target precision.
        noise_placement: `"bottleneck"` adds it to the code, `"encoder_output"` to the encoder's output before `down`.
        code_dtype: format the code is rounded to outside training (a name of `quantization_eem.CODE_FORMATS`).

    `vocab_size`, `hidden_size`, `num_hidden_layers`, `max_position_embeddings`, `use_cache`, `tie_word_embeddings` and
    the special token ids are the decoder config's.
    """

    sub_configs_defaults = {"encoder_config": _BACKBONE, "decoder_config": _BACKBONE}

    if TYPE_CHECKING:
        encoder_config: BackboneField = CompletedField()
        decoder_config: BackboneField = CompletedField()
    else:
        encoder_config: PreTrainedConfig | dict | None = None
        decoder_config: PreTrainedConfig | dict | None = None
    bottleneck_size: int | None = 64
    noise_scale: float | int = 0.0
    noise_placement: str = "bottleneck"
    code_dtype: str | None = None

    vocab_size = _from_decoder("vocab_size", on_both=True)
    hidden_size = _from_decoder("hidden_size")
    num_hidden_layers = _from_decoder("num_hidden_layers")
    max_position_embeddings = _from_decoder("max_position_embeddings")
    use_cache = _from_decoder("use_cache")
    tie_word_embeddings = _from_decoder("tie_word_embeddings")
    pad_token_id = _from_decoder("pad_token_id", on_both=True)
    bos_token_id = _from_decoder("bos_token_id", on_both=True)
    eos_token_id = _from_decoder("eos_token_id", on_both=True)

    @property
    def code_size(self) -> int:
        """Numbers in a code."""
        return self.encoder_config.hidden_size if self.bottleneck_size is None else self.bottleneck_size

    @property
    def num_memory_positions(self) -> int:
        """Positions of the decoder that the memory takes."""
        return 0

    def __post_init__(self, **kwargs) -> None:
        self.encoder_config = _resolve("encoder_config", self.encoder_config, {"position_alignment": "right"})
        context = getattr(self.encoder_config, "max_position_embeddings", None)
        decoder_context = {} if context is None else {"max_position_embeddings": context + self.num_memory_positions}
        self.decoder_config = _resolve("decoder_config", self.decoder_config, decoder_context)
        # The base class would drop some of these as generation parameters, and set the others after the checks.
        for name in _DERIVED & kwargs.keys():
            setattr(self, name, kwargs.pop(name))
        self.check()
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """ValueError for values that do not fit; models check again, since attributes can be set later."""
        for field in ("encoder_config", "decoder_config"):
            config = getattr(self, field)
            for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
                if getattr(config, name, None) is None:
                    raise ValueError(f"{field}: a {config.model_type!r} backbone has no {name}; choose another.")
        encoder, decoder = self.encoder_config, self.decoder_config
        if encoder.vocab_size != decoder.vocab_size:
            raise ValueError(
                f"encoder_config.vocab_size ({encoder.vocab_size}) and decoder_config.vocab_size "
                f"({decoder.vocab_size}) differ: both read the same tokens, so set them equal."
            )
        slots = self.num_memory_positions
        if slots and encoder.max_position_embeddings == decoder.max_position_embeddings:
            raise ValueError(
                "with memory_introduction='token' the memory takes one position of the decoder: set "
                f"decoder_config.max_position_embeddings to {encoder.max_position_embeddings + slots}."
            )
        if encoder.max_position_embeddings < decoder.max_position_embeddings - slots:
            raise ValueError(
                f"the decoder takes {decoder.max_position_embeddings - slots} text tokens and the encoder only "
                f"{encoder.max_position_embeddings}: raise encoder_config.max_position_embeddings or lower "
                f"decoder_config.max_position_embeddings to {encoder.max_position_embeddings + slots}."
            )
        if self.bottleneck_size is not None and self.bottleneck_size < 1:
            raise ValueError(f"bottleneck_size must be at least 1, or None for none; got {self.bottleneck_size}.")
        if self.noise_scale < 0:
            raise ValueError(f"noise_scale must not be negative, got {self.noise_scale}.")
        if self.noise_placement not in ("bottleneck", "encoder_output"):
            raise ValueError(
                f"noise_placement must be 'bottleneck' or 'encoder_output', got {self.noise_placement!r}."
            )
        if self.code_dtype is not None and self.code_dtype not in CODE_FORMATS:
            raise ValueError(f"code_dtype must be None or one of {', '.join(CODE_FORMATS)}; got {self.code_dtype!r}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """Keeps unknown keys of a saved config, as transformers does; `__init__` refuses them."""
        config_dict = dict(config_dict)
        for field in ("encoder_config", "decoder_config"):
            value = config_dict.get(field)
            if isinstance(value, dict) and "model_type" in value:
                config_dict[field] = _BACKBONE.get_config_class(value["model_type"]).from_dict(value)
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the special token ids, which generation looks for at the saved file's top level."""
        return super().to_dict() | {name: getattr(self.decoder_config, name, None) for name in _SPECIAL_TOKENS}

    def to_diff_dict(self) -> dict[str, Any]:
        """Keeps every value of both backbones: their defaults depend on more than their class."""
        serializable = super().to_diff_dict()
        whole = self.to_dict()
        self.dict_dtype_to_str(whole)
        return serializable | {field: whole[field] for field in ("encoder_config", "decoder_config")}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The decoder's config, where generation asks for a decoder's cache layers and special tokens."""
        return self.decoder_config if decoder and not encoder else self


@strict
class EEMConfig(EncoderDecoderConfig):
    """Configuration of an entropy estimation model (Badger & Neligeorge 2025, arXiv 2511.10618).

    Args:
        memory_introduction: how the code enters the decoder. `"token"`: projected, as a position before the text, so
            the decoder's `max_position_embeddings` is the text's n + 1; `"embedding"`: concatenated to every token
            embedding, which is that much narrower; `"combination"`: projected and added to every token embedding.
        random_prefix_probability: how often a training row is cut at a random length. The data collator cuts; the
            config records it for estimators.
        code_dropout: probability that a training row's memory is occluded. The decoder then also learns to work
            without it.

    See `EncoderDecoderConfig` for the rest. Raises ValueError where fields contradict each other.
    """

    model_type = "eem"
    keys_to_ignore_at_inference = ["past_key_values", "code", "token_losses"]

    memory_introduction: str = "token"
    random_prefix_probability: float | int = 0.0
    code_dropout: float | int = 0.0

    @property
    def num_memory_positions(self) -> int:
        return int(self.memory_introduction == "token")

    @property
    def max_position_embeddings(self) -> int:
        """Text tokens n in a window."""
        return self.decoder_config.max_position_embeddings - self.num_memory_positions

    @max_position_embeddings.setter
    def max_position_embeddings(self, value: int) -> None:
        self.decoder_config.max_position_embeddings = value + self.num_memory_positions

    def check(self) -> None:
        if self.memory_introduction not in ("token", "embedding", "combination"):
            raise ValueError(
                f"memory_introduction must be 'token', 'embedding' or 'combination', got {self.memory_introduction!r}."
            )
        super().check()
        for name in ("random_prefix_probability", "code_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be within 0 and 1, got {getattr(self, name)}.")
        if not getattr(self.decoder_config, "is_causal", True):
            raise ValueError("decoder_config.is_causal must be True: the decoder would see what it predicts.")
        if getattr(self.decoder_config, "position_alignment", "left") == "right":
            raise ValueError(
                "decoder_config.position_alignment must be 'left': a decoder's rows begin at one position."
            )
        if self.memory_introduction == "embedding":
            if self.tie_word_embeddings:
                raise ValueError(
                    "decoder_config.tie_word_embeddings must be False with memory_introduction='embedding': token "
                    "embeddings are narrower than the head's input there."
                )
            if self.code_size >= self.hidden_size:
                raise ValueError(
                    f"with memory_introduction='embedding' the code ({self.code_size} numbers) takes part of the "
                    f"decoder's width ({self.hidden_size}): choose a smaller bottleneck_size or a wider decoder."
                )


@strict
class EEMAutoencoderConfig(EncoderDecoderConfig):
    """Configuration of an autoencoder: encoder, one vector, and a decoder that regenerates all tokens in one pass.

    Args:
        memory_expansion: how the vector becomes the decoder's n inputs. `"repeat"`: the vector at every position;
            `"unroll"`: at position i the window of `d_enc / 2` features that begins at feature `i mod d_enc`.

    See `EncoderDecoderConfig` for the rest. Raises ValueError where fields contradict each other.
    """

    model_type = "eem_autoencoder"
    keys_to_ignore_at_inference = ["code"]

    bottleneck_size: int | None = None
    memory_expansion: str = "repeat"

    def check(self) -> None:
        super().check()
        if self.memory_expansion not in ("repeat", "unroll"):
            raise ValueError(f"memory_expansion must be 'repeat' or 'unroll', got {self.memory_expansion!r}.")
        if self.tie_word_embeddings:
            raise ValueError(
                "decoder_config.tie_word_embeddings must be False: an autoencoder's decoder has no token embeddings."
            )
        if self.memory_expansion == "unroll" and self.encoder_config.hidden_size % 2:
            raise ValueError(
                f"memory_expansion='unroll' needs an even encoder_config.hidden_size, got "
                f"{self.encoder_config.hidden_size}."
            )


def has_code(config: PreTrainedConfig) -> TypeGuard[EncoderDecoderConfig]:
    """Whether the name is that of a model with a code. Code from a checkpoint's folder may hold second classes."""
    return config.model_type in (EEMConfig.model_type, EEMAutoencoderConfig.model_type)


def is_autoencoder(config: PreTrainedConfig) -> TypeGuard[EEMAutoencoderConfig]:
    """Whether the name is an autoencoder's, whichever class it is."""
    return config.model_type == EEMAutoencoderConfig.model_type


__all__ = ["EEMAutoencoderConfig", "EEMConfig", "EncoderDecoderConfig", "has_code", "is_autoencoder"]
