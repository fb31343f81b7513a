"""Training: run files, the runs they describe, and what a step costs."""

from modeling_eem.training.callbacks import HeldOutCallback, ProgressBarCallback
from modeling_eem.training.flops import training_flops
from modeling_eem.training.run import DataArguments, Run, prepare_run
from modeling_eem.training.run_file import build_config, build_model, read_run_file

__all__ = [
    "DataArguments",
    "HeldOutCallback",
    "ProgressBarCallback",
    "Run",
    "build_config",
    "build_model",
    "prepare_run",
    "read_run_file",
    "training_flops",
]
