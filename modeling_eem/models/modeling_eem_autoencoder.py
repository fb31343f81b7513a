"""Autoencoder: a window becomes one vector, and a decoder without token embeddings regenerates all of it in one pass.

Shapes: B batch, T tokens, E encoder features, D decoder features, P numbers of the code, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple

from .bottleneck_eem import (
    EncoderDecoderPreTrainedModel,
    TextEncoder,
    build_backbone,
    check_length,
    check_rows,
    refuse_arguments,
    run_backbone,
)
from .configuration_eem import EEMAutoencoderConfig
from .layout_masked_mixer import check_integers, check_shape, check_tensor, token_ranks
from .loss_eem import IGNORE_INDEX, logits_and_loss


@dataclass
class EEMAutoencoderOutput(ModelOutput):
    """`loss` in nats a token, `logits [B, T, V]` of the tokens themselves (unshifted), and the `code [B, P]`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    code: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Repeat(nn.Module):
    """The vector at every position, through a Linear bridge if the decoder has another width."""

    def __init__(self, encoder_width: int, decoder_width: int):
        super().__init__()
        self.bridge = nn.Linear(encoder_width, decoder_width) if encoder_width != decoder_width else nn.Identity()

    def forward(self, vector_BE: Tensor, position_ids_BT: Tensor) -> Tensor:
        return self.bridge(vector_BE)[:, None].expand(-1, position_ids_BT.shape[1], -1)


class Unroll(nn.Module):
    """At position i the circular window of E/2 features that begins at feature `i mod E`, through one Linear."""

    def __init__(self, encoder_width: int, decoder_width: int):
        super().__init__()
        self.width = encoder_width
        self.window_proj = nn.Linear(encoder_width // 2, decoder_width)

    def forward(self, vector_BE: Tensor, position_ids_BT: Tensor) -> Tensor:
        window = self.width // 2
        circle = torch.cat([vector_BE, vector_BE[:, : window - 1]], dim=-1)
        windows_BED = self.window_proj(circle.unfold(-1, window, 1))
        starts_BT1 = (position_ids_BT % self.width)[..., None].expand(vector_BE.shape[0], -1, windows_BED.shape[-1])
        return windows_BED.gather(1, starts_BT1)


class EEMAutoencoder(EncoderDecoderPreTrainedModel):
    """Encoder, bottleneck, expansion, decoder and head."""

    config: EEMAutoencoderConfig
    config_class = EEMAutoencoderConfig
    auto_map = {
        "AutoConfig": "configuration_eem.EEMAutoencoderConfig",
        "AutoModel": "modeling_eem_autoencoder.EEMAutoencoder",
    }

    def __init__(self, config: EEMAutoencoderConfig):
        super().__init__(config)
        expansion = {"repeat": Repeat, "unroll": Unroll}[config.memory_expansion]
        self.encoder = TextEncoder(config)
        self.expansion = expansion(config.encoder_config.hidden_size, config.hidden_size)
        self.decoder = build_backbone("decoder_config", config.decoder_config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Codes `[B, P]` of rows `[B, T]`, rounded to `code_dtype` outside training, noisy in training.

        Raises:
            ValueError: ids outside the vocabulary, a row longer than the context, an empty or all-padding row.
        """
        self._check_text(input_ids, attention_mask)
        return self.encoder.bottleneck.quantize(self.encoder(input_ids, attention_mask, self.config), self.config)

    @torch.no_grad()
    def reconstruct(self, code: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The most likely token at each position, `[B, T]`; without a mask to give lengths, at all n positions."""
        return self(code=code, attention_mask=attention_mask).logits.argmax(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        code: Tensor | None = None,
        output_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> EEMAutoencoderOutput:
        """Regenerates the text of `input_ids [B, T]`, or of a `code [B, P]` alone.

        Args:
            attention_mask: `[B, T]`, 0 on padding. With a code alone it gives the lengths; by default n.
            labels: `[B, T]`, NOT shifted: position t regenerates token t. -100 and padding are not scored.
            output_logits: whether to return logits; by default yes, except in training with labels.
            num_items_in_batch: labelled tokens of the whole optimizer step, the loss's denominator.

        Raises:
            ValueError: for neither or both of `input_ids` and `code`; whatever `encode` refuses; a mask, labels or a
                code of another shape; `position_ids` or `inputs_embeds`.
        """
        refuse_arguments(kwargs)
        kwargs.pop("use_cache", None)  # all tokens are regenerated in one pass: there is nothing to keep
        if input_ids is not None and code is None:
            self._check_text(input_ids, attention_mask, in_forward=True)
            code_BP: Tensor = self.encoder(input_ids, attention_mask, self.config)
        elif code is None or input_ids is not None:
            raise ValueError("Pass either input_ids, to encode and regenerate, or code, to regenerate.")
        else:
            code_BP = code
        check_tensor("code", code_BP)
        if code_BP.ndim != 2 or code_BP.shape[0] == 0 or code_BP.shape[1] != self.config.code_size:
            raise ValueError(f"code must be [batch, {self.config.code_size}], got {list(code_BP.shape)}.")
        code_BP = self.encoder.bottleneck.quantize(code_BP, self.config)

        length = self.config.max_position_embeddings if input_ids is None else input_ids.shape[1]
        if attention_mask is None:
            position_ids = torch.arange(length, device=code_BP.device)[None]
        else:
            if input_ids is None:
                check_tensor("attention_mask", attention_mask)
                if attention_mask.ndim != 2 or attention_mask.numel() == 0:
                    shape = list(attention_mask.shape)
                    raise ValueError(f"attention_mask must be [batch, tokens] with at least one token, got {shape}.")
                length = attention_mask.shape[1]
                check_length(length, self.config.max_position_embeddings)
                check_shape("attention_mask", attention_mask, code_BP.shape[0], length)
                check_rows(attention_mask)
            position_ids = token_ranks(attention_mask)
        vector = self.encoder.bottleneck.expand(code_BP.to(self.encoder.embed_tokens.weight.dtype))
        outputs = run_backbone(
            self.decoder,
            self.expansion(vector, position_ids),
            attention_mask,
            position_ids,
            use_cache=False,
            output_hidden_states=(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
            **kwargs,
        )
        targets = labels
        if labels is not None and attention_mask is not None:
            check_integers("labels", labels)
            check_shape("labels", labels, *attention_mask.shape)
            targets = labels.masked_fill(attention_mask == 0, IGNORE_INDEX)
        logits, loss, _ = logits_and_loss(
            outputs.last_hidden_state,
            self.lm_head,
            targets,
            output_logits=labels is None or not self.training if output_logits is None else output_logits,
            num_items_in_batch=num_items_in_batch,
        )
        return EEMAutoencoderOutput(
            loss=loss,
            logits=logits,
            code=code_BP,
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )


__all__ = ["EEMAutoencoder"]
