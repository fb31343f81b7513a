"""Where a number comes from: the command, the commit, the versions, the machine and the day.

Records and cards are published, so neither secrets nor the folders of the user's machine travel with them.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import Any

MASK = "***"
# `hub_token` and `api_key` are secrets; `pad_token`, `token_loss` and `sort_key` are none.
_SECRET_NAME = re.compile(
    r"(^|_)(password|passwd|passphrase|secret|credentials?|(api|access|private|secret)_?key)$"
    r"|^((hub|hf|push_to_hub|auth|use_auth|access|api|bearer|refresh|wandb|github)_?)?token$"
)
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
_CREDENTIALS = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
PACKAGES = ("torch", "transformers", "modeling-eem")


def provenance(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """What a record needs beside its numbers: `command`, `commit`, `versions`, `machine`, `date`.

    The commit is that of the checkout this package runs from, marked where files differ from it, and "unknown" for an
    installed package.
    """
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *public_arguments(sys.argv[1:])]),
        "commit": _commit(),
        "versions": ", ".join(versions),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
    }


def public_arguments(arguments: Sequence[str]) -> list[str]:
    """A command's arguments as they may be published, see `public_text`; values of options for secrets are "***"."""
    shown, hides_next = [], False
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if hides_next and not argument.startswith("--"):
            shown.append(MASK)
        elif argument.startswith("-") and has_value:
            shown.append(f"{name}={MASK if is_secret_name(name) else public_text(value)}")
        else:
            shown.append(public_text(argument))
        hides_next = argument.startswith("-") and not has_value and is_secret_name(name)
    return shown


def public_values(values: Any, name: str = "") -> Any:
    """Settings as they may be published, such as those of a run file: texts by `public_text`, secrets as "***".

    Args:
        values: mappings, sequences and single values, however nested.
        name: of the setting.
    """
    if isinstance(values, Mapping):
        return {key: public_values(value, str(key)) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [public_values(value, name) for value in values]
    if isinstance(values, (str, Path)):
        return MASK if is_secret_name(name) and str(values) else public_text(str(values))
    return values


def is_secret_name(name: str) -> bool:
    """Whether an option or key of this name holds a secret: `--hub_token`, `wandb.api-key`; not `pad_token_id`."""
    return _SECRET_NAME.search(name.strip("-").rpartition(".")[2].lower().replace("-", "_")) is not None


def public_text(text: str) -> str:
    """A text without what looks like a secret, an absolute path as it is seen from the working folder.

    A path outside the working folder becomes its name alone. Of a URL, user and password are left out.
    """
    text = _CREDENTIALS.sub(r"\1***@", _TOKEN.sub(MASK, text))
    if "://" in text or not text.startswith(("/", "~")) and not PureWindowsPath(text).is_absolute():
        return text
    path, here = Path(text).expanduser(), Path.cwd()
    if path.is_relative_to(here):
        return str(path.relative_to(here))
    return PureWindowsPath(text).name or PureWindowsPath(text).anchor  # splits at both kinds of slashes


def provenance_line(origin: Mapping[str, str]) -> str:
    """`provenance` as a line of Markdown, to stand below what it is the origin of."""
    return f"`{origin['command']}`; {', '.join(origin[key] for key in ('date', 'commit', 'versions', 'machine'))}."


def _commit() -> str:
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
