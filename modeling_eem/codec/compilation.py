"""`compiled`: how the fast decoder's functions are compiled, and where the result is kept.

numba keeps what it compiled as long as the function's own file is unchanged; but a function here holds the code and
the constants of other files too. So the folder is named after the contents of all of them.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.extending import intrinsic

# Whatever ends up in a compiled function.
SOURCES = (
    "compilation",
    "entropy_coder",
    "fast_layers",
    "fast_windows",
    "packed_weights",
    "tensor_grids",
    "tile_product",
)


# numba sets the attributes of this module when it is imported, where no type checker sees them.
_SETTINGS: Any = config


def _cache_folder() -> Path | None:
    """Below numba's own cache folder if one is set, else the user's; None where nothing can be written."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in SOURCES)).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(_SETTINGS.CACHE_DIR or caches / "modeling_eem") / f"codec-{digest[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


_FOLDER = _cache_folder()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call: without Python's lock, floats exactly as written."""
    before = _SETTINGS.CACHE_DIR
    # Read when a function is decorated, and only then.
    _SETTINGS.CACHE_DIR = str(_FOLDER or "")
    try:
        return numba.njit(  # pyright: ignore[reportCallIssue]  # numba's stub leaves out _nrt
            nogil=True,
            cache=_FOLDER is not None,
            fastmath=False,
            error_model="numpy",
            boundscheck=False,
            no_cfunc_wrapper=True,
            _nrt=False,  # nothing here allocates, so nothing needs counting
        )(function)
    finally:
        _SETTINGS.CACHE_DIR = before


def compiled_by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that writes its own instructions, for `compiled` ones to call without its first parameter.

    It is numba's `intrinsic`, whose stub forgets that a call leaves out the typing context.
    """
    return intrinsic(function)
