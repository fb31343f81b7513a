"""Timing that a drifting machine does not spoil: ratios of two things run in turn, the machine's own peak beside."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from modeling_eem.models.mixing_masked_mixer import product

PEAK_SIZE = 2048


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one call; work queued on a GPU is waited for."""
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def paired_ratios(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, warm_up: bool = True
) -> list[float]:
    """How many times longer theirs takes than ours, once for each repeat; who goes first alternates.

    With `warm_up` both are run once before, so that neither pays for first allocations.
    """
    if warm_up:
        ours()
        theirs()
    ratios = []
    for repeat in range(repeats):
        if repeat % 2:
            slow, fast = seconds(theirs), seconds(ours)
        else:
            fast, slow = seconds(ours), seconds(theirs)
        ratios.append(slow / fast)
    return ratios


def matmul_peak() -> float:
    """FLOPs a second of float32 products, now: the best of three squares of 2,048 with each library there is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE, device=device)
    least = float("inf")
    for multiply in (torch.mm, product):
        multiply(a, b)
        least = min(least, *(seconds(lambda multiply=multiply: multiply(a, b)) for _ in range(3)))
    return 2 * PEAK_SIZE**3 / least


def shares_of_peak(run: Callable[[], object], flops: float, repeats: int) -> list[float]:
    """FLOPs a second of `run` over the peak, which is measured right before and after each repeat."""
    run()
    shares = []
    for _ in range(repeats):
        before = matmul_peak()
        speed = flops / seconds(run)
        shares.append(speed / statistics.mean((before, matmul_peak())))
    return shares


def gpu_megabytes(run: Callable[[], object]) -> tuple[float, float] | None:
    """What PyTorch holds on the GPU before a run, and at the most in it; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return before / 2**20, torch.cuda.max_memory_allocated() / 2**20


def peak_megabytes(statement: str, setup: str) -> float:
    """Memory that `statement` adds at its highest to what is held after `setup`, in a process of its own.

    On a GPU what PyTorch allocated there; else the process's resident memory, on Linux only: its highest is reset by
    writing 5 to /proc/self/clear_refs. `malloc_trim` is glibc's.
    """
    program = f"""
import ctypes
import re
from pathlib import Path
import torch

def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

{setup}
if torch.cuda.is_available():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    {statement}
    print((torch.cuda.max_memory_allocated() - before) / 2**20)
else:
    ctypes.CDLL(None).malloc_trim(0)  # what setup freed is not held
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    {statement}
    print(resident("VmHWM") - before)
"""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder, timeout=600
    )
    return float(done.stdout.split()[-1])
