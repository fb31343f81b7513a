"""eem train: train the model of a run file, or resume its training.

eem train --config run.yaml --output_dir runs/eem --learning_rate 1e-3 --encoder_config.hidden_size 128
torchrun --nproc_per_node 2 -m eem train --config run.yaml --output_dir runs/eem --use_cpu true
"""

from typing import Annotated, Any

import typer

from eem.console import Command, one_line_errors, print_error, progress_bar, quiet_loading, waiting
from eem.launch import is_first_process
from eem.train_keys import PANELS

TRAIN_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


class TrainCommand(Command):
    """`eem train`: its help lists the keys of run files too."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_panels(PANELS)


def _print_all_keys(is_wanted: bool) -> None:
    if not is_wanted:
        return
    from eem.train_arguments import argument_panels

    _print_panels(PANELS | argument_panels())
    raise typer.Exit()


@one_line_errors(is_shared=True)
def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="The run file; asset:configs/quickstart.yaml ships with the package.")],
    help_all: Annotated[
        bool,
        typer.Option(
            "--help-all",
            help="Show transformers' TrainingArguments too, which are also keys, and exit.",
            callback=_print_all_keys,
            is_eager=True,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Take a few steps in memory, print what the run will cost, and write nothing."),
    ] = False,
) -> None:
    """Train the model of a run file; any of its keys can be overridden: `--learning_rate 1e-3`.

    Writes checkpoints, the trained model, its tokenizer, card, learning curve and numbers to the run's `output_dir`.
    The same command resumes from the last whole checkpoint there. Paths in a run file are relative to that file, those
    on the command line to the working directory.

    Example: `eem train --config asset:configs/quickstart.yaml --output_dir runs/eem --max_steps 200`
    """
    if dry_run:
        _print_costs(config, context.args)
        return
    from rich.console import Console

    from eem.training_progress import ProgressCallback
    from modeling_eem.files import asset
    from modeling_eem.training import (
        RunTrainer,
        TrainingInterrupted,
        bfloat16_advice,
        held_out_metrics,
        keep_freed_memory,
        kept_model,
        prepare_run,
    )

    keep_freed_memory()
    quiet_loading()  # training shows its own progress
    with waiting("reading text and model", quiet=not is_first_process()):
        run = prepare_run(asset(config), context.args)
        progress = ProgressCallback(run.name)
        trainer = RunTrainer(run, [progress])
    console = Console(quiet=not trainer.is_world_process_zero())
    if run.checkpoint is not None or run.is_finished:
        console.print(run.begins, soft_wrap=True)
    if trainer.is_world_process_zero() and (advice := bfloat16_advice(run)) is not None:
        console.print(advice, soft_wrap=True)
    with progress.open:
        try:
            trainer.fit()
            trainer.write_finished_model()
        except FloatingPointError as error:
            print_error(str(error))
            raise typer.Exit(1) from error
        except TrainingInterrupted as error:
            if trainer.is_world_process_zero():
                typer.echo(str(error), err=True)
            raise typer.Exit(130) from error
    measured = held_out_metrics(run, trainer.state, trainer.kept_step)
    if run.arguments.load_best_model_at_end:
        console.print(
            f"kept: step {trainer.kept_step:,} of {trainer.state.global_step:,}, {kept_model(run.arguments)}",
            soft_wrap=True,
        )
    console.print(f"held out: {', '.join(f'{name} {value:.4f}' for name, value in measured.items())}")
    console.print(f"{run.arguments.output_dir}: model, card, learning curve and results.json", soft_wrap=True)
    trainer.accelerator.end_training()


def _print_costs(config: str, overrides: list[str]) -> None:
    """Print what the run will cost, measured on a few of its steps."""
    from rich.console import Console

    from modeling_eem.files import asset
    from modeling_eem.training import DryRun, dry_run, dry_run_table, keep_freed_memory

    keep_freed_memory()
    quiet_loading()
    with progress_bar("a few real steps", quiet=not is_first_process()) as steps:
        try:
            costs = dry_run(asset(config), overrides, steps.advance)
        except FloatingPointError as error:
            print_error(str(error))
            raise typer.Exit(1) from error
    if is_first_process():
        Console().print(dry_run_table(costs) if isinstance(costs, DryRun) else costs.begins)


def _print_panels(panels: dict[str, dict[str, str]]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    for title, keys in panels.items():
        table = Table(show_header=False, box=None)
        table.add_column(no_wrap=True, style="bold cyan")
        table.add_column()
        for key, text in keys.items():
            table.add_row(f"--{key}", text)
        Console().print(Panel(table, title=title, title_align="left", border_style="dim"))


app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
app.command(cls=TrainCommand, context_settings=TRAIN_SETTINGS)(train)
