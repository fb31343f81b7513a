"""eem view: a local page that looks at text through models.

eem view runs/eem runs/causal --estimator causal exact
eem view runs/eem codec --space space
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eem.console import one_line_errors, quiet_loading


@one_line_errors()
def view(
    models: Annotated[
        list[str], typer.Argument(help="Folders or Hub names of checkpoints, or folders of codec models.")
    ],
    estimator: Annotated[
        list[str] | None,
        typer.Option(help="Estimators chosen when the page opens; if not given, one for each model."),
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Most bytes of a text that the page takes.", min=1)] = 20_000,
    port: Annotated[
        int | None, typer.Option(help="Port; if not given, the first free one from 7860 on.", min=1, max=65535)
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also serve on a public address of Gradio's, for everyone who knows it.")
    ] = False,
    space: Annotated[
        Path | None, typer.Option(help="Serve no page: write a folder that runs as a Gradio Space.")
    ] = None,
) -> None:
    """Look at text through models, on a local page that asks no other server for anything.

    It shows tokens coloured by surprise, estimates side by side, an entropy estimation model's code, and what a codec
    stores.

    Example: `eem view runs/eem runs/causal --estimator causal exact`
    """
    if space is not None and (port is not None or share):
        raise ValueError("--space serves no page, so it takes no --port and no --share: leave them out.")
    from modeling_eem.view.page import serve  # first: its error names the missing extra

    quiet_loading()
    if space is None:
        serve(models, estimator, max_bytes=max_bytes, port=port, share=share, tell=typer.echo)
        return
    from modeling_eem.view.models import check_methods, default_methods, load_viewed
    from modeling_eem.view.space import write_space

    viewed = load_viewed(models)
    check_methods(viewed, estimator or [])
    write_space(space, viewed, estimator or default_methods(viewed), max_bytes)
    typer.echo(f"{space}: python app.py serves it here; pushed to a Gradio Space it runs there")
