"""python evaluate.py COMMAND …: what a trained model is worth; see `eem/evaluate.py`."""

import sys
from pathlib import Path

# This folder must not be searched for modules: this very file would hide the `evaluate` library.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from eem.evaluate import app  # noqa: E402

if __name__ == "__main__":
    app()
