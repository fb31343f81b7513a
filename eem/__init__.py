"""Argument parsing only: each command is a short story that calls the strata above."""

import sys
from pathlib import Path

# `python -m eem.…` in a checkout searches it for modules: evaluate.py would hide the `evaluate` library.
_CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _CHECKOUT]
