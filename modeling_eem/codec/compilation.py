"""`compiled`: how the fast decoder's functions are compiled, and where the result is kept.

numba keeps a compiled function as long as the function's own file is unchanged. But a function here also holds code
and constants of other files. So the cache folder is named after the contents of all of them.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.extending import intrinsic

# The files whose code or constants end up in a compiled function.
SOURCES = (
    "compilation",
    "entropy_coder",
    "fast_layers",
    "fast_windows",
    "packed_weights",
    "tensor_grids",
    "tile_product",
)


# numba sets this module's attributes on import, where no type checker sees them.
_SETTINGS: Any = config


def _cache_folder() -> Path | None:
    """A folder below numba's own cache folder if one is set, else below the user's; None if neither is writable."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in SOURCES)).hexdigest()
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(_SETTINGS.CACHE_DIR or caches / "modeling_eem") / f"codec-{digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return folder if os.access(folder, os.W_OK) else None


_FOLDER = _cache_folder()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call: without Python's lock, with floats exactly as written."""
    before = _SETTINGS.CACHE_DIR
    # numba reads it only when a function is decorated.
    _SETTINGS.CACHE_DIR = str(_FOLDER or "")
    try:
        return numba.njit(  # pyright: ignore[reportCallIssue]  # numba's stub leaves out _nrt
            nogil=True,
            cache=_FOLDER is not None,
            fastmath=False,
            error_model="numpy",
            boundscheck=False,
            no_cfunc_wrapper=True,
            _nrt=False,  # nothing here allocates, so numba need not count references
        )(function)
    finally:
        _SETTINGS.CACHE_DIR = before


def compiled_by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that writes its own instructions; `compiled` functions call it without its first parameter.

    It is numba's `intrinsic`, with the type that its stub lacks: a call leaves out the typing context.
    """
    return intrinsic(function)
