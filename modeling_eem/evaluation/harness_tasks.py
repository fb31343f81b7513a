"""lm-eval's tasks, unchanged: the columns of the benchmark table, and where the tasks' data comes from.

A stock YAML is never rewritten. We load a short YAML, made on the spot, that includes the stock one. Offline it names
the files of `DATA_DIR/ORG/NAME` in place of the data set `ORG/NAME` of the Hub.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nltk
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import DatasetCard
from huggingface_hub.errors import OfflineModeIsEnabled
from jinja2 import UndefinedError
from lm_eval import tasks as stock_tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry

from modeling_eem.evaluation.quiet import quiet_lm_eval

TABLE = "table"
# Errors that loading a task's data, or asking its first question, may raise.
_LOADING = (
    DatasetGenerationError,
    DatasetNotFoundError,
    OfflineModeIsEnabled,
    UndefinedError,
    OSError,
    KeyError,
    ValueError,
)
_STOCK = Path(stock_tasks.__file__).parent
_NAMED = re.compile(r"""^\s*(?:task|group|tag): *["']?([\w.-]+)""", re.MULTILINE)
_PUNKT = "tokenizers/punkt_tab"
_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class Column:
    """A column of the benchmark table.

    Attributes:
        name: its heading.
        yamls: task → its stock YAML, below lm-eval's `tasks` folder. Several tasks are averaged.
        metric: lm-eval's `metric,filter`.
        metrics: task → metric, for tasks with another metric.
        online_only: tasks that are scored only on the Hub's own data.
    """

    name: str
    yamls: dict[str, str]
    metric: str = "acc,none"
    metrics: dict[str, str] | None = None
    online_only: tuple[str, ...] = ()

    def tasks(self, is_offline: bool) -> list[str]:
        return [task for task in self.yamls if not (is_offline and task in self.online_only)]

    def metric_of(self, task: str) -> str:
        return (self.metrics or {}).get(task, self.metric)


# The published table's source does not name its metrics; these are our choice.
COLUMNS = (
    Column("Wikitext BPB", {"wikitext": "wikitext/wikitext.yaml"}, "bits_per_byte,none"),
    Column("SWAG", {"swag": "swag/swag.yaml"}),
    Column("HellaSwag", {"hellaswag": "hellaswag/hellaswag.yaml"}, "acc_norm,none"),
    Column("ARC-e", {"arc_easy": "arc/arc_easy.yaml"}),
    Column("MathQA", {"mathqa": "mathqa/mathqa.yaml"}),
    Column(
        "GLUE",
        {task: f"glue/{task}/default.yaml" for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")},
        metrics={"cola": "mcc,none"},
        # Copies of GLUE outside the Hub hold training rows in place of the validation rows of these two tasks.
        online_only=("mnli", "qqp"),
    ),
    Column("LAMBADA", {"lambada_openai": "lambada/lambada_openai.yaml"}),
    Column("GSM8K", {"gsm8k": "gsm8k/gsm8k.yaml"}, "exact_match,strict-match"),
    Column("Winogrande", {"winogrande": "winogrande/default.yaml"}),
    Column("TruthfulQA", {"truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml"}),
    Column("IFEval", {"ifeval": "ifeval/ifeval.yaml"}, "prompt_level_strict_acc,none"),
)


def load_tasks(names: Sequence[str], data_dir: Path | None = None) -> dict[str, ConfigurableTask]:
    """Tasks with their data, by name. Whatever is wrong with them shows here, before any model runs.

    Args:
        names: names of lm-eval's tasks or tags, paths of YAML files, or `table` for the tasks of `COLUMNS`.
        data_dir: folder of `ORG/NAME` folders, each a Hub data set with its README; None: the Hub itself. IFEval's
            scoring looks for NLTK's data in `nltk_data` beside it.

    Raises:
        ValueError: for a task that does not exist (with the nearest names), a group, or data that is missing, empty or
            broken.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise ValueError(f"{data_dir} is not a folder: name one that holds ORG/NAME folders for --data-dir.")
        nltk.data.path.insert(0, str(data_dir.resolve().parent / "nltk_data"))
    with TemporaryDirectory() as folder:
        paths = _stock_yamls(names, is_offline=data_dir is not None)
        for number, path in enumerate(paths):
            (Path(folder) / f"{number}.yaml").write_text(yaml.safe_dump({"include": str(path)}))
        manager = TaskManager(include_path=folder, include_defaults=False)
        understood = {int(_yaml_of(manager.task_index[task]).stem) for task in manager.all_subtasks}
        for number, path in enumerate(paths):
            if number not in understood:
                raise ValueError(f"{path} is not the YAML of a task, or another of these tasks has the same name.")
        if data_dir is not None:
            for task in manager.all_subtasks:
                entry = manager.task_index[task]
                _take_from(data_dir, task, entry.cfg or {}, _yaml_of(entry))
            manager = TaskManager(include_path=folder, include_defaults=False)
        return {task: _load(manager, task) for task in _in_order(manager)}


def _stock_yamls(names: Sequence[str], is_offline: bool) -> list[Path]:
    """The tasks' YAMLs, each once. Reading lm-eval's whole index takes many seconds and is done only if needed."""
    paths: list[Path] = []
    index = None
    for name in names:
        if name == TABLE:
            paths += [_STOCK / column.yamls[task] for column in COLUMNS for task in column.tasks(is_offline)]
        elif name.endswith(".yaml"):
            if not Path(name).is_file():
                raise ValueError(f"{name} does not exist: name a task's YAML file, or one of lm-eval's tasks.")
            paths.append(Path(name).resolve())
        elif known := [column.yamls[name] for column in COLUMNS if name in column.yamls]:
            paths.append(_STOCK / known[0])
        else:
            if index is None:
                _check_name(name)
            index = index or TaskManager().task_index
            if name not in index:
                raise ValueError(_no_task(name, index))
            if index[name].kind.name == "GROUP":
                raise ValueError(f"{name!r} is a group of lm-eval's tasks: name its tasks one by one.")
            members = sorted(index[name].tags) if index[name].kind.name == "TAG" else [name]
            paths += [_yaml_of(index[member]) for member in members]
    return list(dict.fromkeys(paths))


def _check_name(name: str) -> None:
    """ValueError for a name that no stock YAML holds. It reads the files as text, far faster than lm-eval's index."""
    texts = [path.read_text(errors="ignore") for path in _STOCK.rglob("*.yaml")]
    if not any(name in text for text in texts):
        raise ValueError(_no_task(name, sorted({found for text in texts for found in _NAMED.findall(text)})))


def _no_task(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, [TABLE, *known], n=3)
    return f"lm-eval has no task {name!r}" + (f"; the nearest are {', '.join(nearest)}." if nearest else ".")


def _yaml_of(entry: Entry) -> Path:
    if entry.yaml_path is None:
        raise ValueError(f"lm-eval's task {entry.name!r} has no YAML, only Python: name a task with a YAML.")
    return entry.yaml_path


def _in_order(manager: TaskManager) -> list[str]:
    """Tasks in the order in which they were asked for; their files are numbered by it."""
    return sorted(manager.all_subtasks, key=lambda task: int(_yaml_of(manager.task_index[task]).stem))


def _take_from(data_dir: Path, task: str, config: dict[str, Any], path: Path) -> None:
    """Add to a task's include where its data are on disk, if it has any on the Hub.

    The files are named one by one: `datasets` distinguishes local Hub folders only by their README, and might return
    the cached data of another folder.
    """
    if "/" in (dataset := config.get("dataset_path") or ""):
        files = _data_files(task, data_dir / dataset, config.get("dataset_name") or "default")
        include = yaml.safe_load(path.read_text()) | {
            "dataset_path": _READERS[Path(next(iter(files.values()))).suffix],
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        path.write_text(yaml.safe_dump(include))
    if task == "ifeval":
        try:
            nltk.data.find(_PUNKT)
        except LookupError:
            wanted = data_dir.resolve().parent / "nltk_data" / _PUNKT
            raise ValueError(f"task ifeval needs {wanted}, which is not there.") from None


def _data_files(task: str, folder: Path, config_name: str) -> dict[str, str]:
    """Split → file, from the data set's README; each file exists and is not empty."""
    if not (folder / "README.md").is_file():
        raise ValueError(f"task {task} needs {folder / 'README.md'}, which is not there.")
    configs = DatasetCard.load(folder / "README.md").data.to_dict().get("configs", [])
    listed = {config["config_name"]: config["data_files"] for config in configs}
    if config_name not in listed:
        raise ValueError(
            f"task {task} needs the config {config_name} of {folder}: its README lists {', '.join(listed) or 'none'}."
        )
    files = {}
    for split in listed[config_name]:
        file = (folder / split["path"]).resolve()
        if not file.is_file():
            raise ValueError(f"task {task} needs {file}, which is not there.")
        if not file.stat().st_size:
            raise ValueError(f"task {task} needs {file}, which is an empty file.")
        if file.suffix not in _READERS:
            raise ValueError(f"task {task} needs {file}, which must be one of {', '.join(_READERS)}.")
        files[split["split"]] = str(file)
    return files


def _load(manager: TaskManager, name: str) -> ConfigurableTask:
    try:
        with quiet_lm_eval():
            task = manager.load([name])["tasks"][name]
            if not isinstance(task, ConfigurableTask):
                raise ValueError("its YAML names a class that is not a ConfigurableTask")
            num_rows = len(task.eval_docs)
            if num_rows:
                task.build_all_requests(limit=1)
    except _LOADING as error:
        reason = error.__cause__ or error
        hint = ". --data-dir takes them from a folder" if isinstance(error, ConnectionError) else ""
        raise ValueError(f"the data of task {name} cannot be loaded: {reason}{hint}") from error
    if not num_rows:
        raise ValueError(f"the data of task {name} has no rows to score.")
    return task
