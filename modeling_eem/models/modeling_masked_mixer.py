"""Masked mixer: a decoder stack whose token mixing is one learned lower-triangular matrix over positions.

Unusual on purpose: pre-norm blocks without a norm after the last; no positional encoding and no dropout; the head
sits on the raw residual stream; the batch runs internally as `[T, B, D]` in memory, because token mixing is then a
plain matrix product. Outside, everything is `[B, T, D]` as elsewhere. Source: Badger 2024, arXiv 2409.01482.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .cache_masked_mixer import MixingLayer, grow_in_place, is_ranked, set_ranked
from .configuration_masked_mixer import MaskedMixerConfig
from .generation_masked_mixer import ContextGenerationMixin
from .hub_eem import RemoteCodePreTrainedModel
from .layout_masked_mixer import (
    AlignedLayout,
    ContinuedLayout,
    Layout,
    check_ids,
    check_tensor,
    choose_layout,
    has_ranks,
)
from .loss_eem import logits_and_loss, next_token_targets, token_classification_loss
from .mixing_masked_mixer import (
    activated_linear,
    continued_token_mixing,
    gathered_token_mixing,
    linear,
    next_token_mixing,
    token_mixing,
    without_future,
)


class MaskedMixerMixing(nn.Module):
    """Token mixing of one block: flat, or with `num_mixing_heads` projections and matrices.

    `weight` is `[n, n]`, with taps `[n, n, k]`, with heads `[h, n, n]` or `[h, n, n, k]`; `bias` is `[n]` or `[h, n]`.
    A causal model never uses, differentiates or saves a value above the diagonal.
    """

    def __init__(self, config: MaskedMixerConfig, layer_idx: int):
        super().__init__()
        n, d, h, k = (
            config.max_position_embeddings,
            config.hidden_size,
            config.num_mixing_heads,
            config.mixing_kernel_size,
        )
        self.layer_idx = layer_idx
        self.is_causal = config.is_causal
        self.is_right_aligned = config.position_alignment == "right"
        self.num_heads = max(h, 1)
        self.kernel_size = k
        self.weight = nn.Parameter(torch.empty((h,) * (h > 0) + (n, n) + (k,) * (k > 1)))
        self.bias = nn.Parameter(torch.empty((h,) * (h > 0) + (n,)))
        self.in_proj = nn.Linear(d, d) if h else None  # the heads' Linear(d, d / h), side by side
        self.out_proj = nn.Linear(d, d) if h else None
        if self.is_causal:
            # A checkpoint's values above the diagonal (another program's) are neither used nor saved again.
            self.register_state_dict_post_hook(MaskedMixerMixing._drop_future)

    @staticmethod
    def _drop_future(module: "MaskedMixerMixing", state_dict: dict, prefix: str, _metadata: dict) -> None:
        weight = state_dict.get(prefix + "weight")  # None if it is parametrized or pruned: then it is made of others
        # A sharded weight must stay sharded.
        if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter) or weight.is_meta:
            return
        if not weight.numel():  # DeepSpeed ZeRO-3 keeps the values of a parameter elsewhere
            return
        clean = module.without_future(weight)
        if not torch.equal(clean, weight):  # else the parameter itself: what is written into it reaches the model
            state_dict[prefix + "weight"] = clean

    def without_future(self, weight: Tensor) -> Tensor:
        """`weight` with zeros above the diagonal."""
        return weight.tril() if self.kernel_size == 1 else without_future(weight)

    def forward(self, x_TBD: Tensor, layout: Layout, past_key_values: Cache | None = None) -> Tensor:
        if self.in_proj is not None:
            x_TBD = linear(self.in_proj, x_TBD)
        held_TBD = x_TBD  # the new tokens, after those of the cache
        if past_key_values is not None:
            keys = x_TBD.transpose(0, 1)[:, None]
            held_TBD = past_key_values.update(keys, keys[..., :0], self.layer_idx)[0][:, 0].transpose(0, 1)
        n = self.bias.shape[-1]
        weight_HTTK = self.weight.view(self.num_heads, n, n, self.kernel_size)
        bias_HT = self.bias.view(self.num_heads, n)
        if isinstance(layout, AlignedLayout):
            y_TBD = self._mix_aligned(weight_HTTK, bias_HT, x_TBD, layout)
        elif isinstance(layout, ContinuedLayout):
            if past_key_values is None:
                raise ValueError("gradient checkpointing drops the cache that this call continues: use one of them.")
            cached = past_key_values.layers[self.layer_idx]
            if layout.new_length == 1 and isinstance(cached, MixingLayer) and cached.is_steady:
                y_TBD, cached.ahead = next_token_mixing(weight_HTTK, bias_HT, held_TBD, cached.ahead)
            else:
                y_TBD = continued_token_mixing(weight_HTTK, bias_HT, held_TBD, layout.new_length)
        else:
            x_BTHE = held_TBD.transpose(0, 1).unflatten(-1, (self.num_heads, -1))
            y_BTHE = gathered_token_mixing(
                weight_HTTK, bias_HT, x_BTHE, layout.rows_BQ, layout.columns_BT, layout.visible_BQT
            )
            y_TBD = y_BTHE.flatten(2).transpose(0, 1)
        return y_TBD if self.out_proj is None else linear(self.out_proj, y_TBD)

    def _mix_aligned(self, weight_HTTK: Tensor, bias_HT: Tensor, x_TBD: Tensor, layout: AlignedLayout) -> Tensor:
        length = x_TBD.shape[0]
        first = bias_HT.shape[-1] - length if self.is_right_aligned else 0
        rows = slice(first, first + length)
        x_HTBE = layout.align(x_TBD).unflatten(-1, (self.num_heads, -1)).movedim(2, 0)
        y_HTBE = token_mixing(weight_HTTK[:, rows, rows], bias_HT[:, rows], x_HTBE, self.is_causal)
        return layout.restore(y_HTBE.movedim(0, 2).flatten(2))


class MaskedMixerMLP(nn.Module):
    """`Linear(d, intermediate) -> activation -> Linear(intermediate, d)`, with biases."""

    def __init__(self, config: MaskedMixerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return activated_linear(self.down_proj, self.act_fn, linear(self.up_proj, x))


class MaskedMixerBlock(GradientCheckpointingLayer):
    """`x = x + Mix(LN(x)); x = x + MLP(LN(x))`."""

    def __init__(self, config: MaskedMixerConfig, layer_idx: int):
        super().__init__()
        self.mixing_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mixing = MaskedMixerMixing(config, layer_idx)
        self.mlp_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MaskedMixerMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        layout: Layout | None = None,
        past_key_values: Cache | None = None,
        read_positions: Tensor | None = None,
    ) -> Tensor:
        # The tensors that pass between blocks look like [B, T, D] and lie in memory as [T, B, D]: no copies here.
        x_TBD = hidden_states.transpose(0, 1)
        x_TBD = x_TBD + self.mixing(self.mixing_layernorm(x_TBD), layout, past_key_values)
        if read_positions is not None:
            x_TBD = x_TBD[read_positions, torch.arange(x_TBD.shape[1], device=x_TBD.device)][None]
        x_TBD = x_TBD + self.mlp(self.mlp_layernorm(x_TBD))
        return x_TBD.transpose(0, 1)


class MaskedMixerPreTrainedModel(RemoteCodePreTrainedModel):
    config: MaskedMixerConfig
    config_class = MaskedMixerConfig
    auto_map = {
        "AutoConfig": "configuration_masked_mixer.MaskedMixerConfig",
        "AutoModel": "modeling_masked_mixer.MaskedMixerModel",
        "AutoModelForCausalLM": "modeling_masked_mixer.MaskedMixerForCausalLM",
        "AutoModelForTokenClassification": "modeling_masked_mixer.MaskedMixerForTokenClassification",
    }
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MaskedMixerBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _can_record_outputs = {"hidden_states": MaskedMixerBlock}
    # There is no attention here, so every implementation of it is as good as any other.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's defaults; `embedding_std`; mixing as a 1-D convolution, with zeros above the diagonal."""
        if isinstance(module, nn.Linear):
            init_linear(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=embedding_std(self, module))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, MaskedMixerMixing):
            bound = 1 / math.sqrt(module.bias.shape[-1] * module.kernel_size)
            init.uniform_(module.bias, -bound, bound)
            init.uniform_(module.weight, -bound, bound)
            if module.is_causal:
                init.copy_(module.weight, module.without_future(module.weight))

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        before = cast(nn.Embedding, self.get_input_embeddings()).num_embeddings
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        init_new_tokens(self, before, mean_resizing)
        return embeddings


@torch.no_grad()
def init_new_tokens(model: PreTrainedModel, before: int, mean_resizing: bool) -> None:
    """The embeddings of tokens from `before` on, of a tied head: transformers initialises a table that is not the
    model's yet, and so with the deviation of one that is no head."""
    embedding = model.get_input_embeddings()
    if model.config.tie_word_embeddings and not mean_resizing and isinstance(embedding, nn.Embedding):
        embedding.weight[before:].normal_(std=embedding_std(model, embedding))


def embedding_std(model: PreTrainedModel, embedding: nn.Embedding) -> float:
    """Initial standard deviation of token embeddings: 1, or `d**-0.5` if they are the head's weights too.

    With 1, a tied head's first logits would be `sqrt(d)` wide: at d = 256 the loss began at 243 nats a token.
    """
    is_head = model.config.tie_word_embeddings and embedding is model.get_input_embeddings()
    return embedding.embedding_dim**-0.5 if is_head else 1.0


def init_linear(module: nn.Linear) -> None:
    """PyTorch's default: weight and bias uniform within `1 / sqrt(in_features)`."""
    bound = 1 / math.sqrt(module.in_features)
    init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        init.uniform_(module.bias, -bound, bound)


class MaskedMixerModel(MaskedMixerPreTrainedModel):
    """The stack of blocks on token embeddings, without a head."""

    def __init__(self, config: MaskedMixerConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([MaskedMixerBlock(config, idx) for idx in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        read_positions: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states `[B, T, D]` of tokens `[B, T]`.

        Args:
            attention_mask: `[B, T]` (with a cache, `[B, past + T]`), 0 on padding, which is inert on either side.
            position_ids: `[1 or B, T]` rows of the mixing matrices; by default the rank among real tokens. A position
                of 0 begins a document that sees nothing before it (packed rows). A cache filled at other positions
                than the ranks cannot be continued.
            past_key_values: cache whose `keys` hold the mixing inputs `[B, 1, T, D]`; its `values` are empty.
            read_positions: `[B]`, the position of the one output wanted in each row; `last_hidden_state` is then
                `[B, 1, D]`, and the last block's feed-forward runs for these positions only.

        Raises:
            ValueError: for more tokens than `max_position_embeddings`, or none; a cache or restarting positions with
                right alignment; a cache if the model is not causal; a cache that is not dynamic or was filled at given
                positions; ids, embeddings, mask or positions of another shape; positions outside the matrices.
        """
        if input_ids is not None and inputs_embeds is None:
            check_ids(input_ids)
            if input_ids.is_cpu:  # elsewhere reading the values would wait
                check_ids(input_ids, self.config.vocab_size)
            embeds_BTD: Tensor = self.embed_tokens(input_ids)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("Pass either input_ids or inputs_embeds.")
        else:
            check_tensor("inputs_embeds", inputs_embeds)
            width = self.config.hidden_size
            if inputs_embeds.ndim != 3 or inputs_embeds.numel() == 0 or inputs_embeds.shape[-1] != width:
                raise ValueError(f"inputs_embeds must be [batch, tokens, {width}], got {list(inputs_embeds.shape)}.")
            embeds_BTD = inputs_embeds
        # The blocks want the embeddings to lie in memory as [T, B, D].
        embeds_BTD = embeds_BTD.transpose(0, 1).contiguous().transpose(0, 1)
        is_cacheable = self.config.is_causal and self.config.position_alignment == "left"
        if past_key_values is not None and not is_cacheable:
            raise ValueError(
                "Cached generation needs is_causal=True and position_alignment='left'; "
                f"this model has is_causal={self.config.is_causal} and "
                f"position_alignment={self.config.position_alignment!r}. Call it with use_cache=False and no cache."
            )
        if use_cache and is_cacheable and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past_length = 0
        if past_key_values is not None:
            grow_in_place(past_key_values)
            past_length = past_key_values.get_seq_length()
            if past_length and not is_ranked(past_key_values):
                raise ValueError(
                    "this cache holds tokens at positions that were given (packed rows): it cannot be continued. Pass "
                    "the whole text, or documents as rows of their own."
                )
        layout = choose_layout(self.config, embeds_BTD, attention_mask, position_ids, past_length)
        hidden_states = embeds_BTD
        layers = self.layers[: self.config.num_hidden_layers]  # `assistant_early_exit` lowers the number
        reads = [None] * (len(layers) - 1) + [read_positions]
        for layer, read in zip(layers, reads):
            hidden_states = layer(hidden_states, layout=layout, past_key_values=past_key_values, read_positions=read)
        if past_key_values is not None:
            set_ranked(past_key_values, has_ranks(position_ids, attention_mask, past_length, embeds_BTD.shape[1]))
        return BaseModelOutputWithPast(last_hidden_state=hidden_states.contiguous(), past_key_values=past_key_values)


class MaskedMixerForCausalLM(MaskedMixerPreTrainedModel, ContextGenerationMixin):
    """Masked mixer with a bias-free language-model head on the raw residual stream."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MaskedMixerConfig):
        if not config.is_causal:
            raise ValueError("A causal language model needs is_causal=True: with False it would see what it predicts.")
        super().__init__(config)
        self.model = MaskedMixerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As `LlamaForCausalLM.forward`; see `MaskedMixerModel.forward` for positions, masks and errors.

        Args:
            labels: `[B, T]`, shifted here; -100 is not scored. The loss is in nats a labelled token, in float32.
            output_logits: whether to return logits; by default yes, except in training with labels, where head and
                loss run in chunks and the `[B, T, V]` logits never exist.
            num_items_in_batch: labelled tokens of the whole optimizer step, the loss's denominator.
            shift_labels: `[B, T]` labels that are already shifted (context parallelism). It is not a named parameter,
                because the Trainer would take that for a second column of labels.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits, loss, _ = logits_and_loss(
            outputs.last_hidden_state,
            self.lm_head,
            None if labels is None else next_token_targets(labels, shift_labels),
            output_logits=labels is None or not self.training if output_logits is None else output_logits,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch,
        )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict) -> None:
        """None: the model itself ranks tokens by the mask, whatever the alignment and the padding."""


class MaskedMixerForTokenClassification(MaskedMixerPreTrainedModel):
    """Masked mixer with `num_labels` numbers a token; with one, a regression (second-order entropy estimation)."""

    def __init__(self, config: MaskedMixerConfig):
        super().__init__(config)
        assert config.num_labels is not None  # transformers labels two classes by default
        self.num_labels = config.num_labels
        self.model = MaskedMixerModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Scores `[B, T, num_labels]`, and a loss if there are `labels [B, T]`.

        With one label, the labels are real numbers and the loss is the mean squared error over those that are neither
        NaN nor -100; with more, they are classes and the loss is the cross-entropy over those that are not -100.
        `num_items_in_batch`, the labels of the whole optimizer step, is the mean's denominator if given. transformers'
        own Trainer counts a NaN as a label: for it, mark what is not scored by -100. `use_cache` is taken as Llama
        takes it; there is nothing to cache.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            **kwargs,
        )
        logits = linear(self.score, outputs.last_hidden_state)
        loss = None if labels is None else token_classification_loss(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = [
    "MaskedMixerForCausalLM",
    "MaskedMixerForTokenClassification",
    "MaskedMixerModel",
    "MaskedMixerPreTrainedModel",
]
