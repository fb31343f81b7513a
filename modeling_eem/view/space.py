"""Writes a folder that runs as a Gradio Space: the page, its models, this package and its requirements."""

import re
import shutil
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

from modeling_eem.files import folder_at_once
from modeling_eem.view.models import ViewedModel

_PACKAGE = Path(__file__).parents[1]
# Files that training leaves beside a model and that the page does not read.
_LEFT_OUT = shutil.ignore_patterns("checkpoint-*", "*.pt", "*.pth", "*.bin.index.json.part", ".*", "__pycache__")
_APP = '''"""Looks at text through models; made by `eem view --space`."""

import os
from pathlib import Path

from modeling_eem.view.page import serve

os.chdir(Path(__file__).parent)
serve({folders!r}, {methods!r}, max_bytes={max_bytes}, host=None)
'''
_CARD = """---
title: eem view
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
---

Looks at text through {names}: tokens coloured by how surprising they are, several estimates side by side.

`python app.py` serves the same page on this machine, where `requirements.txt` is installed.
"""


def write_space(folder: Path, models: Sequence[ViewedModel], methods: Sequence[str], max_bytes: int) -> None:
    """Write `app.py`, `requirements.txt`, a card, local models and this package into `folder`.

    The Space fetches models that have a Hub name; folders are copied into `models/`.

    Raises:
        ValueError: if `folder` exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new or an empty folder.")
    with folder_at_once(folder) as draft:
        shutil.copytree(_PACKAGE, draft / "modeling_eem", ignore=shutil.ignore_patterns("__pycache__"))
        names = []
        for viewed in models:
            if Path(viewed.folder).is_dir():
                name = f"models/{re.sub(r'[^A-Za-z0-9._-]+', '-', viewed.name)}"
                shutil.copytree(viewed.folder, draft / name, ignore=_LEFT_OUT)
                names.append(name)
            else:
                names.append(viewed.folder)
        (draft / "app.py").write_text(_APP.format(folders=names, methods=list(methods), max_bytes=max_bytes))
        (draft / "requirements.txt").write_text(requirements())
        shown = ", ".join(viewed.name for viewed in models)
        (draft / "README.md").write_text(_CARD.format(gradio=version("gradio"), names=shown))


def requirements() -> str:
    """The package's own requirements, one a line, with PyTorch's CPU builds, which fit a free Space."""
    wanted = [text for text in requires("modeling-eem") or [] if "extra ==" not in text]
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", *sorted(wanted)]) + "\n"
