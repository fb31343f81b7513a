"""Evaluate trained models; each command is in a file of its own, `eem/evaluate_<command>.py`.

python evaluate.py harness --model runs/causal --tasks table --output results
"""

import typer
from transformers.utils import logging

from eem.console import ListOptionsCommand
from eem.evaluate_bits import bits
from eem.evaluate_correlation import correlation
from eem.evaluate_curves import curves
from eem.evaluate_entropy_floor import entropy_floor
from eem.evaluate_harness import harness
from eem.evaluate_quantization import quantization

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")

app.command("bits", cls=ListOptionsCommand)(bits)
app.command("correlation", cls=ListOptionsCommand)(correlation)
app.command("curves", cls=ListOptionsCommand)(curves)
app.command("entropy-floor", cls=ListOptionsCommand)(entropy_floor)
app.command("harness", cls=ListOptionsCommand)(harness)
app.command("quantization", cls=ListOptionsCommand)(quantization)


@app.callback()
def main() -> None:
    """Say what trained models are worth: their bits, and their scores on benchmarks."""
    logging.disable_progress_bar()  # of loading weights; the commands have their own


if __name__ == "__main__":
    app()
