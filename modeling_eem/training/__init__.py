"""Training: token losses and their trainer, run files and the runs they describe, what a step costs."""

from modeling_eem.loading import quiet_bitsandbytes

with quiet_bitsandbytes():
    from modeling_eem.training.best_model import kept_model
    from modeling_eem.training.bfloat16 import bfloat16_advice, bfloat16_speedup
    from modeling_eem.training.dry_run import DryRun, dry_run, dry_run_table
    from modeling_eem.training.experiment import Run, prepare_run
    from modeling_eem.training.flops import training_flops
    from modeling_eem.training.freed_memory import keep_freed_memory
    from modeling_eem.training.resumable_trainer import RunTrainer, TrainingInterrupted
    from modeling_eem.training.run_arguments import RunArguments
    from modeling_eem.training.run_file import build_config, build_model, read_run_file
    from modeling_eem.training.run_outputs import held_out_metrics, learning_curve
    from modeling_eem.training.token_loss_arguments import TokenLossArguments, TokenWeightedTrainingArguments
    from modeling_eem.training.token_losses import TOKEN_LOSSES, TokenLossOptions, token_loss_function
    from modeling_eem.training.trainer import TokenLossMixin, TokenWeightedTrainer
    from modeling_eem.training.training_text import DataArguments

__all__ = [
    "TOKEN_LOSSES",
    "DataArguments",
    "DryRun",
    "Run",
    "RunArguments",
    "RunTrainer",
    "TokenLossArguments",
    "TokenLossMixin",
    "TokenLossOptions",
    "TokenWeightedTrainer",
    "TokenWeightedTrainingArguments",
    "TrainingInterrupted",
    "bfloat16_advice",
    "bfloat16_speedup",
    "build_config",
    "build_model",
    "dry_run",
    "dry_run_table",
    "held_out_metrics",
    "keep_freed_memory",
    "kept_model",
    "learning_curve",
    "prepare_run",
    "read_run_file",
    "token_loss_function",
    "training_flops",
]
