"""python train.py --config configs/quickstart.yaml [--any_field value]; see `eem/train.py`."""

import sys
from pathlib import Path

# This folder must not be searched for modules: its evaluate.py would hide the `evaluate` library.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from eem.train import app  # noqa: E402

if __name__ == "__main__":
    app()
