"""Options that are declared in one place and given to commands."""

import inspect
from collections.abc import Callable, Sequence


def with_options(options: Sequence[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options in place of its `**options`, which receives their values."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*own, *options)]
        # typer reads a command's options from here.
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
        return command

    return decorate


def options_of(declaration: Callable[..., None]) -> Sequence[inspect.Parameter]:
    """The parameters of a function that only declares options."""
    return tuple(inspect.signature(declaration, eval_str=True).parameters.values())
