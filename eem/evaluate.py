"""eem evaluate: measures trained models; each command has its own file, `eem/evaluate_<command>.py`."""

from eem.console import Command, new_app
from eem.evaluate_bits import bits
from eem.evaluate_correlation import correlation
from eem.evaluate_curves import curves
from eem.evaluate_entropy_floor import entropy_floor
from eem.evaluate_harness import harness
from eem.evaluate_quantization import quantization

app = new_app(
    "Measure trained models: their bits, and their scores on benchmarks.\n\n"
    "Example: `eem evaluate bits --model runs/eem --data held_out.jsonl --output results`"
)
for _command in (bits, curves, quantization, entropy_floor, harness, correlation):
    app.command(cls=Command)(_command)
