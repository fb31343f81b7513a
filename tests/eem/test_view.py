"""eem view: what the command refuses, and what it writes. The page itself is tested in tests/view."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
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


def test_a_port_that_does_not_exist_is_refused_in_one_line() -> None:
    result = _run("runs/eem", "--port", 99999)
    assert result.exit_code == 2 and "65535" in result.stderr and result.stderr.count("\n") == 1


@needs_gradio
def test_a_port_in_use_is_named(harness_model: Callable[..., Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = _run(harness_model("llama"), "--port", port)
    assert result.exit_code == 2
    assert result.stderr == f"error: port {port} is in use: choose another with --port.\n"


@needs_gradio
def test_a_space_is_written(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    result = _run(harness_model("llama"), harness_model("eem"), "--space", tmp_path / "space", "--max-bytes", 50)
    assert result.exit_code == 0, result.stderr
    assert "python app.py serves it here" in result.stdout
    said = (tmp_path / "space" / "app.py").read_text()
    assert "['models/llama-16', 'models/eem-16'], ['causal', 'exact'], max_bytes=50" in said


@pytest.mark.parametrize("options", [["--port", 7860], ["--share"]])
def test_a_space_has_no_port_and_no_public_address(options: list[object], tmp_path: Path) -> None:
    """Both were ignored."""
    result = _run("model", "--space", tmp_path / "space", *options)
    assert result.exit_code == 2 and "--space serves no page" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "space").exists()


def _press_show(address: str) -> None:
    """Ask the page for an estimate that takes long."""
    with urllib.request.urlopen(address) as answer:
        assert answer.status == 200
        config = json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", answer.read().decode(), re.S)[1])  # type: ignore[index]
    parts = {part["id"]: part["props"] for part in config["components"]}
    (show,) = (
        event for event in config["dependencies"] if parts.get(event["targets"][0][0], {}).get("elem_id") == "show"
    )
    (order,) = (part["value"] for part in parts.values() if part.get("elem_id") == "order")
    data = ["The sea was calm. " * 1000, ["eem-16"], ["exact"], "loss", "tokens", "bits", order]
    body = json.dumps({"data": data, "fn_index": show["id"], "session_hash": "reader", "trigger_id": 1}).encode()
    join = urllib.request.Request(f"{address}gradio_api/queue/join", body, {"content-type": "application/json"})
    with urllib.request.urlopen(join) as answer:
        assert answer.status == 200


@needs_gradio
@pytest.mark.slow
@pytest.mark.parametrize("is_at_work", [False, True])
def test_the_page_is_served_until_ctrl_c(harness_model: Callable[..., Path], tmp_path: Path, is_at_work: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "eem", "view", str(harness_model("eem"))],
        cwd=tmp_path, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:") and line.endswith("(Ctrl-C ends it)\n")
        with urllib.request.urlopen(line.split()[0]) as answer:
            assert answer.status == 200
        if is_at_work:
            _press_show(line.split()[0])
            time.sleep(3)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=4)
        assert process.returncode == 130 and rest == "" and errors.endswith("stopped: the page is closed.\n")
        assert "Traceback" not in errors and "terminate" not in errors
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
