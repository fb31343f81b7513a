"""Stops a training when its loss is NaN or infinite, and names the batch."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_SHOWN_IDS, _SHOWN_ROWS = 8, 8


@dataclass
class LossWatch:
    """Keeps each micro-batch's loss, and how its rows begin, until the loss is known to be finite.

    On a GPU, reading a loss makes the host wait. There `check` reads several together: when the trainer waits anyway
    (it logs), and before anything is kept (it evaluates, saves or ends). On a CPU reading costs nothing: every loss is
    read at once, before its gradient reaches a weight.

    Attributes:
        is_eager: whether losses are read at once.
    """

    is_eager: bool
    waiting: list[tuple[int, int, Tensor, Tensor]] = field(default_factory=list)

    def add(self, step: int, micro_batch: int, input_ids_BT: Tensor, loss: Tensor) -> None:
        """Note a micro-batch of an optimizer step, both counted from 1.

        Raises:
            FloatingPointError: as in `check`, if losses are read at once.
        """
        self.waiting.append((step, micro_batch, input_ids_BT[:_SHOWN_ROWS, :_SHOWN_IDS].clone(), loss.detach()))
        if self.is_eager:
            self.check()

    def check(self) -> None:
        """Read the losses that have not been read.

        Raises:
            FloatingPointError: if a loss is NaN or infinite; it names the first such micro-batch.
        """
        if not self.waiting:
            return
        losses = torch.stack([loss for *_, loss in self.waiting]).tolist()
        for (step, micro_batch, input_ids_BT, _), loss in zip(self.waiting, losses):
            if loss - loss != 0:  # NaN, or infinite
                raise FloatingPointError(
                    f"the loss is {loss} at step {step}, micro-batch {micro_batch}, whose rows begin with the ids "
                    f"{input_ids_BT.tolist()}; nothing was saved since. Lower the learning rate, or look at these "
                    "rows and their token_entropies."
                )
        self.waiting.clear()


def check_weights(model: nn.Module, step: int) -> None:
    """FloatingPointError for a weight that is NaN or infinite: a finite loss can have an infinite gradient.

    Of sharded weights it is the same on all devices: each would read a number from its own shard alone.
    """
    for name, parameter in model.named_parameters():
        num_damaged = (~parameter.isfinite()).sum()
        if isinstance(num_damaged, DTensor):
            num_damaged = num_damaged.full_tensor()
        if num_damaged > 0:
            raise FloatingPointError(
                f"the weight {name} is not finite at step {step}: no checkpoint is written. Lower the learning rate, "
                "or train in bf16 or fp32."
            )
