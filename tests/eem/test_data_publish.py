"""eem data publish: what a repository of the Hub would hold of rows, tried without one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset, load_from_disk
from huggingface_hub import DatasetCard
from transformers import AutoTokenizer
from typer.testing import CliRunner

from eem.__main__ import app
from modeling_eem.data import check_fingerprint
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards
from modeling_eem.files import sha256


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["data", "publish", *map(str, arguments)])


@pytest.fixture(scope="module")
def rows(run_text: Path, harness_model: Callable[..., Path]) -> Path:
    """Rows of `eem data prepare` with the entropies of a causal model, from a path that is this machine's."""
    model = harness_model("llama")
    folder = run_text / "published"
    options = RowOptions(max_length=16, held_out=3)
    tokenizer = AutoTokenizer.from_pretrained(model)
    shards = plan_shards([str(run_text / "train.jsonl")], "text", 100_000)
    prepare_rows(shards, tokenizer, folder / "rows", options, Launch(workers=1))
    words = ["entropy", "--model", model, "--method", "causal", "--data", folder / "rows", "--output", folder / "out"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return folder


def test_the_folder_is_a_data_set_of_the_hub(rows: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    result = _run("--rows", rows / "out", "--output", hub, "--licence", "cc0-1.0", "--language", "en")
    assert result.exit_code == 0, result.output
    loaded = load_dataset(str(hub), cache_dir=str(tmp_path / "cache"))
    expected = load_from_disk(rows / "out")
    assert loaded.keys() == expected.keys() == {"train", "held_out"}
    for split in expected:
        assert loaded[split].features == expected[split].features
        assert loaded[split].with_format("numpy")[:].keys() == expected[split].with_format("numpy")[:].keys()
        assert repr(loaded[split][:]) == repr(expected[split][:])  # NaN included
    check_fingerprint(hub, AutoTokenizer.from_pretrained(hub / "tokenizer"))

    card = DatasetCard.load(hub / "README.md")
    assert (card.data.license, card.data.language) == ("cc0-1.0", "en")
    made = json.loads((rows / "out" / "entropies.json").read_text())
    assert "token-entropies" in card.data.tags and "causal" in card.data.tags
    assert "method `causal`" in card.text and made["model_sha256"][0][:16] in card.text
    assert Path(made["models"][0]).name in card.text
    # datasets 5.2 takes a folder with the same card for the same rows, so the card must change with them.
    assert sha256(rows / "out" / "contents.json") in card.text
    published = "".join(path.read_text() for path in hub.rglob("*") if path.suffix in (".md", ".json"))
    assert str(rows.parent) not in published and "/tmp" not in published


def test_several_stages_are_told_apart(rows: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("early", "late"):
        shutil.copytree(harness_model("llama"), tmp_path / name)
    words = [
        "entropy",
        "--model",
        tmp_path / "early",
        tmp_path / "late",
        "--method",
        "causal",
        "--data",
        rows / "rows",
    ]
    result = CliRunner().invoke(app, list(map(str, [*words, "--output", tmp_path / "stages"])))
    assert result.exit_code == 0, result.output
    result = _run(
        "--rows", tmp_path / "stages", "--output", tmp_path / "hub", "--licence", "cc0-1.0", "--language", "en"
    )
    assert result.exit_code == 0, result.output
    lines = DatasetCard.load(tmp_path / "hub" / "README.md").text.splitlines()
    (last,) = (
        line for line in lines if line.startswith("| `token_entropies` |") or line.startswith("| token_entropies ")
    )
    (first,) = (line for line in lines if "token_entropies_1" in line)
    assert "late`" in last and "early`" not in last
    assert "early`" in first and "late`" not in first


def test_stages_of_one_name_have_a_line_each(rows: Path, harness_model: Callable[..., Path], tmp_path: Path) -> None:
    """The last of them overwrote the others."""
    models = [tmp_path / run / "checkpoint" for run in ("early", "late")]
    for model in models:
        shutil.copytree(harness_model("llama"), model)
    words = [
        "entropy",
        "--model",
        *models,
        "--method",
        "causal",
        "--data",
        rows / "rows",
        "--output",
        tmp_path / "out",
    ]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    assert _run("--rows", tmp_path / "out", "--output", tmp_path / "hub").exit_code == 0
    text = DatasetCard.load(tmp_path / "hub" / "README.md").text
    assert "model checkpoint (1 of 2)" in text and "model checkpoint (2 of 2)" in text


def test_a_damaged_tokenizer_is_not_published(rows: Path, tmp_path: Path) -> None:
    shutil.copytree(rows / "out", tmp_path / "rows")
    (tmp_path / "rows" / "tokenizer" / "tokenizer.json").write_text("{")
    result = _run("--rows", tmp_path / "rows", "--output", tmp_path / "hub")
    assert result.exit_code == 2 and "tokenizer cannot be read" in " ".join(result.stderr.split())
    assert not (tmp_path / "hub").exists()


def test_rows_without_entropies_say_so(rows: Path, tmp_path: Path) -> None:
    assert _run("--rows", rows / "rows", "--output", tmp_path / "hub").exit_code == 0
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    assert "token_entropies" not in card.text and not (tmp_path / "hub" / "entropies.json").exists()
    assert card.data.license is None


def test_it_is_uploaded_where_a_repository_is_named(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda _, *a, **k: calls.append(k | {"made": a}))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda _, **k: calls.append(k))
    result = _run("--rows", rows / "out", "--output", tmp_path / "hub", "--repo", "someone/words", "--private")
    assert result.exit_code == 0, result.output
    made, uploaded = calls
    assert made["made"] == ("someone/words",) and made["private"] and made["repo_type"] == "dataset"
    assert uploaded["folder_path"] == tmp_path / "hub" and uploaded["repo_type"] == "dataset"
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    assert 'load_dataset("someone/words")' in card.text and card.text.lstrip().startswith("# words")


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ([], "no licence: "),
        (
            ["--licence", "cc-by40"],
            "licence 'cc-by40' is none of the Hub's names that are known here; the nearest are ",
        ),
        (["--licence", "cc-by-4.0"], ""),
    ],
)
def test_a_doubtful_licence_is_said_and_nothing_else(
    licence: list[str], said: str, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = _run("--rows", rows / "rows", "--output", tmp_path / "hub", *licence)
    assert result.exit_code == 0 and result.stderr.startswith(said)
    assert result.stderr.count("\n") == (1 if said else 0)
    assert capfd.readouterr().err == "", "no bars of `datasets`"


def test_what_is_no_rows_and_what_is_in_the_way(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, message in (
        (("--rows", tmp_path / "nowhere", "--output", tmp_path / "hub"), "nowhere does not exist"),
        (("--rows", tmp_path, "--output", tmp_path / "hub"), "is not complete"),
        (("--rows", rows / "out", "--output", tmp_path / "full"), "is not empty"),
    ):
        result = _run(*arguments)
        assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "hub").exists()
