"""Where a number comes from: the command, the commit, the versions, the machine and the day.

Records and cards are published, so they must hold no secrets and no folders of the user's machine.
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
# With these a processor's libraries do without some of its units, as on a lesser one.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
_UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def provenance(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """What a record needs beside its numbers: `command`, `commit`, `versions`, `machine`, `date`.

    The commit is that of the checkout that this package runs from, with a mark if files differ from it; for an
    installed package it is "unknown". Pictures and pages do not count: no number depends on them, and figures are
    written before a record's numbers.
    """
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *command_without_secrets(sys.argv[1:])]),
        "commit": _commit(),
        "versions": ", ".join(versions),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{_processor()}",
        "date": date.today().isoformat(),
    }


def provenance_line(origin: Mapping[str, str]) -> str:
    """`provenance` as a line of Markdown, to put below the numbers."""
    return f"`{origin['command']}`; {', '.join(origin[key] for key in ('date', 'commit', 'versions', 'machine'))}."


def _processor() -> str:
    """What speed depends on, as far as Linux shows it: the processor's name and its units for small numbers."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    units = [name for name in _UNITS if name in values.get("flags", "").split()]
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    limited = f", limited by {' and '.join(limits)}" if limits else ""
    return f" of {values['model name']} ({', '.join(units)}{limited})" if "model name" in values else ""


def _commit() -> str:
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    # An installed package may lie in an environment inside a repository that is not this package's.
    is_ours = [*git, "ls-files", "--error-unmatch", here.name]
    describe = [*git, "describe", "--always", "--exclude", "*"]
    is_clean = [*git, "diff", "--quiet", "HEAD", "--", ":(top)", ":(top,exclude)*.png", ":(top,exclude)*.md"]
    try:
        subprocess.run(is_ours, capture_output=True, check=True)
        commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
        return commit if subprocess.run(is_clean, capture_output=True).returncode == 0 else f"{commit}-dirty"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
