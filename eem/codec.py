"""eem codec: codec models; each command has its own file, `eem/codec_<command>.py`."""

from eem.codec_build import build
from eem.console import Command, new_app

app = new_app(
    "Make the models that `eem compress --model` takes.\n\n"
    "Example: `eem codec build --model runs/causal --calibration notes.txt --output codec`"
)
app.command(cls=Command)(build)


@app.callback()
def codec() -> None:
    """Makes typer keep the command's name although there is only one command."""
