"""eem view: what the command refuses, and what it writes. The page itself is tested in tests/view."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from eem.__main__ import app

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra view is not installed")


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["view", *map(str, arguments)])


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gradio", "modeling_eem.view.page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = _run("runs/eem")
    assert result.exit_code == 2
    assert result.stderr == 'error: gradio is not installed: pip install "modeling-eem[view]"\n'


@needs_gradio
def test_what_the_page_cannot_show_is_refused_in_one_line(harness_model: Callable[..., Path]) -> None:
    for arguments, message in (
        (["nowhere"], "nowhere"),
        ([harness_model("llama"), "--estimator", "exact"], "have no method 'exact', only causal"),
        ([harness_model("llama"), "--estimator", "exact", "--space", "space"], "have no method 'exact'"),
    ):
        result = _run(*arguments)
        assert result.exit_code == 2 and result.stderr.startswith("error: ") and message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not Path("space").exists()


@needs_gradio
def test_a_space_is_written(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    result = _run(harness_model("llama"), harness_model("eem"), "--space", tmp_path / "space", "--max-bytes", 50)
    assert result.exit_code == 0, result.stderr
    assert "python app.py serves it here" in result.stdout
    said = (tmp_path / "space" / "app.py").read_text()
    assert "['models/llama-16', 'models/eem-16'], ['causal', 'exact'], max_bytes=50" in said


@needs_gradio
@pytest.mark.slow
def test_the_page_is_served_until_ctrl_c(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "eem", "view", str(harness_model("llama"))],
        cwd=tmp_path, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:") and line.endswith("(Ctrl-C ends it)\n")
        with urllib.request.urlopen(line.split()[0]) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and rest == "" and "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
