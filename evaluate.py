"""python evaluate.py COMMAND …: `eem evaluate` from a checkout.

This file has the name of a library that lm-eval imports. If Python searches the checkout for modules, as `python -m`
does, `import evaluate` finds this file. It then returns the library in its place.
"""

import importlib
import sys
from pathlib import Path

_found = list(sys.path)
sys.path[:] = [entry for entry in _found if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

if __name__ == "__main__":
    from eem.evaluate import app

    app()
else:
    del sys.modules[__name__]
    importlib.import_module(__name__)
    sys.path[:] = _found
