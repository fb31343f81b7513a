"""Several processes of one launch that all find the same mistake: one of them says so."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def first_process_speaks(patience: float = 5.0) -> Iterator[None]:
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
