"""lm-eval's tasks as they are: which ones the benchmark table has, and where their data comes from.

A stock YAML is never rewritten. What is loaded is a YAML of three lines, made on the spot: it includes the stock one,
and offline it points `dataset_path` from `ORG/NAME` on the Hub to `DATA_DIR/ORG/NAME` on disk.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import nltk
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import DatasetCard
from huggingface_hub.errors import OfflineModeIsEnabled
from lm_eval import tasks as stock_tasks
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

TABLE = "table"
_LOADING = (DatasetGenerationError, DatasetNotFoundError, OfflineModeIsEnabled, OSError, KeyError, ValueError)
_STOCK = Path(stock_tasks.__file__).parent
_PUNKT = "tokenizers/punkt_tab"


@dataclass(frozen=True)
class Column:
    """A column of the benchmark table.

    Attributes:
        name: its heading.
        yamls: task → its stock YAML, below lm-eval's `tasks` folder. Several tasks are averaged.
        metric: lm-eval's `metric,filter`.
        metrics: task → metric, where it is another one.
        online_only: tasks that are scored on the Hub's data alone.
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


# The metrics of the published table are not named in its source; these are ours.
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
        # Copies of GLUE that can be had without the Hub hold training rows in place of these two's validation rows.
        online_only=("mnli", "qqp"),
    ),
    Column("LAMBADA", {"lambada_openai": "lambada/lambada_openai.yaml"}),
    Column("GSM8K", {"gsm8k": "gsm8k/gsm8k.yaml"}, "exact_match,strict-match"),
    Column("Winogrande", {"winogrande": "winogrande/default.yaml"}),
    Column("TruthfulQA", {"truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml"}),
    Column("IFEval", {"ifeval": "ifeval/ifeval.yaml"}, "prompt_level_strict_acc,none"),
)


def load_tasks(names: Sequence[str], data_dir: Path | None = None) -> dict[str, Task]:
    """Tasks with their data, by name: everything that can be wrong with them shows here, before any model runs.

    Args:
        names: of lm-eval's tasks or tags, paths of YAML files, or `table` for those of `COLUMNS`.
        data_dir: folder of `ORG/NAME` folders, each a Hub data set with its README; None takes the Hub itself. What
            IFEval's scoring needs of NLTK is looked for in `nltk_data` beside it.

    Raises:
        ValueError: a task that does not exist (with the nearest names), a group, data that is missing, empty or
            broken.
    """
    yamls = _stock_yamls(names, is_offline=data_dir is not None)
    if data_dir is not None:
        if not data_dir.is_dir():
            raise ValueError(f"{data_dir} is not a folder: name one that holds ORG/NAME folders for --data-dir.")
        nltk.data.path.insert(0, str(data_dir.resolve().parent / "nltk_data"))
    for task, path in yamls.items():
        _check_data(task, path, data_dir)
    with TemporaryDirectory() as folder:
        for task, path in yamls.items():
            include = {"include": str(path), "task": task}
            dataset = load_yaml(path, resolve_func=False)["dataset_path"]
            if data_dir is not None and "/" in dataset:
                include["dataset_path"] = str((data_dir / dataset).resolve())
            (Path(folder) / f"{task}.yaml").write_text(yaml.safe_dump(include))
        manager = TaskManager(include_path=folder, include_defaults=False)
        return {task: _load(manager, task) for task in yamls}


def _stock_yamls(names: Sequence[str], is_offline: bool) -> dict[str, Path]:
    """Task → its YAML, without repetition. lm-eval's whole index takes many seconds, so it is read only if needed."""
    yamls: dict[str, Path] = {}
    index = None
    for name in names:
        if name == TABLE:
            for column in COLUMNS:
                yamls.update({task: _STOCK / column.yamls[task] for task in column.tasks(is_offline)})
        elif name.endswith(".yaml"):
            if not Path(name).is_file():
                raise ValueError(f"{name} does not exist: name a task's YAML file, or one of lm-eval's tasks.")
            yamls[load_yaml(name, resolve_func=False)["task"]] = Path(name).resolve()
        elif known := {task: path for column in COLUMNS for task, path in column.yamls.items() if task == name}:
            yamls[name] = _STOCK / known[name]
        else:
            index = index or TaskManager().task_index
            if name not in index:
                nearest = difflib.get_close_matches(name, [TABLE, *index], n=3)
                hint = f"; the nearest are {', '.join(nearest)}." if nearest else "."
                raise ValueError(f"lm-eval has no task {name!r}{hint}")
            if index[name].kind is Kind.GROUP:
                raise ValueError(f"{name!r} is a group of lm-eval's tasks: name its tasks one by one.")
            members = sorted(index[name].tags) if index[name].kind is Kind.TAG else [name]
            yamls.update({member: index[member].yaml_path for member in members})
    return yamls


def _check_data(task: str, path: Path, data_dir: Path | None) -> None:
    """Every file that the data set's README lists is there and holds something."""
    if data_dir is None:
        return
    dataset = load_yaml(path, resolve_func=False)["dataset_path"]
    if "/" in dataset:
        folder = data_dir / dataset
        if not (folder / "README.md").is_file():
            raise ValueError(f"task {task} needs {folder / 'README.md'}, which is not there.")
        for config in DatasetCard.load(folder / "README.md").data.to_dict().get("configs", []):
            for file in config["data_files"]:
                if not (folder / file["path"]).is_file():
                    raise ValueError(f"task {task} needs {folder / file['path']}, which is not there.")
                if not (folder / file["path"]).stat().st_size:
                    raise ValueError(f"task {task} needs {folder / file['path']}, which is an empty file.")
    if task == "ifeval":
        try:
            nltk.data.find(_PUNKT)
        except LookupError:
            wanted = data_dir.resolve().parent / "nltk_data" / _PUNKT
            raise ValueError(f"task ifeval needs {wanted}, which is not there.") from None


def _load(manager: TaskManager, name: str) -> Task:
    try:
        task = manager.load([name])["tasks"][name]
        num_rows = len(task.eval_docs)
    except (
        DatasetGenerationError,
        DatasetNotFoundError,
        OfflineModeIsEnabled,
        OSError,
        KeyError,
        ValueError,
    ) as error:
        reason = error.__cause__ or error
        raise ValueError(f"the data of task {name} cannot be loaded: {reason}") from error
    if not num_rows:
        raise ValueError(f"the data of task {name} has no rows to score.")
    return task
