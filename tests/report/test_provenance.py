"""What is published about a run holds no secret and no folder of the user's machine."""

import json
import sys
from pathlib import Path

import pytest

from modeling_eem.report import Table, provenance, public_text, public_values, write_results
from modeling_eem.report.provenance import is_secret_name, public_arguments

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    "name, is_secret",
    [
        ("--hub_token", True),
        ("--hub-token", True),
        ("token", True),
        ("WANDB_API_KEY", True),
        ("db.password", True),
        ("aws_secret_key", True),
        ("use_auth_token", True),
        ("hub_token", True),
        ("pad_token_id", False),
        ("bos_token", False),
        ("token_loss", False),
        ("max_new_tokens", False),
        ("tokenizer", False),
        ("sort_key", False),
    ],
)
def test_names_of_secrets(name: str, is_secret: bool) -> None:
    assert is_secret_name(name) == is_secret


def test_arguments_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (
        f"--hub_token {TOKEN} --config {tmp_path}/runs/a.yaml --password=abc --note {TOKEN} --token --output=/etc/x"
    )
    shown = public_arguments([*arguments.split(), "https://me:pw@host/data", "--hub_token"])
    assert shown == [
        "--hub_token",
        "***",
        "--config",
        "runs/a.yaml",
        "--password=***",
        "--note",
        "***",
        "--token",
        "--output=x",
        "https://***@host/data",
        "--hub_token",
    ]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("/home/me/corpus.jsonl", "corpus.jsonl"),
        ("~/corpus.jsonl", "corpus.jsonl"),
        (r"C:\Users\me\corpus.jsonl", "corpus.jsonl"),
        ("data/corpus.jsonl", "data/corpus.jsonl"),
        ("hf://datasets/org/name", "hf://datasets/org/name"),
        (f"pushed with {TOKEN}.", "pushed with ***."),
        ("5e-4", "5e-4"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert public_text(text) == shown


def test_settings_of_a_run_file() -> None:
    settings = {
        "hub_token": TOKEN,
        "encoder_config": {"pad_token_id": 1, "api_key": "x"},
        "files": ["/a/b.txt"],
        "n": 5,
    }
    shown = {"hub_token": "***", "encoder_config": {"pad_token_id": 1, "api_key": "***"}, "files": ["b.txt"], "n": 5}
    assert public_values(settings) == shown
    assert public_values({"hub_token": None}) == {"hub_token": None}


def test_records_hold_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/tools/eem", "--hub_token", TOKEN, "--output", str(tmp_path / "here")])
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path, "bits", [Table(["a"], [[1]])], {"data": [str(tmp_path.parent / "x.jsonl")], "n": [1, 2]})
    for name in ("bits.md", "bits.json"):
        text = (tmp_path / name).read_text()
        assert TOKEN not in text and str(tmp_path) not in text and "--hub_token '***'" in text.replace('\\"', '"')
    assert json.loads((tmp_path / "bits.json").read_text())["data"] == ["x.jsonl"]
    assert len((tmp_path / "bits.json").read_text().splitlines()) == 5, "a line a key"
    assert provenance(())["command"].startswith("eem --hub_token")
