"""Several processes of one command, started by torchrun or accelerate: an error is printed once, and all end.

A process that waits for an ended one finds its connection closed, and ends with the same exit code.
"""

import hashlib
import os
import sys
from datetime import timedelta

_PATIENCE = timedelta(seconds=5)
_LOST = "gloo/transport"  # how PyTorch's error about a closed connection begins


def num_processes() -> int:
    """The number of processes of this launch; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the first process of its launch, before any library knows."""
    return os.environ.get("RANK", "0") == "0"


def is_first_to_say(message: str) -> bool:
    """Whether no other process of the launch has printed this message.

    Before the processes are connected all of them do the same; then the first process of each machine prints.
    """
    if num_processes() == 1:
        return True
    counts = _add({_said(): 1, f"{_said()}/{hashlib.sha256(message.encode()).hexdigest()}": 1})
    if counts is None:
        return os.environ.get("LOCAL_RANK", "0") == "0"
    return counts[1] == 1


def lost_process(error: RuntimeError) -> str | None:
    """The message for an error in waiting for an ended process; None for any other error.

    It is empty if a process has printed what was wrong, or if no other process is left.
    """
    if num_processes() == 1 or _LOST not in str(error):
        return None
    counts = _add({_said(): 0})
    if counts is None or counts[0]:
        return ""
    return "another process of this launch ended without an error message: was it killed, or out of memory?"


class Arrival:
    """A meeting point of a launch's processes. The first to arrive goes on, and can check whether all have arrived.

    Without a launch it is over at once.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self._work = dist.barrier(async_op=True) if dist.is_initialized() else None

    def is_over(self) -> bool:
        """Whether all processes have arrived, or one has ended before."""
        return self._work is None or self._work.is_completed()

    def wait(self) -> None:
        """Wait for all processes; raises PyTorch's RuntimeError if one has ended before."""
        if self._work is not None:
            self._work.wait()


def _said() -> str:
    """The key under which the processes of this start count their printed messages."""
    return f"eem/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _add(amounts: dict[str, int]) -> list[int] | None:
    """Add to counts that connected processes share; what they are then, in the same order.

    None before the processes are connected, and if the counts' host has ended, be it while they are read.
    """
    if "torch.distributed" not in sys.modules:
        return None
    import torch.distributed as dist

    if not dist.is_initialized():
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]  # documented there
            host, port, is_master=False, wait_for_workers=False, timeout=_PATIENCE
        )
        return [store.add(key, amount) for key, amount in amounts.items()]
    except dist.DistError:
        return None
