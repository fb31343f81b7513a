"""Replaces a model's own forward for the time of a trainer's call.

The call must go through whatever wraps the model (DDP, FSDP2, ZeRO-3, PEFT, `torch.compile`), because the wrapper
gathers sharded weights. Therefore the model's `forward` itself is replaced, on the instance, for one call.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils.generic import ModelOutput

from modeling_eem.models.loss_eem import IGNORE_INDEX, mean_over

OwnForward = Callable[..., Any]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_FLOATS = {integers: floats for floats, integers in _INTEGERS.items()}
_AS_INTEGERS = "_as_integers"  # ends the name of a column that travels so


class TrainingForward(Protocol):
    """A forward for training, and for measuring with the columns that only training reads."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data set that it takes beside the model's own."""
        ...

    def __call__(self, own_forward: OwnForward, *args: Any, **kwargs: Any) -> ModelOutput: ...

    def scored(self, batch: dict[str, Any], is_training: bool) -> Tensor:
        """Which tokens of a batch the loss sums over, as booleans."""
        ...


def as_integers(inputs: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Inputs whose floating point columns are integers of the same bits; `as_they_were` and `forward_replaced` turn
    them back.

    FSDP2 in mixed precision rounds all that is floating point on its way into `forward` to bfloat16, targets too.
    """
    changed = dict(inputs)
    for name in columns:
        if isinstance(value := inputs.get(name), Tensor) and value.dtype in _INTEGERS:
            changed[name + _AS_INTEGERS] = changed.pop(name).view(_INTEGERS[value.dtype])
    return changed


def as_they_were(inputs: dict[str, Any]) -> dict[str, Any]:
    """What `as_integers` was given."""
    return {
        name.removesuffix(_AS_INTEGERS): value.view(_FLOATS[value.dtype]) if name.endswith(_AS_INTEGERS) else value
        for name, value in inputs.items()
    }


@contextmanager
def forward_replaced(model: PreTrainedModel, forward: Callable[..., ModelOutput]) -> Iterator[None]:
    """While this is open, calling `model` runs `forward(own_forward, …)`. Its own forward is always put back."""
    before = vars(model).get("forward")  # accelerate may have put one there
    own_forward = model.forward

    def training_forward(*args: Any, **kwargs: Any) -> ModelOutput:
        return forward(own_forward, *args, **as_they_were(kwargs))

    model.forward = training_forward
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def without_adapters(model: Any) -> PreTrainedModel:
    """The model inside PEFT's wrapper, or the model itself; PEFT is not imported."""
    peft = sys.modules.get("peft")
    return model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model


def takes(forward: Callable[..., Any], name: str) -> bool:
    """Whether a forward has a parameter of this name, or takes any name."""
    parameters = inspect.signature(forward).parameters
    return name in parameters or any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def regression_alignment(config: PreTrainedConfig, asked: str | None) -> str:
    """What is asked for, or what the model was trained with, or "prefix"; ValueError if the first two differ."""
    trained = config.to_dict().get("regression_alignment")
    if trained is not None and asked not in (None, trained):
        raise ValueError(
            f"regression_alignment is {asked!r}, and the model was trained with {trained!r}: leave it out, or start "
            "from another model."
        )
    return asked or trained or "prefix"


class RegressionForward:
    """`sum_j (score_j - e_j)^2 / n` over labelled tokens with an entropy; e in nats.

    Args:
        is_shifted: whether a token's score is the output before it.
    """

    columns = ("token_entropies", "document_ids")

    def __init__(self, is_shifted: bool):
        self.is_shifted = is_shifted

    def __call__(
        self,
        own_forward: OwnForward,
        *args: Any,
        labels: Tensor | None = None,
        token_entropies: Tensor | None = None,
        document_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        outputs = own_forward(*args, **kwargs)
        if token_entropies is None or labels is None:
            return outputs
        is_scored_BT = is_scored(token_entropies, labels)
        scores_BT = outputs.logits.squeeze(-1).float()
        if self.is_shifted:
            scores_BT = scores_BT.roll(1, dims=1)  # the first token's value is never scored
        # Filled before the square, because NaN times zero is NaN in the gradient too.
        errors_BT = (scores_BT - token_entropies.float()).masked_fill(~is_scored_BT, 0.0)
        num_items = is_scored_BT.sum() if num_items_in_batch is None else num_items_in_batch
        loss = mean_over(errors_BT.square().sum(), num_items)
        return TokenClassifierOutput(loss=loss, logits=outputs.logits)

    def scored(self, batch: dict[str, Any], is_training: bool) -> Tensor:
        if "token_entropies" not in batch:
            raise ValueError("a regression needs the column token_entropies (nats, one a token): the batch has none.")
        return is_scored(batch["token_entropies"], batch["labels"])


def is_scored(token_entropies_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Tokens with a label and an entropy; never a row's first column, which has no output before it."""
    is_scored_BT = (labels_BT != IGNORE_INDEX) & ~token_entropies_BT.isnan()
    is_scored_BT[:, 0] = False
    return is_scored_BT
