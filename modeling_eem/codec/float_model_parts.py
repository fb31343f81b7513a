"""The parts of a float model that the integer model is built from; only this file knows the models' files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import modeling_eem.registration  # noqa: F401  # AutoModel makes an encoder's backbone
from modeling_eem.models.bottleneck_eem import TextEncoder, is_masked_mixer
from modeling_eem.models.configuration_eem import EEMConfig
from modeling_eem.models.configuration_masked_mixer import MaskedMixerConfig
from modeling_eem.models.modeling_eem import EEMForCausalLM
from modeling_eem.models.modeling_masked_mixer import (
    MaskedMixerBlock,
    MaskedMixerForCausalLM,
    MaskedMixerMixing,
)
from modeling_eem.models.quantization_eem import CODE_FORMATS, ScaledInteger

__all__ = [
    "CODE_FORMATS",
    "CodeParts",
    "EEMConfig",
    "FloatParts",
    "MaskedMixerBlock",
    "MaskedMixerMixing",
    "ScaledInteger",
    "TextEncoder",
    "float_parts",
]


@dataclass(frozen=True)
class CodeParts:
    """The parts of an EEM beside its decoder: encoder, format of the code, and projection of a code to the memory.

    `memory_proj` is None if the code itself is the memory.
    """

    config: EEMConfig
    encoder: TextEncoder
    memory_proj: nn.Linear | None
    dtype: str

    def memory_projection(self) -> tuple[Tensor, Tensor]:
        """`W_proj W_up [D, P]` and its bias `[D]` in float64; the identity if the code itself is the memory."""
        if self.memory_proj is None:
            size = self.config.code_size
            return torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        weight, bias = self.memory_proj.weight.double(), self.memory_proj.bias.double()
        up = self.encoder.bottleneck.up
        if up is None:
            return weight, bias
        return weight @ up.weight.double(), weight @ up.bias.double() + bias


@dataclass(frozen=True)
class FloatParts:
    """Decoder, embeddings and head, and for an EEM the parts of its code."""

    model: PreTrainedModel
    config: MaskedMixerConfig
    layers: Sequence[MaskedMixerBlock]
    embedding: nn.Embedding
    head: nn.Linear
    bos_token_id: int
    code: CodeParts | None

    @property
    def introduction(self) -> str:
        """How the memory enters; "none" without a code."""
        return "none" if self.code is None else self.code.config.memory_introduction

    @property
    def context(self) -> int:
        """Tokens of a window, BOS included."""
        return self.config.max_position_embeddings - int(self.introduction == "token")


_Model = TypeVar("_Model", bound=PreTrainedModel)


def _is_one(model: PreTrainedModel, kind: type[_Model]) -> TypeGuard[_Model]:
    """Whether the model is of a class by its name. Code from a checkpoint's folder holds a second class of that
    name."""
    return any(its.__name__ == kind.__name__ for its in type(model).__mro__)


def float_parts(model: PreTrainedModel) -> FloatParts:
    """The parts to build from.

    Raises:
        ValueError: for a model that is neither a MaskedMixerForCausalLM nor an EEMForCausalLM with a masked mixer as
            its decoder; a right-aligned decoder; a code without a storage format; no BOS token; a context of one
            token; an activation with parameters.
    """
    code = None
    if _is_one(model, MaskedMixerForCausalLM):
        decoder, embedding = model.model, model.model.embed_tokens
    elif _is_one(model, EEMForCausalLM) and is_masked_mixer(model.model.decoder.config):
        inner, its_config = model.model, model.config
        if its_config.code_dtype is None:
            raise ValueError("the model's code has no storage format: set config.code_dtype, for example to 'int8'.")
        decoder, embedding = model.model.decoder, inner.embed_tokens
        code = CodeParts(its_config, inner.encoder, inner.memory_proj, its_config.code_dtype)
    else:
        raise ValueError(
            f"a codec needs a MaskedMixerForCausalLM, or an EEMForCausalLM whose decoder is a masked mixer, not "
            f"{type(model).__name__}: other models' logits differ between machines."
        )
    if decoder.config.position_alignment != "left":
        raise ValueError("the decoder is right-aligned, but windows of a codec begin on row 0: train with 'left'.")
    bos_token_id = decoder.config.bos_token_id
    if bos_token_id is None:
        raise ValueError("the model's config names no bos_token_id: set it, because every window begins with BOS.")
    layers = list(cast(Iterable[MaskedMixerBlock], decoder.layers))  # a ModuleList does not type its items
    config = cast(MaskedMixerConfig, decoder.config)
    if config.max_position_embeddings < 2:
        raise ValueError("the model's context is 1 token, and BOS fills it: no text fits in a window.")
    if any(True for layer in layers for _ in layer.mlp.act_fn.parameters()):
        raise ValueError(
            f"the activation {config.hidden_act!r} has parameters of its own: a codec has no table for it."
        )
    return FloatParts(model, config, layers, embedding, model.lm_head, bos_token_id, code)
