"""Gradient × input: how much a prediction depends on the memory, to first order.

Source: Badger & Neligeorge 2025. Shapes: B rows, T tokens, D features of the decoder, F of the memory, K outputs.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_eem.entropy.base import EEMEstimator, length_batches, pad_right
from modeling_eem.models.bottleneck_eem import run_backbone
from modeling_eem.models.loss_eem import CHUNK_SIZE


class GradientInputEntropy(EEMEstimator):
    """`Σ_f |∂‖logits_j‖₁ / ∂memory_f · memory_f|` of the output j before each token.

    The memory is the vector that enters the decoder: `W_proj W_up z`, or the code itself with the `embedding`
    introduction, rounded to `code_dtype`. The encoder reads the whole row. The value ranks tokens; it is no entropy.

    Each output of a row needs a backward pass; the outputs of a chunk run as one batched vector-Jacobian product.
    """

    method: ClassVar[str] = "gradient_input"
    unit = "gradient × input of the logit L1 norm"

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        values = [torch.full((len(row),), float("nan"), dtype=torch.float64) for row in rows]
        for batch in length_batches([len(row) for row in rows], self.batch_tokens):
            values_BT = self._attributions(*pad_right([rows[index] for index in batch])).cpu()
            for index, row_T in zip(batch, values_BT):
                values[index][1:] = row_T[: len(rows[index]) - 1]
        return values

    def _attributions(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The values at each output except the last; the decoder does not see the padding right of a row."""
        eem = self.model.model
        memory_BF = eem.memory(eem.encode(ids_BT, mask_BT))
        with torch.enable_grad(), _frozen(self.model):
            memory_BF.requires_grad_()
            inputs = eem.introduce(memory_BF, eem.embed_tokens(ids_BT[:, :-1]))
            hidden_BTD = run_backbone(eem.decoder, inputs, None, None, use_cache=False).last_hidden_state
            hidden_BTD = hidden_BTD[:, self.model.config.num_memory_positions :]
        slopes_BTD = self._norm_slopes(hidden_BTD.detach().flatten(0, 1)).view_as(hidden_BTD)
        outputs_T = torch.arange(hidden_BTD.shape[1], device=ids_BT.device)
        chunks = []
        for output_K in outputs_T.split(max(1, self.batch_tokens // ids_BT.numel())):
            is_output_KT = output_K[:, None] == outputs_T
            cotangents_KBTD = slopes_BTD * is_output_KT[:, None, :, None]
            with warnings.catch_warnings():
                # vmap computes a mixer's products one cotangent at a time: here that takes fewer passes over memory.
                warnings.filterwarnings("ignore", "There is a performance drop")
                (gradients_KBF,) = torch.autograd.grad(
                    hidden_BTD, memory_BF, cotangents_KBTD, is_grads_batched=True, retain_graph=True
                )
            chunks.append((gradients_KBF * memory_BF.detach()).double().abs().sum(-1))
        return torch.cat(chunks).T

    def _norm_slopes(self, hidden_ND: Tensor) -> Tensor:
        """`d ‖W h_n‖₁ / d h_n = sign(W h_n) W`, `[N, D]`; the logits exist in chunks only."""
        weight_VD = self.model.lm_head.weight
        return torch.cat([(hidden @ weight_VD.T).sign() @ weight_VD for hidden in hidden_ND.split(CHUNK_SIZE)])


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Weights without gradients: a custom autograd function cannot see that only the memory's gradient is needed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
