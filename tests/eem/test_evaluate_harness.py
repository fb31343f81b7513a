"""eem evaluate harness as its users run it, in one process and in two; lm-eval's own command on saved models."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from lm_eval.api.task import ConfigurableTask
from typer.testing import CliRunner

from eem.evaluate import app
from modeling_eem.evaluation.harness import score_task
from modeling_eem.evaluation.harness_models import EEMHarnessModel
from modeling_eem.evaluation.harness_scores import HarnessOptions, TaskScores

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CONTEXT = 128
ERROR = "error: eem-128, task wikitext: its weights overflow\n"


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
    assert content["data"] == harness_data.name  # where it lies is this machine's
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
    tables = re.sub(r"\A> .*\n\n", "", markdown[: markdown.rindex("\n`")])  # a note where the tree is dirty
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


def test_an_error_keeps_what_was_scored_before(
    with_cards: list[Path], harness_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last task of the last model fails; its first task and the other model stay. Cards are for whole tables."""

    def fails(model: EEMHarnessModel, task: ConfigurableTask, options: HarnessOptions) -> TaskScores | None:
        if isinstance(model, EEMHarnessModel) and task.config.task == "wikitext":
            raise ValueError("its weights overflow")
        return score_task(model, task, options)

    monkeypatch.setattr("modeling_eem.evaluation.harness.score_task", fails)
    arguments = ["--model", *with_cards, "--tasks", "arc_easy", "wikitext", "--data-dir", harness_data, "--cards"]
    result = _run(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.endswith("harness.md holds what was scored before that\n" + ERROR)
    content = json.loads((tmp_path / "out" / "harness.json").read_text())
    scored = {model["name"]: list(model["tasks"]) for model in content["models"]}
    assert scored == {"masked_mixer-128": ["arc_easy", "wikitext"], "eem-128": ["arc_easy"]}
    assert {(row["model"], row["task"]) for row in content["tables"][0]["rows"]} == {
        *(("masked_mixer-128", "arc_easy"), ("masked_mixer-128", "wikitext"), ("eem-128", "arc_easy"))
    }
    assert all("arc_easy" not in (folder / "README.md").read_text() for folder in with_cards)


def test_ctrl_c_keeps_what_was_scored_before(
    models: list[Path], harness_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(model: EEMHarnessModel, task: ConfigurableTask, options: HarnessOptions) -> TaskScores | None:
        if task.config.task == "wikitext":
            raise KeyboardInterrupt
        return score_task(model, task, options)

    monkeypatch.setattr("modeling_eem.evaluation.harness.score_task", stopped)
    arguments = ["--model", models[0], "--tasks", "arc_easy", "wikitext", "--data-dir", harness_data]
    assert _run(*arguments, "--output", tmp_path / "out").exit_code == 130
    content = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert [list(model["tasks"]) for model in content["models"]] == [["arc_easy"]]


def test_more_processes_than_rows_are_an_error_before_any_model_is_loaded(
    models: list[Path], harness_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eem.evaluate_harness.num_processes", lambda: 4)
    arguments = ["--model", *models, "--tasks", "arc_easy", "--data-dir", harness_data, "--limit", 3]
    result = _run(*arguments, "--output", tmp_path / "out")
    message = "error: task arc_easy scores 3 rows and there are 4 processes: raise --limit, or start fewer.\n"
    assert (result.exit_code, result.stderr) == (2, message) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("tasks", [[], ["--tasks", "arc_easy", "ifeval"]])
def test_a_missing_extra_is_said_before_anything_is_loaded(
    tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eem.evaluate_harness.find_spec", lambda name: None if name == "langdetect" else name)
    result = _run("--model", "none", *tasks, "--output", tmp_path / "out")
    message = 'error: langdetect is not installed: pip install "modeling-eem[harness]"\n'
    assert (result.exit_code, result.stderr) == (2, message)
    assert "none holds no model" in _run("--model", "none", "--tasks", "arc_easy", "--output", tmp_path).stderr


ACCELERATE = ("accelerate", "launch", "--mixed_precision", "no", "--main_process_port", "29541")
LAUNCHERS = {
    "torchrun": ("torchrun", "--standalone", "--nproc_per_node", "2"),
    "accelerate": (*ACCELERATE, "--config_file", "configs/accelerate/ddp.yaml", "--num_processes", "2"),
    "accelerate --cpu": (*ACCELERATE, "--cpu", "--num_processes", "1"),
}


@pytest.fixture(scope="module")
def unlaunched(models: list[Path], harness_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What one plain process finds."""
    output = tmp_path_factory.mktemp("unlaunched")
    done = _subprocess(sys.executable, "evaluate.py", *_launch_arguments(models, harness_data, output))
    assert done.returncode == 0, done.stderr
    return json.loads((output / "harness.json").read_text())


def _launch_arguments(models: list[Path], data: Path, output: Path) -> list[object]:
    arguments = ["harness", "--model", *models, "--tasks", "arc_easy", "wikitext", "gsm8k", "lambada_openai"]
    return [*arguments, "--data-dir", data, "--batch-size", 3, "--output", output]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_processes_score_what_one_does(
    launcher: str, unlaunched: dict, models: list[Path], harness_data: Path, tmp_path: Path
) -> None:
    program, *options = LAUNCHERS[launcher]
    arguments = _launch_arguments(models, harness_data, tmp_path)
    done = _subprocess(BIN / program, *options, "evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "harness.json").read_text())
    for model, other in zip(unlaunched["models"], found["models"], strict=True):
        assert (model["num_processes"], other["num_processes"]) == (1, 1 if "--cpu" in launcher else 2)
        assert list(other["tasks"]) == list(model["tasks"])
        for name, task in model["tasks"].items():
            assert _without_metrics(other["tasks"][name]) == _without_metrics(task), "counts"
            for metric, score in task["metrics"].items():
                value = other["tasks"][name]["metrics"][metric]["value"]
                assert value == pytest.approx(score["value"], rel=1e-6), (name, metric)
    differences = [content["tables"][1]["rows"] for content in (unlaunched, found)]
    for expected, row in zip(*differences, strict=True):
        assert row["its standard error"] == pytest.approx(expected["its standard error"], rel=1e-4)


def _without_metrics(task: dict) -> dict:
    return {name: value for name, value in task.items() if name != "metrics"}


@pytest.fixture
def sea_task(tmp_path: Path) -> Path:
    """A folder with a task of one row."""
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
    return tmp_path / "tasks"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked_mixer", "eem"])
def test_lm_evals_own_command_loads_a_saved_model(
    kind: str, harness_model: Callable[..., Path], sea_task: Path
) -> None:
    """A saved mixer needs nothing but its folder; a saved EEM says that its encoder sees what is scored."""
    done = _subprocess(
        *(BIN / "lm_eval", "--model", "hf", "--device", "cpu", "--tasks", "sea", "--include_path", sea_task),
        *("--model_args", f"pretrained={harness_model(kind, CONTEXT)},trust_remote_code=True"),
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert ("the very tokens the logits predict" in done.stderr) == (kind == "eem")


@pytest.mark.slow
def test_two_lines_teach_lm_evals_command_our_model(harness_model: Callable[..., Path], sea_task: Path) -> None:
    """The encoder is shown the context alone, so nothing warns."""
    done = _subprocess(
        *(sys.executable, "examples/lm_eval_eem.py", "--model", "eem", "--device", "cpu", "--tasks", "sea"),
        *("--include_path", sea_task, "--model_args", f"pretrained={harness_model('eem', CONTEXT)}"),
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout and "the very tokens the logits predict" not in done.stderr
