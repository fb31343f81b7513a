"""python page_runner.py PAGE.md: run a page of the docs from top to bottom in the current folder.

`bash` blocks run in a shell, `python` blocks one after another in one namespace, and a `yaml` block that begins with
`# NAME.yaml` becomes that file. Blocks of other kinds are shown, not run.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> Iterator[tuple[str, str, int]]:
    """(language, text, line of the text) of each fenced block."""
    for match in _BLOCK.finditer(page):
        yield match[1], match[2], page.count("\n", 0, match.start()) + 2


def run(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for language, text, line in blocks(path.read_text()):
        if language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
        elif language == "python":
            # As many empty lines before it as in the page, so that a traceback names the page's line.
            exec(compile("\n" * (line - 1) + text, str(path), "exec"), namespace)
        elif language == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)\n", text)):
            Path(name[1]).write_text(text)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
