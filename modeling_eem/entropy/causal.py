"""The causal estimator: a causal language model's own cross-entropy of each token."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_eem.entropy.base import EntropyEstimator, evaluating, length_batches, pad_right
from modeling_eem.entropy.nats import token_nats
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.sliding import check_stride, spans
from modeling_eem.entropy.texts import Rows
from modeling_eem.models.loss_eem import has_plain_head


class CausalEntropy(EntropyEstimator):
    """`-log p(x_j | x_<j)` in nats, by any causal language model that `AutoModelForCausalLM` loads.

    Texts get the tokenizer's BOS if it has one; rows of ids are scored as they are. The first token of a row is never
    scored.

    Args:
        stride: for texts longer than the context: how many tokens keep a start. Each further block of `stride` tokens
            is scored behind the row's first token and as much text as fits. By default such texts are refused.
        word_starts: `[vocabulary]`, True for tokens that begin a word; the result then holds `boundary_nats`.
    """

    method: ClassVar[str] = "causal"

    def __init__(
        self,
        model: PreTrainedModel,
        stride: int | None = None,
        batch_tokens: int = 4096,
        word_starts: Tensor | None = None,
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
        self.stride = stride
        self.word_starts = word_starts
        with evaluating(model):
            self.has_plain_head = has_plain_head(model)

    @property
    def max_length(self) -> int | None:
        return self.context if self.stride is None else None

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        """The values, `[t]`; with `word_starts` `[t, 2]`, a token's boundary beside it."""
        context = self.context or max(map(len, rows))
        windows = [
            (number, *span)
            for number, row in enumerate(rows)
            for span in spans(len(row), context, context - 1 if self.stride is None else self.stride)
        ]
        values = [torch.full((len(row), 2), float("nan"), dtype=torch.float64) for row in rows]
        lengths = [last - start + 2 for _, start, _, last in windows]
        for batch in length_batches(lengths, self.batch_tokens):
            of_batch = [windows[index] for index in batch]
            ids_BT, _ = pad_right(
                [torch.cat([rows[row][:1], rows[row][start : last + 1]]) for row, start, _, last in of_batch]
            )
            nats_BT, boundary_BT = self._forward(ids_BT)
            for (row, start, first, last), nats_T, boundary_T in zip(of_batch, nats_BT, boundary_BT):
                # Token j stands at place j - start + 1 of its window, and the output before it tells its nats.
                values[row][first : last + 1, 0] = nats_T[first - start : last - start + 1]
                values[row][first : last + 1, 1] = boundary_T[first - start + 1 : last - start + 2]
                if first == 1:
                    values[row][0, 1] = boundary_T[0]
        return values if self.word_starts is not None else [values_TX[:, 0] for values_TX in values]

    def _forward(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """At each place the nats of the next token, and those of any word's beginning; `[B, T]` each, on the CPU."""
        if self.has_plain_head:
            outputs_BTX = self.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
            head = self.model.get_output_embeddings()
        else:
            outputs_BTX, head = self.model(input_ids=ids_BT, use_cache=False).logits, nn.Identity()
        targets_BT = ids_BT.roll(-1, dims=1)  # what the last output is given is read by nobody
        word_starts = None if self.word_starts is None else self.word_starts.to(ids_BT.device)
        nats_N, boundary_N = token_nats(outputs_BTX.flatten(0, 1), head, targets_BT.flatten(), word_starts)
        boundary_N = nats_N if boundary_N is None else boundary_N
        return nats_N.view_as(ids_BT).cpu(), boundary_N.view_as(ids_BT).cpu()

    def _result(self, rows: Rows, values: list[Tensor]) -> TokenEntropies:
        if self.word_starts is None:
            return super()._result(rows, values)
        result = super()._result(rows, [values_TX[:, 0] for values_TX in values])
        return replace(result, boundary_nats=rows.place([values_TX[:, 1] for values_TX in values]))
