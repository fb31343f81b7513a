"""Several processes of one launch: what they find together, and mistakes that all of them find."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from accelerate import Accelerator
from torch import Tensor


@contextmanager
def first_process_speaks(patience: float = 60.0) -> Iterator[None]:
    """Hold an error back, except in the first process of a launch: the launcher ends the others when that has failed.

    Args:
        patience: seconds after which another process speaks too, since the mistake is then its own.
    """
    try:
        yield
    except Exception:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(patience)
        raise


def over_processes(accelerator: Accelerator, value: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """The sum or mean of a tensor that each process has; in a single process the tensor itself."""
    return accelerator.reduce(value, reduction)  # pyright: ignore[reportReturnType]  # a tensor for a tensor
