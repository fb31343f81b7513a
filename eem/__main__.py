"""eem: train, measure and use entropy estimation models; `python -m eem` is the same.

eem quickstart
eem evaluate bits --model runs/quickstart/eem --data notes.txt --output results
accelerate launch -m eem train --config run.yaml
"""

import sys
from typing import Annotated

import typer

from eem import codec, data, evaluate
from eem.compress import compress, decompress
from eem.console import Command, new_app
from eem.entropy import entropy
from eem.quickstart import quickstart
from eem.train import TRAIN_SETTINGS, TrainCommand, train
from eem.view import view

app = new_app(
    "Train, measure and use entropy estimation models and masked mixers.\n\n"
    "Example: `eem quickstart --output quickstart`"
)
app.command(cls=Command)(quickstart)
app.command(cls=TrainCommand, context_settings=TRAIN_SETTINGS)(train)
app.add_typer(data.app, name="data")
app.command(cls=Command)(entropy)
app.command(cls=Command)(compress)
app.command(cls=Command)(decompress)
app.add_typer(codec.app, name="codec")
app.add_typer(evaluate.app, name="evaluate")
app.command(cls=Command)(view)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"modeling-eem {version('modeling-eem')}")
        raise typer.Exit()


@app.callback()
def eem(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the console script `eem`."""
    sys.argv[0] = "eem"  # records name it as their command, for `python -m eem` too
    app(prog_name="eem")


if __name__ == "__main__":
    main()
