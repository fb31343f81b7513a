"""The options that estimators declare, as options of a command, without importing any estimator."""

import inspect
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from eem.shared_options import with_options

_TYPES: dict[str, type] = {"int": int, "str": str}
_PACKAGE = find_spec("modeling_eem")  # found, not imported: its help must not wait for torch
_TABLE: dict[str, Any] = json.loads(
    (Path(_PACKAGE.origin if _PACKAGE and _PACKAGE.origin else "").parent / "assets/entropy_options.json").read_text()
)
METHODS: tuple[str, ...] = tuple(_TABLE["methods"])


def with_method_options(panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of every estimator in place of its `**options`; an option not given is None."""
    return with_options(
        [
            inspect.Parameter(
                option["name"],
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _TYPES[option["type"]] | None, typer.Option(help=_help(option), rich_help_panel=panel)
                ],
            )
            for option in _TABLE["options"]
        ]
    )


def _help(option: dict[str, Any]) -> str:
    methods = [
        method if default is None else f"{method} (default {default})" for method, default in option["methods"].items()
    ]
    choices = f" One of {', '.join(option['choices'])}." if option["choices"] else ""
    return f"{option['help']}{choices} For {', '.join(methods)}."
