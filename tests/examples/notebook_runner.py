"""python notebook_runner.py NOTEBOOK.ipynb: run a notebook's cells from top to bottom in the current folder.

Cells of Python run in one namespace, as plain modules would, and cells that begin with `%%bash` in a shell.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_SHELL = "%%bash\n"


def code_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(path), 1):
        if source.startswith(_SHELL):
            subprocess.run(["bash", "-c", source.removeprefix(_SHELL)], check=True)
        else:
            exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
