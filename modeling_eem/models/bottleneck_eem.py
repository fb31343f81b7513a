"""The path from an encoder's output to the code and back (down, noise, quantize, up), and the backbones around it.

Shapes: B batch, T tokens, D features of the encoder, P numbers of the code.
"""

import inspect
from typing import Any, Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .configuration_eem import EncoderDecoderConfig
from .configuration_masked_mixer import MaskedMixerConfig
from .hub_eem import RemoteCodePreTrainedModel
from .layout_masked_mixer import check_ids, check_shape, is_readable, token_ranks
from .modeling_masked_mixer import MaskedMixerModel, embedding_std, init_linear, init_new_tokens
from .quantization_eem import CODE_FORMATS


class BackboneOutput(Protocol):
    """A backbone's output with its hidden state, which transformers' own classes do not promise."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor | None, ...] | None

    def get(self, name: str) -> Any: ...


def is_masked_mixer(config: PreTrainedConfig) -> TypeGuard[MaskedMixerConfig]:
    """Whether the name says masked mixer. Code from a checkpoint's folder may hold a second class of that name."""
    return config.model_type == MaskedMixerConfig.model_type


def build_backbone(field: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A base model without its embedding table. It is fed `inputs_embeds`, so the table would never get a gradient.

    Raises:
        ValueError: for a model that is not a causal language model's backbone, or that does not take
            `inputs_embeds`, `attention_mask`, `position_ids` and `past_key_values`.
    """
    if is_masked_mixer(config):
        backbone: PreTrainedModel = MaskedMixerModel(config)
    else:
        # In the precision of the whole: a config that was loaded names its own.
        backbone = AutoModel.from_config(config, dtype=torch.get_default_dtype())
        # BERT and its kin can be causal or not; their attention layers say which.
        is_causal = all(getattr(module, "is_causal", True) for module in backbone.modules())
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not is_causal:
            raise ValueError(f"{field}: a {config.model_type!r} model is not a causal language model's backbone.")
    taken = inspect.signature(backbone.forward).parameters
    missing = {"inputs_embeds", "attention_mask", "position_ids", "past_key_values"} - set(taken)
    if missing:
        raise ValueError(
            f"{field}: a {config.model_type!r} backbone does not take {', '.join(sorted(missing))}; choose another."
        )
    backbone.set_input_embeddings(None)  # pyright: ignore[reportArgumentType] - PyTorch's way to have no such module
    plan = getattr(backbone, "_tp_plan", None)
    if plan is not None:
        plan.pop("embed_tokens", None)  # a tensor-parallel plan must not name what is not there
    return backbone


def run_backbone(
    backbone: PreTrainedModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    **kwargs,
) -> BackboneOutput:
    """Run a backbone. A masked mixer gets no `position_ids`: it ranks tokens by the mask, which is faster."""
    if is_masked_mixer(backbone.config):
        position_ids = None
    return backbone(inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


def refuse_arguments(kwargs: dict) -> None:
    """Remove arguments that these models do not take from `kwargs`; callers such as peft pass them as None.

    Raises:
        ValueError: if `position_ids` or `inputs_embeds` is not None.
    """
    if kwargs.pop("position_ids", None) is not None:
        raise ValueError(
            "this model takes no position_ids: they are for packed rows, and a row has one code for all its text. "
            "Pass documents as rows of their own with an attention_mask."
        )
    if kwargs.pop("inputs_embeds", None) is not None:
        raise ValueError("this model takes no inputs_embeds: its encoder and its decoder read different ones.")


class Bottleneck(nn.Module):
    """`z = W_down e + c`. Training adds noise U(-q, q) to `z` or `e`; otherwise `z` is rounded to `code_dtype`.

    Without a bottleneck z = e. `expand` is `W_up z`, if the model needs it. Noise and format are read from the model's
    config when they are used, so they can be tried on a trained model. The config is passed, because PEFT may train a
    copy of this module: a config of its own would be copied, too.
    """

    def __init__(self, config: EncoderDecoderConfig, has_up: bool = True):
        super().__init__()
        width, code_size = config.encoder_config.hidden_size, config.bottleneck_size
        self.down = None if code_size is None else nn.Linear(width, code_size)
        self.up = None if code_size is None or not has_up else nn.Linear(code_size, width)

    def compress(self, output_BD: Tensor, config: EncoderDecoderConfig) -> Tensor:
        """The code `[B, P]` of an encoder's outputs `[B, D]`, with noise in training."""
        output_BD = self._with_noise(output_BD, config, "encoder_output")
        code_BP = output_BD if self.down is None else self.down(output_BD)
        return self._with_noise(code_BP, config, "bottleneck")

    def _with_noise(self, x: Tensor, config: EncoderDecoderConfig, placement: str) -> Tensor:
        scale = config.noise_scale
        if not self.training or scale == 0 or placement != config.noise_placement:
            return x
        return x + torch.empty_like(x).uniform_(-scale, scale)

    def quantize(self, code_BP: Tensor, config: EncoderDecoderConfig) -> Tensor:
        """The code rounded to `code_dtype`; in training, the code itself."""
        if self.training or config.code_dtype is None:
            return code_BP
        return CODE_FORMATS[config.code_dtype].round(code_BP)

    def expand(self, code_BP: Tensor) -> Tensor:
        return code_BP if self.up is None else self.up(code_BP)


class TextEncoder(nn.Module):
    """Token embeddings, backbone and bottleneck: `encode` turns rows of ids into codes."""

    def __init__(self, config: EncoderDecoderConfig, has_up: bool = True):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.encoder_config.vocab_size, config.encoder_config.hidden_size)
        self.backbone = build_backbone("encoder_config", config.encoder_config)
        self.bottleneck = Bottleneck(config, has_up)
        # transformers gathers these from child modules; FSDP and device maps need every layer class.
        self._no_split_modules = self.backbone._no_split_modules

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The backbone's outputs `[B, T, D]`, before one of them becomes the code."""
        return self._run(input_ids, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, config: EncoderDecoderConfig) -> Tensor:
        """Codes `[B, P]`, made from the output at the last real token; `config` is the model's, see `Bottleneck`."""
        batch_size, length = input_ids.shape
        if attention_mask is None:
            last_B = torch.full((batch_size,), length - 1, device=input_ids.device)
        else:
            last_B = length - 1 - attention_mask.flip(-1).bool().int().argmax(-1)
        if is_masked_mixer(self.backbone.config):
            output_BD = self._run(input_ids, attention_mask, read_positions=last_B)[:, 0]
        else:
            hidden_BTD = self._run(input_ids, attention_mask)
            last_B = last_B.to(hidden_BTD.device)  # where the backbone's last layer is
            output_BD = hidden_BTD[torch.arange(batch_size, device=last_B.device), last_B]
        return self.bottleneck.compress(output_BD, config)

    def _run(self, input_ids: Tensor, attention_mask: Tensor | None, **kwargs) -> Tensor:
        return run_backbone(
            self.backbone,
            self.embed_tokens(input_ids),
            attention_mask,
            None if attention_mask is None else token_ranks(attention_mask),
            use_cache=False,
            **kwargs,
        ).last_hidden_state


def check_text(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    vocab_size: int,
    max_length: int,
    with_values: bool = True,
    is_encoded: bool = True,
) -> None:
    """Check text that enters a model: its shapes, and its values where they can be read.

    Of text that is not encoded (a part of a prompt, with the code of the whole), a row may be all padding.

    Raises:
        ValueError: for ids outside the vocabulary, a row longer than the context, an empty or all-padding row, or a
            mask of another shape.
    """
    check_ids(input_ids, vocab_size if with_values else None)
    check_length(input_ids.shape[1], max_length)
    check_shape("attention_mask", attention_mask, *input_ids.shape)
    if attention_mask is not None and with_values and is_encoded:
        check_rows(attention_mask)


def check_rows(attention_mask: Tensor) -> None:
    """Raise ValueError for a row that is all padding."""
    if is_readable(attention_mask) and (empty := (~attention_mask.bool().any(-1)).nonzero()).numel():
        raise ValueError(f"attention_mask: row {empty[0].item()} is all padding; leave it out of the batch.")


def check_length(length: int, max_length: int) -> None:
    if length > max_length:
        raise ValueError(
            f"a row of {length} tokens is longer than max_position_embeddings={max_length}: shorten or split the text."
        )


class EncoderDecoderPreTrainedModel(RemoteCodePreTrainedModel):
    """What models of an encoder, a bottleneck and a decoder share."""

    config: EncoderDecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _check_text(
        self, input_ids: Tensor, attention_mask: Tensor | None, in_forward: bool = False, is_encoded: bool = True
    ) -> None:
        """`check_text` with the config's sizes. Training on a device skips values: reading them would wait."""
        check_ids(input_ids)
        with_values = not in_forward or input_ids.is_cpu or not self.training
        sizes = self.config.vocab_size, self.config.max_position_embeddings
        check_text(input_ids, attention_mask, *sizes, with_values, is_encoded)

    def enable_input_require_grads(self) -> None:
        """As transformers does it, for the encoder's table too: adapters of both get their gradients."""
        super().enable_input_require_grads()
        embeddings = cast(TextEncoder, self.base_model.encoder).embed_tokens
        hook = embeddings.register_forward_hook(lambda layer, inputs, output: output.requires_grad_(True))
        getattr(self, "_require_grads_hooks", []).append(hook)  # those that transformers takes off again

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's defaults for projections, `embedding_std` for token embeddings; backbones keep their own."""
        if isinstance(module, nn.Linear):
            init_linear(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=embedding_std(self, module))

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Resizes the encoder's table along with the decoder's and the head."""
        encoder = cast(TextEncoder, self.base_model.encoder)  # every base model here has one
        encoder.embed_tokens = self._get_resized_embeddings(
            encoder.embed_tokens, new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        before = cast(nn.Embedding, self.get_input_embeddings()).num_embeddings
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        init_new_tokens(self, before, mean_resizing)
        return embeddings


__all__ = [
    "Bottleneck",
    "EncoderDecoderPreTrainedModel",
    "TextEncoder",
    "build_backbone",
    "check_length",
    "check_rows",
    "check_text",
    "refuse_arguments",
    "run_backbone",
]
