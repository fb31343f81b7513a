"""Whether bfloat16 would make a training shorter on this CPU: measured, not guessed from the processor's name."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_eem.training.experiment import Run

_ROWS, _WIDTH, _REPEATS = 1024, 512, 5
# A step is more than its products: below this gain of them, steps may gain nothing.
_WORTH_IT = 1.3


def bfloat16_speedup() -> float:
    """How many times as fast this CPU multiplies `[1024, 512] × [512, 2048]` in bfloat16 as in float32, with the
    threads that PyTorch has."""
    generator = torch.Generator().manual_seed(0)  # training must not find another random state
    x, weight = (torch.randn(rows, _WIDTH, generator=generator) for rows in (_ROWS, 4 * _WIDTH))
    low_x, low_weight = x.bfloat16(), weight.bfloat16()
    products: list[Callable[[], Tensor]] = [lambda: F.linear(x, weight), lambda: F.linear(low_x, low_weight)]
    took = [[_seconds(product) for product in products] for _ in range(_REPEATS + 1)][1:]  # the first warms up
    float32, bfloat16 = (min(times) for times in zip(*took))
    return float32 / bfloat16


def bfloat16_advice(run: Run) -> str | None:
    """A line for a run on a CPU whose precision costs it time; None if there is nothing to say."""
    arguments = run.arguments
    if arguments.device.type != "cpu" or arguments.mixed_precision == "fp16" or run.is_finished:
        return None
    speedup = bfloat16_speedup()
    if arguments.mixed_precision == "no" and speedup >= _WORTH_IT:
        return f"this processor multiplies bfloat16 {speedup:.1f} times as fast as float32: --bf16 true trains faster."
    if arguments.mixed_precision == "bf16" and speedup < 1:
        return (
            f"this processor multiplies float32 {1 / speedup:.1f} times as fast as bfloat16: --bf16 true costs time."
        )
    return None


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


__all__ = ["bfloat16_advice", "bfloat16_speedup"]
