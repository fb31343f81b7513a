"""Several processes of one launch: what they find together."""

from typing import Literal

from accelerate import Accelerator
from torch import Tensor


def over_processes(accelerator: Accelerator, value: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """The sum or mean of a tensor that each process has; in a single process the tensor itself."""
    return accelerator.reduce(value, reduction)  # pyright: ignore[reportReturnType]  # a tensor for a tensor
