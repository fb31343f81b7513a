"""What is published about a run holds no secret and no folder of the user's machine."""

import json
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
