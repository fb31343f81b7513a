"""evaluate.py harness as its users run it, in one process and in two; lm-eval's own command on saved models."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from modeling_eem.cli.evaluate import app

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CONTEXT = 128


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["harness", *map(str, arguments)])


def _subprocess(*command: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def models(harness_model: Callable[..., Path]) -> list[Path]:
    return [harness_model(kind, CONTEXT) for kind in ("masked_mixer", "eem")]


@pytest.fixture
def with_cards(models: list[Path], tmp_path: Path) -> list[Path]:
    """The models in folders of their own, with a card each."""
    folders = [Path(shutil.copytree(model, tmp_path / model.name)) for model in models]
    for folder in folders:
        (folder / "README.md").write_text("# A model\n\n## Results\n\nGood.\n\n## Limits\n")
    return folders


def test_scores_are_written(with_cards: list[Path], harness_data: Path, tmp_path: Path) -> None:
    arguments = ["--model", *with_cards, "--tasks", "arc_easy", "wikitext", "--data-dir", harness_data, "--cards"]
    result = _run(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["harness.json", "harness.md"]
    content = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert [model["name"] for model in content["models"]] == ["masked_mixer-128", "eem-128"]
    for model in content["models"]:
        assert list(model["tasks"]) == ["arc_easy", "wikitext"]
        assert set(model["tasks"]["arc_easy"]["metrics"]["acc,none"]) == {"value", "standard_error"}
    assert content["data"] == str(harness_data)
    assert content["options"] == {
        "batch_size": 8,
        "max_length": None,
        "limit": None,
        "bootstrap_iters": 200,
        "dtype": "auto",
    }
    assert {"command", "commit", "machine", "date"} < set(content["provenance"])
    assert "lm-eval 0." in content["provenance"]["versions"] and "torch 2." in content["provenance"]["versions"]
    scores, differences = content["tables"]
    assert scores["rows"][0]["task"] == "arc_easy" and len(scores["rows"]) == 2 * len(differences["rows"])
    for row in differences["rows"]:
        assert row["model"] == "eem-128" and row["its standard error"] is not None
    markdown = (tmp_path / "out" / "harness.md").read_text()
    assert "bits_per_byte" in markdown and "acc_norm" in markdown and "less masked_mixer-128" in markdown
    tables = markdown[: markdown.rindex("\n`")]
    for folder in with_cards:
        card = (folder / "README.md").read_text()
        assert tables in card and card.startswith("# A model\n\n## Results\n\nGood.") and "## Limits" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "none"}, "none holds no model"),
        ({"--data-dir": "none"}, "none is not a folder"),
        ({"--tasks": "ifeval"}, "task ifeval needs"),
        ({"--output": __file__}, "is a file: name a folder for --output"),
        ({"--batch-size": "0"}, "batch_size must be at least 1"),
        ({"--max-length": "4096"}, "--max-length 4096 is longer than a model's context"),
        ({"--cards": None}, "masked_mixer-128 has no model card"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    changes: dict[str, str | None], message: str, models: list[Path], harness_data: Path, tmp_path: Path
) -> None:
    arguments = {"--model": models[0], "--tasks": "arc_easy", "--data-dir": harness_data, "--output": tmp_path / "out"}
    result = _run(*(part for pair in (arguments | changes).items() for part in pair if part is not None))
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_score_what_one_does(models: list[Path], harness_data: Path, tmp_path: Path) -> None:
    arguments = ["harness", "--model", *models, "--tasks", "arc_easy", "wikitext", "gsm8k", "--data-dir", harness_data]
    arguments += ["--batch-size", "3", "--output"]
    one = _subprocess(sys.executable, "evaluate.py", *arguments, tmp_path / "one")
    assert one.returncode == 0, one.stderr
    two = _subprocess(BIN / "torchrun", "--nproc_per_node", "2", "evaluate.py", *arguments, tmp_path / "two")
    assert two.returncode == 0, two.stderr
    expected, actual = (json.loads((tmp_path / name / "harness.json").read_text()) for name in ("one", "two"))
    for model, other in zip(expected["models"], actual["models"]):
        for name, task in model["tasks"].items():
            scores, others = (entry.pop("metrics") for entry in (task, other["tasks"][name]))
            assert task == other["tasks"][name], "counts"
            for metric, score in scores.items():
                assert others[metric]["value"] == pytest.approx(score["value"], abs=1e-6), (name, metric)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked_mixer", "eem"])
def test_lm_evals_own_command_loads_a_saved_model(
    kind: str, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """A saved mixer needs nothing but its folder; a saved EEM says that its encoder sees what is scored."""
    (tmp_path / "rows.jsonl").write_text('{"text": "The sea", "end": " was calm"}\n')
    task = {
        "task": "sea",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{end}}",
        "metric_list": [{"metric": "perplexity"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sea.yaml").write_text(yaml.safe_dump(task))
    done = _subprocess(
        *(BIN / "lm_eval", "--model", "hf", "--device", "cpu", "--tasks", "sea", "--include_path", tmp_path / "tasks"),
        *("--model_args", f"pretrained={harness_model(kind, CONTEXT)},trust_remote_code=True"),
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert ("the very tokens the logits predict" in done.stderr) == (kind == "eem")
