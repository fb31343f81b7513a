"""The number of threads that code windows."""

import os
import sys

_chosen: int | None = None


def num_threads() -> int:
    """The number that was set; else OMP_NUM_THREADS; else the cores that this process may use."""
    if _chosen is not None:
        return _chosen
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the outermost of nested loops
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def set_num_threads(number: int) -> None:
    """Set the number of threads for every codec of this process.

    Raises:
        ValueError: for a number below 1.
    """
    global _chosen
    if number < 1:
        raise ValueError(f"the number of threads must be at least 1, not {number}.")
    _chosen = number


__all__ = ["num_threads", "set_num_threads"]
