"""Occlusion: how far a model's predictions move when its memory is taken away.

The memory tells the decoder what the text before a token does not. The more it changes the prediction of a token, the
less predictable the token is. Two passes a row instead of one a prefix. Source: Badger & Neligeorge 2025.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_eem.entropy.base import EEMEstimator, Option, length_batches, pad_right
from modeling_eem.entropy.nats import token_nats
from modeling_eem.entropy.result import NATS
from modeling_eem.models.loss_eem import CHUNK_SIZE
from modeling_eem.models.modeling_eem import EEMForCausalLM

# Distances `[N]` between logits with the memory and without it, `[N, V]` each.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda clean, occluded: (clean - occluded).abs().sum(-1),
    "l2": lambda clean, occluded: (clean - occluded).norm(dim=-1),
    "max": lambda clean, occluded: (clean - occluded).abs().amax(-1),
    "cosine": lambda clean, occluded: 1 - F.cosine_similarity(clean, occluded, dim=-1),
}
# The unit of each metric; only the difference of losses is in nats.
METRICS: dict[str, str] = {
    "l1": "logit L1 distance",
    "l2": "logit L2 distance",
    "max": "largest logit difference",
    "cosine": "logit cosine distance",
    "loss": NATS,
}


class OcclusionEntropy(EEMEstimator):
    """The distance between a token's logits with the memory and without it.

    `l1` `Σ_v |a_v - b_v|`, `l2` `(Σ_v (a_v - b_v)²)^½`, `max` `max_v |a_v - b_v|`, `cosine` `1 - cos(a, b)`, in
    [0, 2], or `loss` `CE(b) - CE(a)`, in nats and signed; a are the clean and b the occluded logits at the output
    before the token. The encoder reads the whole row: the scored tokens and those after them.

    Args:
        metric: a name of `METRICS`, which gives its unit. All except `loss` rank tokens; they are no entropies.
    """

    method: ClassVar[str] = "occlusion"
    options: ClassVar[tuple[Option, ...]] = (
        Option("metric", "str", "Which distance of the logits.", tuple(METRICS), "l1"),
    )

    def __init__(self, model: EEMForCausalLM, metric: str = "l1", batch_tokens: int = 4096):
        super().__init__(model, batch_tokens)
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}.")
        self.metric = metric
        self.unit = METRICS[metric]

    def score(self, rows: list[Tensor]) -> list[Tensor]:
        values = [torch.full((len(row),), float("nan"), dtype=torch.float64) for row in rows]
        for batch in length_batches([len(row) for row in rows], self.batch_tokens):
            ids_BT, mask_BT = pad_right([rows[index] for index in batch])
            is_scored_BT = mask_BT[:, 1:].bool()
            clean_ND, occluded_ND = (
                self.model.model(ids_BT, mask_BT, occlude_memory=occluded, use_cache=False).last_hidden_state[:, :-1][
                    is_scored_BT
                ]
                for occluded in (False, True)
            )
            measured_N = self._measure(clean_ND, occluded_ND, ids_BT[:, 1:][is_scored_BT]).cpu()
            for index, row_T in zip(batch, measured_N.split(is_scored_BT.sum(-1).tolist())):
                values[index][1:] = row_T
        return values

    def _measure(self, clean_ND: Tensor, occluded_ND: Tensor, targets_N: Tensor) -> Tensor:
        head = self.model.lm_head
        if self.metric == "loss":
            clean_N, occluded_N = (token_nats(hidden_ND, head, targets_N) for hidden_ND in (clean_ND, occluded_ND))
            return occluded_N - clean_N
        distance = _DISTANCES[self.metric]
        return torch.cat(
            [
                distance(head(clean).double(), head(occluded).double())
                for clean, occluded in zip(clean_ND.split(CHUNK_SIZE), occluded_ND.split(CHUNK_SIZE))
            ]
        )
