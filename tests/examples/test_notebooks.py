"""The notebooks of examples/ run from top to bottom, on what `make examples` trains; none is stored with outputs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
sys.path.append(str(Path(__file__).parent))
from notebook_runner import code_cells  # noqa: E402

SECONDS = 180


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, offline_environment: dict[str, str]) -> Path:
    """What `make examples` makes, by its own command, but in another folder."""
    (command,) = re.findall(r"&& \S*/(eem quickstart .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    folder = tmp_path_factory.mktemp("examples")
    subprocess.run(["bash", "-c", command], cwd=folder, env=offline_environment, check=True)
    return folder


def test_there_is_a_notebook_a_job_and_the_page_lists_it() -> None:
    assert len(NOTEBOOKS) == 5
    page = (ROOT / "examples" / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f"]({path.name})" in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert notebook["cells"][0]["source"][0].startswith("# ")
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    for source in code_cells(path):
        if not source.startswith("%%bash"):
            compile(source, path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(
    path: Path, trained: Path, tmp_path: Path, offline_environment: dict[str, str]
) -> None:
    shutil.copytree(trained / "quickstart", tmp_path / "quickstart")
    runner = [sys.executable, str(Path(__file__).with_name("notebook_runner.py")), str(path)]
    began = os.times()
    started = time.monotonic()
    done = subprocess.run(runner, cwd=tmp_path, env=offline_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ended = os.times()
    used = ended.children_user + ended.children_system - began.children_user - began.children_system
    print(f"{path.stem}: {time.monotonic() - started:.0f} s, {used:.0f} s of processors")
    assert used < 2 * SECONDS  # of two cores, however busy they are otherwise
