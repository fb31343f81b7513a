"""python train.py --config RUN.yaml [--any_field value]: `eem train`, for launchers that take a file."""

import sys
from pathlib import Path

# This folder must not be searched for modules: its evaluate.py would hide the `evaluate` library.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

if __name__ == "__main__":
    from eem.train import app

    app()
