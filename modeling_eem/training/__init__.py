"""Training: token losses and their trainer, run files and the runs they describe, what a step costs."""

from modeling_eem.training.callbacks import HeldOutCallback, ProgressBarCallback
from modeling_eem.training.flops import training_flops
from modeling_eem.training.run import DataArguments, Run, prepare_run
from modeling_eem.training.run_file import build_config, build_model, read_run_file
from modeling_eem.training.token_losses import TOKEN_LOSSES, TokenLossOptions
from modeling_eem.training.trainer import TokenWeightedTrainer, TokenWeightedTrainingArguments

__all__ = [
    "TOKEN_LOSSES",
    "DataArguments",
    "HeldOutCallback",
    "ProgressBarCallback",
    "Run",
    "TokenLossOptions",
    "TokenWeightedTrainer",
    "TokenWeightedTrainingArguments",
    "build_config",
    "build_model",
    "prepare_run",
    "read_run_file",
    "training_flops",
]
