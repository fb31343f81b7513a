"""Entropy estimation model: an encoder squeezes a window into a code, a causal decoder predicts the window knowing it.

Unusual on purpose: by default the encoder reads the very tokens the decoder is scored on (the method's oracle; the
code's bits are charged beside the decoder's). `generate` encodes the prompt once, or takes a `code` and regenerates
the window from it. Source: Badger & Neligeorge 2025, arXiv 2511.10618.

Shapes: B batch, T text tokens, D decoder features, P numbers of the code.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.utils import GenerateOutput
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .bottleneck_eem import (
    EncoderDecoderPreTrainedModel,
    TextEncoder,
    build_backbone,
    check_length,
    is_masked_mixer,
    refuse_arguments,
    run_backbone,
)
from .cache_eem import EEMCache, check_same_code, same_occlusion
from .configuration_eem import EEMConfig
from .generation_masked_mixer import ContextGenerationMixin
from .layout_masked_mixer import check_ids, check_shape, is_readable, token_ranks
from .loss_eem import logits_and_loss, next_token_targets

logger = logging.get_logger(__name__)
OTHER_CODE = "a filled cache goes on with its own code: leave encoder_input_ids out."


@dataclass
class EEMModelOutputWithPast(BaseModelOutputWithPast):
    """`BaseModelOutputWithPast` and the `code [B, P]` the decoder was shown (None if it was occluded)."""

    hidden_states: tuple[Tensor | None, ...] | None = None
    code: Tensor | None = None


@dataclass
class EEMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, the `code [B, P]`, and on request `token_losses [B, T]`.

    A token's loss stands at the token itself, in nats; NaN where nothing was scored (the first token, label -100).
    """

    code: Tensor | None = None
    token_losses: Tensor | None = None


class EEMPreTrainedModel(EncoderDecoderPreTrainedModel):
    config: EEMConfig
    config_class = EEMConfig
    auto_map = {
        "AutoConfig": "configuration_eem.EEMConfig",
        "AutoModel": "modeling_eem.EEMModel",
        "AutoModelForCausalLM": "modeling_eem.EEMForCausalLM",
    }


class EEMModel(EEMPreTrainedModel):
    """Encoder, bottleneck and decoder, without a head."""

    _tp_plan = {"embed_tokens": "embedding_rowwise"}

    def __init__(self, config: EEMConfig):
        super().__init__(config)
        encoder_width, width = config.encoder_config.hidden_size, config.hidden_size
        is_projected = config.memory_introduction != "embedding"
        self.encoder = TextEncoder(config, has_up=is_projected)
        self.memory_proj = nn.Linear(encoder_width, width) if is_projected else None
        self.embed_tokens = nn.Embedding(config.vocab_size, width if is_projected else width - config.code_size)
        self.decoder = build_backbone("decoder_config", config.decoder_config)
        self.post_init()

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Codes `[B, P]` of rows `[B, T]`, rounded to `code_dtype` outside training, noisy in training.

        Raises:
            ValueError: ids outside the vocabulary, a row longer than the context, an empty or all-padding row.
        """
        self._check_text(input_ids, attention_mask)
        return self.encoder.bottleneck.quantize(self.encoder(input_ids, attention_mask, self.config), self.config)

    def memory(self, code: Tensor) -> Tensor:
        """The decoder's memory vector: `W_proj W_up z [B, D]`, or z itself with the `embedding` introduction."""
        return code if self.memory_proj is None else self.memory_proj(self.encoder.bottleneck.expand(code))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        encoder_input_ids: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        code: Tensor | None = None,
        occlude_memory: bool | Tensor = False,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> EEMModelOutputWithPast:
        """Decoder states `[B, T, D]` of the text; `hidden_states` leave out the memory's position too.

        In training, rows are occluded with probability `config.code_dropout`.

        Args:
            attention_mask: `[B, T]` (with a cache, `[B, past + T]`), 0 on padding.
            encoder_input_ids, encoder_attention_mask: what the encoder reads instead of `input_ids`.
            code: `[B, P]` from `encode`, instead of encoding; it gets no noise.
            occlude_memory: decode without the memory: the introduced vector is zero and, where there is attention,
                masked. A boolean tensor `[B]` decides row by row. A filled cache goes on as it was begun.

        Raises:
            ValueError: for whatever `encode` refuses, in `input_ids` too; a mask or a code of another shape;
                `position_ids` (packed rows) or `inputs_embeds`, which have no meaning for a model with one code a row
                and two embedding tables; a filled cache without its code, with another or with another occlusion, or
                a static cache; left padding that would push the memory out of a decoder's sliding window.
        """
        refuse_arguments(kwargs)
        check_ids(input_ids)
        _refuse_two_codes(code, encoder_input_ids, encoder_attention_mask)
        check_shape("code", code, input_ids.shape[0], self.config.code_size)
        if isinstance(occlude_memory, Tensor) and occlude_memory.dtype == torch.bool:
            check_shape("occlude_memory", occlude_memory, input_ids.shape[0])
        elif not isinstance(occlude_memory, bool):
            raise ValueError("occlude_memory must be True, False or a boolean tensor [batch].")
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        if self.is_activation_checkpointing and self.training:
            use_cache = False
        if past_key_values is None:
            past_key_values = EEMCache(config) if use_cache else None
        elif not isinstance(past_key_values, EEMCache):
            past_key_values = EEMCache(config, past_key_values)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past_length:
            check_length(past_length + input_ids.shape[1], config.max_position_embeddings)
            shape = (input_ids.shape[0], past_length + input_ids.shape[1])
            check_shape("attention_mask (of cached and new tokens)", attention_mask, *shape)
            assert past_key_values is not None  # it holds the past
            if encoder_input_ids is not None:
                raise ValueError(OTHER_CODE)
            occlude_memory = same_occlusion(past_key_values.occluded, occlude_memory)
        else:
            self._check_text(input_ids, attention_mask, in_forward=True, is_encoded=code is None)
            # Here, not in EEMForCausalLM: a trainer with its own loss runs this model and the head separately.
            if self.training and config.code_dropout and occlude_memory is False:
                occlude_memory = torch.rand(input_ids.shape[0], device=input_ids.device) < config.code_dropout

        if code is not None:
            code = self.encoder.bottleneck.quantize(code, config)
            if past_length and past_key_values is not None:
                check_same_code(past_key_values.code, code)
        elif past_key_values is not None and past_length:
            code = past_key_values.code
        elif isinstance(occlude_memory, Tensor) or not occlude_memory:
            if encoder_input_ids is None:
                encoder_input_ids, encoder_attention_mask = input_ids, attention_mask
            else:
                self._check_text(encoder_input_ids, encoder_attention_mask, in_forward=True)
                check_shape("encoder_input_ids", encoder_input_ids, input_ids.shape[0], encoder_input_ids.shape[1])
            exact = self.encoder(encoder_input_ids, encoder_attention_mask, config)
            code = self.encoder.bottleneck.quantize(exact, config)
        check_shape("code", code, input_ids.shape[0], config.code_size)
        if past_key_values is not None:
            past_key_values.code, past_key_values.occluded = code, occlude_memory

        is_introduced = config.num_memory_positions and not past_length
        inputs_embeds = self._introduce(self.embed_tokens(input_ids), code, occlude_memory, past_length)
        decoder_mask, position_ids = self._positions(input_ids, attention_mask, occlude_memory, past_length)
        outputs = run_backbone(
            self.decoder,
            inputs_embeds,
            decoder_mask,
            position_ids,
            past_key_values=None if past_key_values is None else past_key_values.decoder_cache,
            use_cache=past_key_values is not None,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            **kwargs,
        )
        last_hidden_state, hidden_states = outputs.last_hidden_state, outputs.hidden_states
        if is_introduced:
            last_hidden_state = last_hidden_state[:, 1:].contiguous()
            # With output_hidden_states=[…] the layers that were not selected are None.
            hidden_states = hidden_states and tuple(None if s is None else s[:, 1:] for s in hidden_states)
        return EEMModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            past_key_values=past_key_values,
            hidden_states=hidden_states,
            attentions=outputs.get("attentions"),
            code=code,
        )

    def _introduce(self, embeds_BTD: Tensor, code: Tensor | None, occluded: bool | Tensor, past_length: int) -> Tensor:
        """The decoder's inputs, with zeros for an occluded memory. After the first step the cache holds the memory."""
        if self.config.num_memory_positions and past_length:
            return embeds_BTD  # the cache holds the memory
        if not isinstance(occluded, Tensor) and occluded:
            width = self.config.hidden_size if self.memory_proj is not None else self.config.code_size
            memory = embeds_BTD.new_zeros(embeds_BTD.shape[0], width)
        elif code is None:
            raise ValueError("this cache was filled without a code: pass the code it belongs to as code=.")
        else:
            memory = self.memory(code.to(embeds_BTD.dtype))
            if isinstance(occluded, Tensor):
                memory = memory.masked_fill(occluded[:, None].to(memory.device), 0.0)
        return self.introduce(memory.to(embeds_BTD.device), embeds_BTD)

    def introduce(self, memory: Tensor, embeds_BTD: Tensor) -> Tensor:
        """The decoder's inputs: token embeddings with a row's `memory()` before them, beside them or added."""
        if self.config.memory_introduction == "token":
            return torch.cat([memory[:, None], embeds_BTD], dim=1)
        if self.config.memory_introduction == "embedding":
            return torch.cat([memory[:, None].expand(-1, embeds_BTD.shape[1], -1), embeds_BTD], dim=-1)
        return embeds_BTD + memory[:, None]

    def _positions(
        self, input_ids: Tensor, attention_mask: Tensor | None, occluded: bool | Tensor, past_length: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Mask and positions for the decoder: the memory at 0, never padding; text at its rank among real tokens."""
        slots = self.config.num_memory_positions
        is_masked = slots and occluded is not False and not is_masked_mixer(self.config.decoder_config)
        if attention_mask is None and is_masked:
            attention_mask = input_ids.new_ones(input_ids.shape[0], past_length + input_ids.shape[1])
        if attention_mask is None:
            return None, None
        self._check_window(attention_mask)
        ranks_BT = token_ranks(attention_mask)[:, past_length:]
        if not slots:
            return attention_mask, ranks_BT
        decoder_mask = F.pad(attention_mask, (slots, 0), value=1)
        if is_masked:
            hidden_B1 = torch.as_tensor(occluded, device=decoder_mask.device).reshape(-1, 1)
            decoder_mask = torch.cat(
                [decoder_mask[:, :slots].masked_fill(hidden_B1, 0), decoder_mask[:, slots:]], dim=1
            )
        return decoder_mask, ranks_BT + slots if past_length else F.pad(ranks_BT + slots, (slots, 0))

    def _check_window(self, attention_mask: Tensor) -> None:
        """ValueError where left padding stands between the memory and a text whose decoder sees a few tokens back."""
        config = self.config
        decoder = config.decoder_config  # not every config has one of these, and some say -1 for no window
        window = getattr(decoder, "sliding_window", None) or getattr(decoder, "attention_chunk_size", None) or 0
        is_cut = window > 0 and config.num_memory_positions and attention_mask.shape[1] >= window
        if is_cut and is_readable(attention_mask) and not attention_mask[:, 0].bool().all():
            raise ValueError(
                f"this decoder sees {window} tokens, and left padding would push the memory out of them: pad on the "
                "right, or leave padding out."
            )


def _refuse_two_codes(code: Tensor | None, encoder_input_ids: Tensor | None, encoder_mask: Tensor | None) -> None:
    """ValueError for more than one thing to make a code of, or for a mask of nothing."""
    if code is not None and encoder_input_ids is not None:
        raise ValueError("pass either code or encoder_input_ids, of which a code would be made.")
    if encoder_mask is not None and encoder_input_ids is None:
        raise ValueError("encoder_attention_mask is the mask of encoder_input_ids: pass these too.")


class EEMForCausalLM(EEMPreTrainedModel, ContextGenerationMixin):
    """Entropy estimation model with a bias-free language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: EEMConfig):
        super().__init__(config)
        self.model = EEMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """See `EEMModel.encode`."""
        return self.model.encode(input_ids, attention_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        encoder_input_ids: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        code: Tensor | None = None,
        occlude_memory: bool | Tensor = False,
        loss_weights: Tensor | None = None,
        output_logits: bool | None = None,
        output_token_losses: bool = False,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> EEMCausalLMOutputWithPast:
        """Logits `[B, T, V]`, one position a text token; see `EEMModel.forward` for the memory, masks and errors.

        Without `encoder_input_ids` and `code` the encoder reads `input_ids`, the tokens that are scored. That is right
        for training and for entropies. A call without labels, code and cache warns of it once.

        Args:
            labels: `[B, T]`, shifted here; -100 is not scored. The loss is in nats a labelled token, in float32, and
                does not hold the code's bits.
            loss_weights: `[B, T]`, the weight of each token's loss; the denominator stays the labelled tokens.
            output_logits: whether to return logits; by default yes, except in training with labels, where head and
                loss run in chunks and the logits never exist whole.
            output_token_losses: whether to return `token_losses`; needs labels.
            num_items_in_batch: labelled tokens of the whole optimizer step, the loss's denominator.
            shift_labels: `[B, T]` labels that are already shifted (context parallelism). It is not a named parameter,
                because the Trainer would take that for a second column of labels.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        if output_token_losses and labels is None:
            raise ValueError("output_token_losses=True needs labels: they are what is scored.")
        if labels is not None and use_cache is None and self.training:
            use_cache = False
        knows_nothing = labels is None and code is None and past_key_values is None and encoder_input_ids is None
        if knows_nothing and occlude_memory is False and not torch.compiler.is_compiling():
            logger.warning_once(
                "EEMForCausalLM was called without labels, code, encoder_input_ids or a cache: its encoder reads "
                "input_ids, the very tokens the logits predict. Scores from these logits are not a language model's."
            )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            encoder_input_ids=encoder_input_ids,
            encoder_attention_mask=encoder_attention_mask,
            code=code,
            occlude_memory=occlude_memory,
            use_cache=use_cache,
            **kwargs,
        )
        check_shape("loss_weights", loss_weights, *input_ids.shape)
        logits, loss, target_losses = logits_and_loss(
            outputs.last_hidden_state,
            self.lm_head,
            None if labels is None else next_token_targets(labels, shift_labels),
            output_logits=labels is None or not self.training if output_logits is None else output_logits,
            logits_to_keep=logits_to_keep,
            loss_weights_BT=None if loss_weights is None else F.pad(loss_weights[:, 1:], (0, 1)),
            num_items_in_batch=num_items_in_batch,
        )
        token_losses = None
        if output_token_losses and target_losses is not None:
            token_losses = F.pad(target_losses[:, :-1], (1, 0), value=float("nan"))
        return EEMCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            code=outputs.code,
            token_losses=token_losses,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        code: Tensor | None = None,
        encoder_input_ids: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        occlude_memory: bool | Tensor = False,
        **kwargs,
    ) -> GenerateOutput | torch.LongTensor:
        """`GenerationMixin.generate` with one code for the whole text.

        The code is `code`, else that of `encoder_input_ids`, else that of the prompt; it is made once and kept. With
        `code` you may leave out the prompt: the text is regenerated from its code alone.
        """
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        if input_ids is not None:
            check_ids(input_ids)  # before a code is made from them
        _refuse_two_codes(code, encoder_input_ids, encoder_attention_mask)

        def setting(name: str) -> Any:
            """Of the call, else of its config, else of the model's, as transformers takes them."""
            given = (kwargs.get(name), getattr(generation_config, name, None), getattr(self.generation_config, name))
            return next((value for value in given if value is not None), None)

        if setting("guidance_scale") not in (None, 1):
            raise ValueError("guidance_scale needs a pass without the prompt, whose code this model would still see.")
        cache = kwargs.get("past_key_values")
        if cache is not None and not isinstance(cache, EEMCache):
            cache = kwargs["past_key_values"] = EEMCache(self.config, cache)
        if cache is not None and cache.get_seq_length():  # it goes on with its own code
            if encoder_input_ids is not None:
                raise ValueError(OTHER_CODE)
        elif code is None and occlude_memory is not True:
            if encoder_input_ids is None and input_ids is not None:
                encoder_input_ids = input_ids
                encoder_attention_mask = kwargs.get("attention_mask")
                if encoder_attention_mask is None:
                    encoder_attention_mask = _infer_mask(input_ids, setting("pad_token_id"), setting("eos_token_id"))
            if encoder_input_ids is not None:
                code = self.encode(encoder_input_ids, encoder_attention_mask)
        return super().generate(  # pyright: ignore[reportAttributeAccessIssue] - its `self` is no PreTrainedModel
            inputs, generation_config, code=code, occlude_memory=occlude_memory, **kwargs
        )

    def _get_candidate_generator(self, *args, model_kwargs: dict, **kwargs) -> CandidateGenerator:
        # An assistant does not get this model's code; an assistant that is an EEM encodes the prompt itself.
        model_kwargs = {key: value for key, value in model_kwargs.items() if key not in ("code", "occlude_memory")}
        return super()._get_candidate_generator(  # pyright: ignore[reportAttributeAccessIssue] - as in `generate`
            *args, model_kwargs=model_kwargs, **kwargs
        )


def _infer_mask(input_ids: Tensor, pad: int | None, eos: int | list[int] | None) -> Tensor | None:
    """The mask that `generate` infers for a prompt without one: padding is where the pad token is."""
    if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
        return None
    return (input_ids != pad).long()


__all__ = ["EEMCache", "EEMForCausalLM", "EEMModel", "EEMPreTrainedModel"]
