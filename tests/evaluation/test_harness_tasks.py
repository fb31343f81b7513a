"""lm-eval's tasks are taken as they are, and what is wrong with them is said before any model runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from datasets.utils import are_progress_bars_disabled
from lm_eval.tasks import TaskManager

from modeling_eem.evaluation.harness_tasks import _STOCK, COLUMNS, load_tasks

LOCAL = ["wikitext", "arc_easy", "lambada_openai", "gsm8k"]


@pytest.fixture
def data(harness_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(harness_data, tmp_path / "hub"))


def _stock_config(task: str) -> dict:
    (path,) = (_STOCK / column.yamls[task] for column in COLUMNS if task in column.yamls)
    return TaskManager(include_path=path.parent, include_defaults=False).task_index[task].cfg


def test_only_the_data_are_elsewhere(harness_data: Path) -> None:
    tasks = load_tasks(LOCAL[::-1], harness_data)
    assert list(tasks) == LOCAL[::-1]
    for name, task in tasks.items():
        config, stock = task.config.to_dict(), _stock_config(name)
        files = config["dataset_kwargs"]["data_files"]
        folder = harness_data / stock["dataset_path"]
        assert {Path(file).parent for file in files.values()} == {folder / (stock["dataset_name"] or "default")}
        assert len(task.eval_docs) == 6
        for key in ("doc_to_text", "output_type", "metric_list", "num_fewshot", "filter_list"):
            if isinstance(stock.get(key), str | int | list):
                assert config[key] == stock[key], key


def test_data_of_another_folder_are_not_taken_for_these(harness_data: Path, data: Path) -> None:
    """`datasets` itself would: it tells folders apart by their README."""
    load_tasks(["gsm8k"], harness_data)
    line = '{"question": "What is 2 + 2?", "answer": "#### 4"}\n'
    (data / "openai/gsm8k/main/test.jsonl").write_text(line)
    assert load_tasks(["gsm8k"], data)["gsm8k"].eval_docs["question"] == ["What is 2 + 2?"]


def test_the_table_has_its_eleven_columns() -> None:
    names = "Wikitext BPB,SWAG,HellaSwag,ARC-e,MathQA,GLUE,LAMBADA,GSM8K,Winogrande,TruthfulQA,IFEval"
    assert [column.name for column in COLUMNS] == names.split(",")
    for column in COLUMNS:
        for task in column.yamls:
            config = _stock_config(task)
            assert column.metric_of(task).split(",")[0] in {metric["metric"] for metric in config["metric_list"]}
            filters = {chosen["name"] for chosen in config.get("filter_list", [{"name": "none"}])}
            assert column.metric_of(task).split(",")[1] in filters
        assert set(column.tasks(is_offline=False)) - set(column.tasks(is_offline=True)) == set(column.online_only)
    assert {task for column in COLUMNS for task in column.online_only} == {"mnli", "qqp"}


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "The sea was calm."}\n')
    task = {
        "task": "lines",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "lines.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "lines.yaml").write_text(yaml.safe_dump(task))
    for data_dir in (None, tmp_path):
        (loaded,) = load_tasks([str(tmp_path / "lines.yaml")], data_dir).values()
        assert loaded.eval_docs["text"] == ["The sea was calm."]


def _break(action: str) -> Callable[[Path], object]:
    card, test = Path("openai/gsm8k/README.md"), Path("openai/gsm8k/main/test.jsonl")
    actions: dict[str, Callable[[Path], object]] = {
        "no folder": lambda data: shutil.rmtree(data),
        "no data set": lambda data: shutil.rmtree(data / card.parent),
        "no file": lambda data: (data / test).unlink(),
        "empty file": lambda data: (data / test).write_text(""),
        "other columns": lambda data: (data / test).write_text('{"text": "The sea"}'),
        "no config": lambda data: (data / card).write_text("---\nconfigs: []\n---\n"),
        "nothing": lambda data: None,
    }
    return actions[action]


@pytest.mark.parametrize(
    ("action", "task", "message"),
    [
        ("no folder", "gsm8k", "hub is not a folder"),
        ("no data set", "gsm8k", "task gsm8k needs .*openai/gsm8k/README.md, which is not there"),
        ("no file", "gsm8k", "task gsm8k needs .*openai/gsm8k/main/test.jsonl, which is not there"),
        ("empty file", "gsm8k", "task gsm8k needs .*openai/gsm8k/main/test.jsonl, which is an empty file"),
        ("other columns", "gsm8k", "the data of task gsm8k cannot be loaded: Couldn't cast"),
        ("no config", "gsm8k", "task gsm8k needs the config main of .*gsm8k: its README lists none"),
        ("nothing", "ifeval", "task ifeval needs .*google/IFEval/README.md, which is not there"),
        ("nothing", "none.yaml", "none.yaml does not exist"),
    ],
)
def test_what_is_wrong_is_named(action: str, task: str, message: str, data: Path) -> None:
    _break(action)(data)
    with pytest.raises(ValueError, match=message):
        load_tasks([task], data)


def test_without_the_hub_a_folder_is_asked_for() -> None:
    with pytest.raises(ValueError, match="task arc_easy cannot be loaded: Couldn't reach .*--data-dir takes them"):
        load_tasks(["arc_easy"])


def test_a_yaml_that_is_no_task(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("color: blue\n")
    with pytest.raises(ValueError, match="other.yaml is not the YAML of a task"):
        load_tasks([str(tmp_path / "other.yaml")])


def test_a_mistyped_name_is_found_without_lm_evals_index(harness_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("modeling_eem.evaluation.harness_tasks.TaskManager")
    with pytest.raises(ValueError, match="no task 'arc_eazy'; the nearest are arc_easy"):
        load_tasks(["arc_eazy"], harness_data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("arc_eas", "no task 'arc_eas'; the nearest are arc_easy"), ("mmlu", "'mmlu' is a group")],
)
def test_names_that_lm_eval_does_not_have(name: str, message: str, harness_data: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_tasks([name], harness_data)


def test_loading_shows_no_bars(harness_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(harness_data, tmp_path / "new")  # `datasets` has cached the other
    assert not are_progress_bars_disabled()
    load_tasks(["arc_easy"], tmp_path / "new")
    assert capfd.readouterr().err == "" and not are_progress_bars_disabled()
