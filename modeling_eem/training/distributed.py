"""Sums and means over the processes of one launch."""

from typing import Literal

from accelerate import Accelerator
from torch import Tensor


def over_processes(accelerator: Accelerator, value: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """The sum or mean over all processes of a tensor that each has; for a single process the tensor itself."""
    return accelerator.reduce(value, reduction)  # pyright: ignore[reportReturnType]  # a tensor for a tensor
