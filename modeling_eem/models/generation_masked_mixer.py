"""Generation that ends at the context, since there are no positions beyond it."""

from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.utils import logging

from .layout_masked_mixer import check_ids, check_shape

logger = logging.get_logger(__name__)
# Tokens that are in the given cache and not in the given ids, of the `generate` that is running.
_ONLY_CACHED: ContextVar[int] = ContextVar("only_cached", default=0)


class ContextGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model of `config.max_position_embeddings` positions and no more."""

    config: PreTrainedConfig

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """`GenerationMixin.generate`.

        Raises:
            ValueError: for ids that are not integers `[batch, tokens]`, or a mask of another shape.
            TypeError: for ids or a mask that are not tensors.
        """
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        only_cached = 0
        if input_ids is not None:
            check_ids(input_ids)
            mask = kwargs.get("attention_mask")
            if kwargs.get("past_key_values") is None:
                check_shape("attention_mask", mask, *input_ids.shape)
            elif mask is not None:
                only_cached = max(mask.shape[-1] - input_ids.shape[1], 0)
        entered = _ONLY_CACHED.set(only_cached)
        try:
            return super().generate(inputs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            _ONLY_CACHED.reset(entered)

    def _prepare_generated_length(
        self,
        generation_config: GenerationConfig,
        *,
        input_ids_length: int,
        inputs_tensor: Tensor,
        **kwargs: Any,
    ) -> GenerationConfig:
        """Allows one token past the context: the model never reads the last one."""
        # No model fits transformers' annotation of `self`: its protocol wants `encoder`, `hf_quantizer` and others.
        generation_config = super()._prepare_generated_length(  # pyright: ignore[reportAttributeAccessIssue]
            generation_config=generation_config,
            input_ids_length=input_ids_length,
            inputs_tensor=inputs_tensor,
            **kwargs,
        )
        context = self.config.max_position_embeddings
        room = context + 1 - inputs_tensor.shape[1] - _ONLY_CACHED.get()
        # The model itself refuses a prompt that leaves no room, before the first token.
        if 0 < room < generation_config.max_length - input_ids_length:
            logger.warning(
                f"Generation ends after {room} tokens, where the context (max_position_embeddings={context}) is full; "
                f"{generation_config.max_length - input_ids_length} were asked for."
            )
            generation_config.max_length = input_ids_length + room
        return generation_config


__all__ = ["ContextGenerationMixin"]
