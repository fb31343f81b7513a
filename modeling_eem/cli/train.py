"""Train what a run file describes.

    python train.py --config configs/quickstart.yaml --output_dir runs/eem
    python train.py --config configs/quickstart.yaml --output_dir runs/eem --learning_rate 1e-3 \\
        --encoder_config.hidden_size 128
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from transformers import PreTrainedModel

from modeling_eem.bits import nats_to_bits
from modeling_eem.cli.console import one_line_errors
from modeling_eem.evaluation import held_out, stored_code_bits
from modeling_eem.report import LearningCurve, learning_curves
from modeling_eem.training import HeldOutCallback, ProgressBarCallback, Run, prepare_run

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
CURVE_POINTS = 6


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="The run file.")],
) -> None:
    """Train the model of a run file; any of its keys can be overridden: `--learning_rate 1e-3`.

    Writes the checkpoint, its tokenizer and a learning curve to the run's `output_dir`.

    Example: `python train.py --config configs/quickstart.yaml --output_dir runs/eem`
    """
    with one_line_errors():
        run = prepare_run(config, context.args)
        curve = fit(run, str(config.stem))
        output = Path(run.arguments.output_dir)
        run.model.save_pretrained(output)
        run.tokenizer.save_pretrained(output)
        plot = learning_curves(output / "learning_curve.png", [curve], unit="held-out bits per byte")
        Console().print(f"{curve.held_out[-1][1]:.3f} bits per byte on held-out text; {output}, {plot}")


def fit(run: Run, name: str) -> LearningCurve:
    """Train, and give the learning curve in bits per byte, the code's bits included."""

    def measure(_model: PreTrainedModel) -> float:
        return held_out(run).bits_per_byte

    callback = HeldOutCallback(measure, points=CURVE_POINTS)
    trainer = run.trainer([ProgressBarCallback(name), callback])
    trainer.train()

    # Training losses are nats a token; in bits per byte, and with the code they were shown, they compare.
    tokens = sum(len(row["input_ids"]) - 1 for row in run.train_rows)
    num_bytes = sum(row["num_bytes"] for row in run.train_rows)
    code = stored_code_bits(run.model) * len(run.train_rows) / num_bytes
    return LearningCurve(
        name,
        held_out=[(step * run.tokens_per_step, value) for step, value in callback.values],
        train=[
            (entry["step"] * run.tokens_per_step, nats_to_bits(entry["loss"]) * tokens / num_bytes + code)
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
    )


if __name__ == "__main__":
    app()
