"""Where a number comes from: the command, the commit, the versions, the machine and the day.

Records and cards are published, so neither secrets nor the folders of the user's machine travel with them.
"""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

from modeling_eem.files import command_without_secrets

PACKAGES = ("torch", "transformers", "modeling-eem")


def provenance(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """What a record needs beside its numbers: `command`, `commit`, `versions`, `machine`, `date`.

    The commit is that of the checkout this package runs from, marked where files differ from it, and "unknown" for an
    installed package.
    """
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *command_without_secrets(sys.argv[1:])]),
        "commit": _commit(),
        "versions": ", ".join(versions),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
    }


def provenance_line(origin: Mapping[str, str]) -> str:
    """`provenance` as a line of Markdown, to stand below what it is the origin of."""
    return f"`{origin['command']}`; {', '.join(origin[key] for key in ('date', 'commit', 'versions', 'machine'))}."


def _commit() -> str:
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
