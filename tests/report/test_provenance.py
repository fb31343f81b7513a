"""What is published about a run holds no secret and no folder of the user's machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_eem.files import without_secrets
from modeling_eem.report import Table, provenance, write_results

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize("name", ["bos_token", "pad_token_id", "token_loss", "max_new_tokens", "tokenizer"])
def test_tokens_of_text_are_no_secrets(name: str) -> None:
    assert without_secrets({name: "<|endoftext|>"}) == {name: "<|endoftext|>"}


def test_records_hold_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/tools/eem", "--hub_token", TOKEN, "--output", str(tmp_path / "here")])
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path, "bits", [Table(["a"], [[1]])], {"data": [str(tmp_path.parent / "x.jsonl")], "n": [1, 2]})
    for name in ("bits.md", "bits.json"):
        text = (tmp_path / name).read_text()
        assert TOKEN not in text and str(tmp_path) not in text and "--hub_token '<hidden>'" in text.replace('\\"', '"')
    assert json.loads((tmp_path / "bits.json").read_text())["data"] == ["x.jsonl"]
    assert len((tmp_path / "bits.json").read_text().splitlines()) == 5, "a line a key"
    assert provenance(())["command"].startswith("eem --hub_token")


def test_a_processor_that_was_held_back_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx" not in provenance(())["machine"]:
        pytest.skip("this system does not name its processor's units")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert "limited by ATEN_CPU_CAPABILITY=default)" in provenance(())["machine"]
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    assert "limited" not in provenance(())["machine"]


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment often lies in a repository of the user's: its commit is not the package's."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    module = tmp_path / "environment" / "provenance.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(sys.modules["modeling_eem.report.provenance"], "__file__", str(module))
    assert provenance(())["commit"] == "unknown"
    for words in (["add", "-f", str(module)], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *words], check=True)
    commit = provenance(())["commit"]
    assert commit not in ("unknown", "") and not commit.endswith("-dirty")


def test_a_figure_that_is_written_first_does_not_make_its_record_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, figure = tmp_path / "package" / "provenance.py", tmp_path / "record" / "curve.png"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for file in (module, figure):
        file.parent.mkdir()
        file.write_text("before")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "both"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(sys.modules["modeling_eem.report.provenance"], "__file__", str(module))
    commit = provenance(())["commit"]
    figure.write_text("after")
    assert provenance(())["commit"] == commit
    module.write_text("after")
    assert provenance(())["commit"] == f"{commit}-dirty"
