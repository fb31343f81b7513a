"""evaluate.py harness: lm-eval's benchmarks for several models, as one table.

python evaluate.py harness --model runs/a runs/b --tasks table --data-dir data/hub --output results
"""

from pathlib import Path
from typing import Annotated

import typer

from modeling_eem.cli.console import one_line_errors


@one_line_errors()
def harness(
    model: Annotated[list[Path], typer.Option(help="Folders with a model and its tokenizer.")],
    output: Annotated[Path, typer.Option(help="Folder for harness.json and harness.md.")],
) -> None:
    """Score models on lm-eval's tasks.

    Example: `python evaluate.py harness --model runs/a runs/b --tasks table --output results`
    """
    raise ValueError("the harness is not finished.")
