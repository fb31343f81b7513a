"""The causal estimator: a causal language model's own cross-entropy of each token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_eem.entropy.base import EntropyEstimator, Option, length_batches, pad_right
from modeling_eem.entropy.nats import predictions, token_nats
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.sliding import STRIDE_HELP, Window, check_stride, windows_of
from modeling_eem.entropy.texts import Rows
from modeling_eem.loading import check_causal, evaluating, has_plain_head, is_moved_by_padding

# On a CPU the activations of so few tokens stay in the cache, and still keep the matrix products busy. A model of 10 M
# parameters takes a third less time than with 4,096.
_CPU_BATCH_TOKENS = 512


class CausalEntropy(EntropyEstimator):
    """`-log p(x_j | x_<j)` in nats, by any causal language model that `AutoModelForCausalLM` loads.

    Texts get the tokenizer's BOS if it has one; rows of ids are scored as they are. The first token of a row is never
    scored.

    Args:
        stride: for texts longer than the context: how many tokens share a start. Each further block of `stride` tokens
            is scored after the row's first token and as much text as fits. By default such texts are errors.
        word_starts: `[vocabulary]`, True for tokens that begin a word; the result then holds `boundary_nats`.
        with_predictions: the result then holds `predictive_nats` and `ranks`.

    Raises:
        ValueError: for a model that sees later tokens, or a stride that the context does not allow.
    """

    method: ClassVar[str] = "causal"
    options: ClassVar[tuple[Option, ...]] = (Option("stride", "int", STRIDE_HELP),)

    def __init__(
        self,
        model: PreTrainedModel,
        stride: int | None = None,
        batch_tokens: int = 4096,
        word_starts: Tensor | None = None,
        with_predictions: bool = False,
    ):
        if model.config.model_type in ("eem", "eem_autoencoder"):
            raise ValueError(
                f"CausalEntropy needs a causal language model, not {model.config.model_type!r}, whose encoder sees "
                "the tokens that are scored: use ExactEntropy or OcclusionEntropy."
            )
        super().__init__(model, batch_tokens)
        if stride is not None:
            if self.context is None:
                raise ValueError(f"a {model.config.model_type!r} model reads texts of any length: leave stride out.")
            check_stride(stride, self.context)
        check_causal(model)
        vocab_size = model.config.get_text_config().vocab_size
        if word_starts is not None and len(word_starts) != vocab_size:
            raise ValueError(
                f"word_starts has {len(word_starts)} values and the model's vocabulary {vocab_size}: make it by "
                "word_start_tokens(tokenizer, model.config.vocab_size)."
            )
        self.stride = stride
        self.word_starts = word_starts
        self.with_predictions = with_predictions
        with evaluating(model):
            self.has_plain_head = has_plain_head(model)

    @property
    def max_length(self) -> int | None:
        return self.context if self.stride is None else None

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        """The values, `[t]`; with `word_starts` or `with_predictions` the columns of `_columns`, `[t, 4]`."""
        is_plain = self.word_starts is None and not self.with_predictions
        context = self.context or max(map(len, rows))
        windows = list(windows_of(rows, context, context - 1 if self.stride is None else self.stride))
        values = [torch.full((len(row_T), 1 if is_plain else 4), float("nan"), dtype=torch.float64) for row_T in rows]
        on_cpu = self.model.device.type == "cpu"
        batch_tokens = min(self.batch_tokens, _CPU_BATCH_TOKENS) if on_cpu else self.batch_tokens
        for batch in length_batches([len(window) for window in windows], batch_tokens):
            of_batch = [windows[index] for index in batch]
            for window, outputs_NX in zip(of_batch, self._forward(rows, of_batch)):
                # The output before a token gives its nats, the output at it whether a word begins after it.
                values_TX = values[window.row]
                values_TX[window.first : window.last + 1] = outputs_NX[:-1]
                if not is_plain:
                    values_TX[window.first : window.last + 1, 3] = outputs_NX[1:, 3]
                    if window.first == 1:
                        values_TX[0, 3] = outputs_NX[0, 3]
        return [values_TX[:, 0] for values_TX in values] if is_plain else values

    def _forward(self, rows: Sequence[Tensor], windows: Sequence[Window]) -> Sequence[Tensor]:
        """For each window the outputs before its scored tokens and at the last, `[n + 1, columns]`, on the CPU."""
        ids_BT, mask_BT = pad_right([window.ids(rows[window.row]) for window in windows])
        given: dict[str, Any] = {"input_ids": ids_BT, "use_cache": False}
        if is_moved_by_padding(self.model):
            given["attention_mask"] = mask_BT
        places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        first_B1, last_B1 = (
            torch.tensor(places, device=ids_BT.device)[:, None]
            for places in zip(*((window.first - window.start, len(window) - 1) for window in windows))
        )
        is_read_BT = (places_T >= first_B1) & (places_T <= last_B1)
        head = self.model.get_output_embeddings() if self.has_plain_head else None
        if head is None:
            outputs_BTX, head = self.model(**given).logits, nn.Identity()
        else:
            outputs_BTX = self.model.base_model(**given).last_hidden_state
        targets_BT = ids_BT.roll(-1, dims=1)  # nothing reads the last target
        outputs_NX = self._columns(outputs_BTX[is_read_BT], head, targets_BT[is_read_BT]).cpu()
        return outputs_NX.split((last_B1 - first_B1 + 1).squeeze(1).tolist())

    def _columns(self, hidden_ND: Tensor, head: nn.Module, targets_N: Tensor) -> Tensor:
        """Nats of the next token; on request also predictive entropy, rank and nats of a word's beginning."""
        if self.word_starts is None and not self.with_predictions:
            return token_nats(hidden_ND, head, targets_N)[:, None]
        word_starts = None if self.word_starts is None else self.word_starts.to(targets_N.device)
        told = predictions(hidden_ND, head, targets_N, word_starts)
        boundary_N = told.nats if told.boundary_nats is None else told.boundary_nats
        return torch.stack([told.nats, told.entropies, told.ranks.double(), boundary_N], dim=-1)

    def _result(self, rows: Rows, values: list[Tensor], layout: tuple[Tensor, Tensor] | None) -> TokenEntropies:
        if self.word_starts is None and not self.with_predictions:
            return super()._result(rows, values, layout)
        result = super()._result(rows, [values_TX[:, 0] for values_TX in values], layout)
        predictive_BT, ranks_BT, boundary_BT = result.placed(torch.cat(values)[:, 1:]).unbind(-1)
        if self.with_predictions:
            result = replace(result, predictive_nats=predictive_BT, ranks=ranks_BT)
        return result if self.word_starts is None else replace(result, boundary_nats=boundary_BT)
