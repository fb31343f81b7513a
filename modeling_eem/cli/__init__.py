"""Argument parsing only: each command is a short story that calls the strata above."""

import sys
from pathlib import Path

# `python -m modeling_eem.cli.…` in a checkout searches it for modules: evaluate.py would hide the `evaluate` library.
_CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _CHECKOUT]
