"""The two files that a command writes: tables and figures for people, and the same numbers for programs."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_eem.files import without_secrets, write_atomically
from modeling_eem.report.provenance import PACKAGES, provenance, provenance_line
from modeling_eem.report.tables import Table

_LONGEST_NAME = 80


def write_results(
    folder: str | Path,
    name: str,
    tables: Sequence[Table],
    content: Mapping[str, Any],
    figures: Mapping[str, str] | None = None,
    packages: tuple[str, ...] = PACKAGES,
) -> None:
    """Write `name.md` and `name.json` to a folder, each with the command, commit, versions, machine and date.

    Args:
        folder: made if it is missing.
        name: the files' name, without an ending.
        tables: the tables in the Markdown.
        content: the values in the JSON, beside the provenance; NaN and infinity become null. Names of files under
            `data` are written without this machine's folders and secrets.
        figures: caption → file in the folder, shown below the tables.
        packages: packages whose versions the numbers depend on.
    """
    origin = provenance(packages)
    content = {key: without_secrets(value) if key == "data" else value for key, value in content.items()}
    blocks = [table.to_markdown() for table in tables]
    if (commit := origin["commit"]).endswith("-dirty"):
        note = (
            f"> This record comes from a tree with uncommitted changes (`{commit}`): its commit alone does not make it"
        )
        blocks.insert(0, f"{note} again.\n")
    blocks += [f"![{caption}]({file})\n" for caption, file in (figures or {}).items()]
    blocks.append(provenance_line(origin) + "\n")
    write_atomically(Path(folder) / f"{name}.md", "\n".join(blocks))
    write_atomically(
        Path(folder) / f"{name}.json",
        compact_json({"provenance": origin, **content}),
    )


def plain_name(name: str) -> str:
    """A name from data, made fit for a file's name: letters, digits, "-", "_" and ".", no path, at most 80 characters.

    A name that had to be changed ends in a hash of itself: two names never share a file.
    """
    plain = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:_LONGEST_NAME]
    if plain and plain == name:
        return plain
    return f"{plain}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}".lstrip("-")


def compact_json(content: Mapping[str, Any]) -> str:
    """JSON with one line for each key; NaN and infinity become null."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)}"
        for key, value in content.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
