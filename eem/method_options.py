"""The options that estimators declare, as options of a command, without importing any of them."""

import inspect
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

_TYPES: dict[str, type] = {"int": int, "str": str}
_PACKAGE = find_spec("modeling_eem")  # found, not imported: its help must not wait for torch
_TABLE: dict[str, Any] = json.loads(
    (Path(_PACKAGE.origin if _PACKAGE and _PACKAGE.origin else "").parent / "assets/entropy_options.json").read_text()
)
METHODS: tuple[str, ...] = tuple(_TABLE["methods"])


def with_method_options(panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of every estimator, None where it is not given, in place of its `**options`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        options = [
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
        parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own] + options
        # What typer reads a command's options from.
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
        return command

    return decorate


def _help(option: dict[str, Any]) -> str:
    methods = [
        method if default is None else f"{method} (default {default})" for method, default in option["methods"].items()
    ]
    choices = f" One of {', '.join(option['choices'])}." if option["choices"] else ""
    return f"{option['help']}{choices} For {', '.join(methods)}."
