"""Train what a run file describes, or go on with it.

    python train.py --config configs/quickstart.yaml --output_dir runs/eem
    python train.py --config configs/quickstart.yaml --output_dir runs/eem --learning_rate 1e-3 \\
        --encoder_config.hidden_size 128
    torchrun --nproc_per_node 2 train.py --config configs/quickstart.yaml --output_dir runs/eem --use_cpu true
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from eem.console import one_line_errors
from modeling_eem.report import LearningCurve
from modeling_eem.training import (
    ProgressBarCallback,
    Run,
    RunTrainer,
    TrainingInterrupted,
    first_process_speaks,
    held_out_metrics,
    learning_curve,
    prepare_run,
)

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="The run file.")],
) -> None:
    """Train the model of a run file; any of its keys can be overridden: `--learning_rate 1e-3`.

    Writes checkpoints, the trained model, its tokenizer, card, learning curve and numbers to the run's `output_dir`.
    The same command goes on from the last whole checkpoint there.

    Example: `python train.py --config configs/quickstart.yaml --output_dir runs/eem`
    """
    disable_progress_bar()  # of writing and loading; ours shows the steps
    with one_line_errors(), first_process_speaks():
        run = prepare_run(config, context.args)
        trainer = RunTrainer(run, [ProgressBarCallback(run.name)])
        console = Console(quiet=not trainer.is_world_process_zero())
        if run.checkpoint is not None or run.is_finished:
            console.print(run.begins, soft_wrap=True)
        try:
            trainer.fit()
        except FloatingPointError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except TrainingInterrupted as error:
            if trainer.is_world_process_zero():
                typer.echo(str(error), err=True)
            raise typer.Exit(130) from error
        trainer.finish()
        measured = held_out_metrics(run, trainer.state)
        console.print(f"held out: {', '.join(f'{name} {value:.4f}' for name, value in measured.items())}")
        console.print(f"{run.arguments.output_dir}: model, card, learning curve and results.json", soft_wrap=True)
        trainer.accelerator.end_training()


def fit(run: Run, name: str) -> LearningCurve:
    """Train, and give the learning curve."""
    trainer = RunTrainer(run, [ProgressBarCallback(name)])
    trainer.fit()
    return learning_curve(run, trainer.state, name)


if __name__ == "__main__":
    app()
