"""Memory that a training step frees, kept for the next step."""

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The most that glibc takes: larger tensors are always fetched anew.
_MOST_KEPT, _LARGEST_TENSOR = 2**31 - 1, 2**25


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors below 32 MiB; whether the C library is one that can.

    Every training step allocates tensors of the same sizes. glibc gives freed memory back to the system, and the next
    step fetches and clears each page again (`docs/speed.md` says what that takes). On another C library than glibc
    nothing happens. It holds for the whole process until it ends, so it is for commands and scripts.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(_M_TRIM_THRESHOLD, _MOST_KEPT) and set_option(_M_MMAP_THRESHOLD, _LARGEST_TENSOR))


__all__ = ["keep_freed_memory"]
