"""The metrics of `Trainer.evaluate` on held-out rows, from a few numbers a token: whole logits are never gathered.

Shapes: R rows, B of them in a batch, T tokens, V vocabulary.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction, PreTrainedConfig

from modeling_eem.bits import window_length_bits
from modeling_eem.models.configuration_eem import has_code
from modeling_eem.models.loss_eem import IGNORE_INDEX, next_token_targets
from modeling_eem.models.quantization_eem import CODE_FORMATS
from modeling_eem.training.training_forward import is_scored

if TYPE_CHECKING:
    from evaluate.module import EvaluationModule

_MODULES = Path(__file__).parent / "metrics"


@functools.cache
def load_metric(name: str) -> "EvaluationModule":
    """A module of the folder `metrics`, loaded by path: no download, and no file shared between processes."""
    from evaluate.loading import load  # takes seconds, and only evaluation needs it

    return load(str(_MODULES / name), keep_in_memory=True)


def _computed(metric: str, **columns: Any) -> dict[str, float]:
    values = load_metric(metric).compute(**columns)
    assert values is not None  # it is None only in other processes of a metric that gathers by itself
    return values


def code_bits_a_row(config: PreTrainedConfig) -> float | None:
    """Bits of a row's code: 0 for a model without a code, None if no `code_dtype` says how it is stored."""
    if not has_code(config):
        return 0.0
    return None if config.code_dtype is None else CODE_FORMATS[config.code_dtype].code_bits(config.code_size)


@dataclass(frozen=True, eq=False)
class TokenMetrics:
    """`compute_metrics`, and `preprocess` for `preprocess_logits_for_metrics`, of models that predict tokens.

    | metric | is |
    |---|---|
    | `bits_per_byte` | Σ CE / ln 2 + codes + lengths of short rows, over UTF-8 bytes; left out without `code_bits` |
    | `cross_entropy` | nats a scored token, without the code's bits |
    | `token_accuracy` | share of tokens ranked first |

    On rows of `windows`, `bits_per_byte` is that of `evaluation.held_out_code_length`.

    Attributes:
        byte_lengths: UTF-8 bytes of each token, `[V]`.
        max_length: n, the tokens of a full row.
        code_bits: bits of a row's code; None if that is not settled.
        is_shifted: False for autoencoders, whose output t regenerates token t.
    """

    byte_lengths: Tensor
    max_length: int
    code_bits: float | None
    is_shifted: bool = True

    label_names = ("labels",)

    @property
    def key(self) -> str:
        """The metric that a learning curve shows."""
        return "eval_cross_entropy" if self.code_bits is None else "eval_bits_per_byte"

    @property
    def unit(self) -> str:
        if self.code_bits is None:
            return "held-out nats a token, the code's bits left out"
        return "held-out bits per byte" + (", the code's bits included" if self.code_bits else "")

    @torch.no_grad()
    def preprocess(self, logits_BTV: Tensor | tuple[Tensor, ...], labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's loss in nats, and the token ranked first in its place, both `[B, T]`."""
        if isinstance(logits_BTV, tuple):  # some models return more than logits, a mixture of experts its loss first
            logits_BTV = next(value for value in logits_BTV if isinstance(value, Tensor) and value.ndim == 3)
        targets_BT = next_token_targets(labels_BT) if self.is_shifted else labels_BT
        # Row by row: a second whole [B, T, V] never exists.
        losses_BT = torch.stack(
            [
                F.cross_entropy(logits_TV.float(), targets_T, ignore_index=IGNORE_INDEX, reduction="none")
                for logits_TV, targets_T in zip(logits_BTV, targets_BT)
            ]
        )
        first_BT = logits_BTV.argmax(-1)
        if self.is_shifted:  # from the output before the token to the token
            losses_BT, first_BT = losses_BT.roll(1, dims=1), first_BT.roll(1, dims=1)
        return losses_BT, first_BT

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        losses_RT, first_RT = map(np.asarray, prediction.predictions)
        labels_RT = np.asarray(prediction.label_ids)
        is_scored_RT = labels_RT != IGNORE_INDEX
        nats_R = np.where(is_scored_RT, losses_RT, 0.0).sum(1, dtype=np.float64)
        metrics = {
            "cross_entropy": float(nats_R.sum() / is_scored_RT.sum()),
            **_computed("token_accuracy", predictions=first_RT[is_scored_RT], references=labels_RT[is_scored_RT]),
        }
        if self.code_bits is not None:
            bytes_RT = np.where(is_scored_RT, self.byte_lengths.numpy()[np.where(is_scored_RT, labels_RT, 0)], 0)
            lengths_R = 1 + is_scored_RT.sum(1)  # with BOS
            metrics |= _computed(
                "bits_per_byte",
                predictions=nats_R,
                references=bytes_RT.sum(1),
                code_bits=self.code_bits * len(labels_RT),
                side_bits=sum(window_length_bits(int(length), self.max_length) for length in lengths_R),
            )
        return metrics


@dataclass(frozen=True)
class EntropyMetrics:
    """The same for models fitted to `token_entropies`: `mean_squared_error` in nats², over scored tokens.

    Attributes:
        is_shifted: whether a token's entropy is the output before it.
    """

    is_shifted: bool

    label_names = ("labels", "token_entropies")
    key = "eval_mean_squared_error"
    unit = "held-out squared error, nats²"

    def preprocess(self, logits_BT1: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Each token's estimate in nats, `[B, T]`."""
        scores_BT = logits_BT1.squeeze(-1).float()
        return scores_BT.roll(1, dims=1) if self.is_shifted else scores_BT

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        labels_RT, entropies_RT = map(torch.from_numpy, prediction.label_ids)
        is_scored_RT = is_scored(entropies_RT, labels_RT)
        errors_RT = torch.from_numpy(prediction.predictions) - entropies_RT
        return {"mean_squared_error": errors_RT[is_scored_RT].double().square().mean().item()}
