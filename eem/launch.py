"""Several processes of one command, as torchrun or accelerate start them: what is wrong is said once, and all end.

Processes that wait for one that has ended find its connection closed, and end with the same exit code.
"""

import hashlib
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

_PATIENCE = timedelta(seconds=5)
_LOST = "gloo/transport"  # how PyTorch's error about a closed connection begins


def num_processes() -> int:
    """Of this launch; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_to_say(message: str) -> bool:
    """Whether no other process of the launch has said it.

    Before the processes are connected all of them do the same, and the first of each machine speaks.
    """
    if num_processes() == 1:
        return True
    store = _store()
    if store is None:
        return os.environ.get("LOCAL_RANK", "0") == "0"
    store.add(_said(), 1)
    return store.add(f"{_said()}/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1


def lost_process(error: RuntimeError) -> str | None:
    """What to say of an error in waiting for a process that has ended; None for any other error.

    Empty where a process has said what was wrong, or where there is no one left to ask.
    """
    if num_processes() == 1 or _LOST not in str(error):
        return None
    store = _store()
    if store is None or store.add(_said(), 0):
        return ""
    return "another process of this launch has ended without a word: was it killed, or out of memory?"


class Arrival:
    """The processes of a launch at one place: who is there first goes on, and can see when all are.

    Without a launch there is no one to wait for.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self._work = dist.barrier(async_op=True) if dist.is_initialized() else None

    def is_over(self) -> bool:
        """Whether all are there, or one has ended before."""
        return self._work is None or self._work.is_completed()

    def wait(self) -> None:
        """Raises the RuntimeError of PyTorch where a process has ended before."""
        if self._work is not None:
            self._work.wait()


def _said() -> str:
    """The key under which the processes of this start count what they have said."""
    return f"eem/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store() -> "TCPStore | None":
    """Where connected processes leave word for one another; None before, and once its host has ended."""
    if "torch.distributed" not in sys.modules:
        return None
    import torch.distributed as dist

    if not dist.is_initialized():
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]  # documented there
            host, port, is_master=False, wait_for_workers=False, timeout=_PATIENCE
        )
    except dist.DistError:
        return None
