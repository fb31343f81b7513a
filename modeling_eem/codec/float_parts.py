"""The parts of a float model that the integer model is made of; the one place that knows the models' files."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_eem.models.bottleneck_eem import TextEncoder
from modeling_eem.models.configuration_eem import EEMConfig
from modeling_eem.models.configuration_masked_mixer import MaskedMixerConfig
from modeling_eem.models.modeling_eem import EEMForCausalLM
from modeling_eem.models.modeling_masked_mixer import MaskedMixerForCausalLM
from modeling_eem.models.quantization_eem import CODE_FORMATS, ScaledInteger

__all__ = ["CODE_FORMATS", "EEMConfig", "FloatParts", "ScaledInteger", "TextEncoder", "float_parts"]


@dataclass(frozen=True)
class FloatParts:
    """Decoder, embeddings, head, and of an EEM the projection of its code to the memory."""

    model: PreTrainedModel
    config: MaskedMixerConfig
    layers: Sequence[nn.Module]
    embedding: nn.Embedding
    head: nn.Linear
    introduction: str = "none"
    code_dtype: str | None = None
    code_size: int = 0

    @property
    def context(self) -> int:
        """Tokens of a window, BOS included."""
        return self.config.max_position_embeddings - int(self.introduction == "token")

    def memory_projection(self) -> tuple[Tensor, Tensor]:
        """`W_proj W_up [D, P]` and its bias `[D]` in float64, of an EEM that projects its code."""
        projection, up = self.model.model.memory_proj, self.model.model.encoder.bottleneck.up
        weight, bias = projection.weight.double(), projection.bias.double()
        if up is None:
            return weight, bias
        return weight @ up.weight.double(), weight @ up.bias.double() + bias


def float_parts(model: PreTrainedModel) -> FloatParts:
    """What to build from.

    Raises:
        ValueError: neither a MaskedMixerForCausalLM nor an EEMForCausalLM with a masked mixer as its decoder; a
            right-aligned decoder; a code without a storage format; no BOS token.
    """
    if isinstance(model, MaskedMixerForCausalLM):
        parts = FloatParts(model, model.config, model.model.layers, model.model.embed_tokens, model.lm_head)
    elif isinstance(model, EEMForCausalLM) and model.config.decoder_config.model_type == MaskedMixerConfig.model_type:
        inner, config = model.model, model.config
        if config.code_dtype is None:
            raise ValueError("the model's code has no storage format: set config.code_dtype, for example to 'int8'.")
        parts = FloatParts(
            model,
            config.decoder_config,
            inner.decoder.layers,
            inner.embed_tokens,
            model.lm_head,
            config.memory_introduction,
            config.code_dtype,
            config.code_size,
        )
    else:
        raise ValueError(
            f"a codec needs a MaskedMixerForCausalLM, or an EEMForCausalLM whose decoder is a masked mixer, not "
            f"{type(model).__name__}: raw logits of other models are not the same on every machine."
        )
    if parts.config.position_alignment != "left":
        raise ValueError("the decoder is right-aligned: windows of a codec begin on row 0; train with 'left'.")
    if parts.config.bos_token_id is None:
        raise ValueError("the model's config names no bos_token_id: every window begins with BOS.")
    return parts
