"""The folder that runs as a Space."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from modeling_eem.view.models import ViewedModel

if find_spec("gradio") is None:
    pytest.skip("the extra view is not installed", allow_module_level=True)
from modeling_eem.view.space import requirements, write_space  # noqa: E402


@pytest.fixture
def space(viewed: dict[str, ViewedModel], tmp_path: Path) -> Path:
    (Path(viewed["causal"].folder) / "checkpoint-3").mkdir(exist_ok=True)
    write_space(tmp_path / "space", list(viewed.values()), ["exact", "causal"], 1234)
    return tmp_path / "space"


def test_a_space_holds_the_page_its_models_and_the_package(space: Path) -> None:
    assert {path.name for path in (space / "models").iterdir()} == {"eem-16", "llama-16", "codec"}
    assert not (space / "models/llama-16/checkpoint-3").exists()
    assert (space / "modeling_eem/report/templates/heatmap.html.jinja").exists()
    assert not list(space.rglob("__pycache__")), "nothing compiled"
    app = (space / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "['models/eem-16', 'models/llama-16', 'models/codec'], ['exact', 'causal'], max_bytes=1234" in app
    card = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["sdk_version"]
    assert not any(str(space.parent) in path.read_text() for path in space.glob("*.*")), "no path of this machine"


def test_requirements_are_the_packages_own_without_extras() -> None:
    first, *lines = requirements().splitlines()
    names = {Requirement(line).name for line in lines}
    assert first.startswith("--extra-index-url") and {"torch", "transformers", "jinja2"} <= names
    assert not names & {"ruff", "datatrove"}


def test_a_folder_with_something_in_it_is_kept(viewed: dict[str, ViewedModel], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: name a new or an empty folder"):
        write_space(tmp_path, [viewed["causal"]], ["causal"], 100)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_space_runs_by_itself(space: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=space, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(600):
            assert process.poll() is None, process.communicate()[1][-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                    assert "eem view" in answer.read().decode()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("the Space did not answer")
    finally:
        process.kill()
        process.communicate()
