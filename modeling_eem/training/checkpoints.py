"""Checkpoints that are known to be whole, and the run that each belongs to.

transformers writes a checkpoint's files one after another into its folder. A kill leaves the folder torn, and a resume
silently passes over a missing file. Our checkpoints end with `complete.json`, which lists every file with its size and
SHA-256. A folder is torn if `complete.json` or a file that a resume needs is missing, or a file differs from the
list.
"""

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from modeling_eem.files import existing_part, sha256, without_secrets, write_atomically
from modeling_eem.loading import COMPLETE_FILE
from modeling_eem.training.best_model import LAST, kept_model, stopped_early
from modeling_eem.training.run_arguments import RunArguments
from modeling_eem.training.token_loss_arguments import equal_stage_steps
from modeling_eem.training.training_text import CARD_FIELDS, DataArguments, Identity

logger = logging.get_logger(__name__)

RUN_FILE = "run.yaml"
# What is written beside weights for people, who may edit it: `eem evaluate harness --cards` does.
DESCRIPTIONS = ("README.md", "results.json", "learning_curve.png")

# What a resume reads → a pattern of file names in `complete.json`, as one device, DDP, FSDP or DeepSpeed write them.
_NEEDED = {
    "weights": r"(adapter_)?model.*\.safetensors|pytorch_model|global_step",
    "the optimizer's state": r"optimizer|global_step",
    "the schedule": r"scheduler\.pt|global_step",
    "random states": r"rng_state",
    TRAINER_STATE_NAME: re.escape(TRAINER_STATE_NAME),
    RUN_FILE: re.escape(RUN_FILE),
}
LENGTH = "length"  # the part of the record that tells how long the run was to train: a run may go on longer
NEWEST = (None, "true", "True")  # values of `resume_from_checkpoint` that mean the newest checkpoint
_DELETED = "deleted-"  # begins the name of a checkpoint that is being deleted

# Beginnings of the training arguments that may change between the starts of a run. They decide how long it trains and
# what is measured, kept and shown, and where; they do not change what a step computes.
_MAY_CHANGE = ("max_steps", "num_train_epochs", "eval_", "per_device_eval_", "save_", "logging_", "log_", "report_to")
_MAY_CHANGE += (
    "use_cpu",
    "disable_tqdm",
    "output_dir",
    "run_name",
    "project",
    "trackio_",
    "push_to_hub",
    "hub_",
    "do_",
)
_MAY_CHANGE += ("resume_from_checkpoint", "dataloader_num_workers", "dataloader_pin_memory", "local_rank")
_MAY_CHANGE += (
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "early_stopping_",
    "ddp_timeout",
)
# How the rows of a step are cut up. Their product is the rows of a step, which a step depends on.
_CUT = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
_PRECISION = ("bf16", "fp16")
# Notes of transformers in a saved config; the run did not choose them.
_NOTES = ("transformers_version", "architectures", "auto_map", "_name_or_path", "dtype")


def mark_complete(folder: Path) -> None:
    """Write `complete.json`, the last file of a checkpoint. `DESCRIPTIONS` are left out."""
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    listed = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in names
        if name not in (COMPLETE_FILE, *DESCRIPTIONS)
    }
    write_atomically(folder / COMPLETE_FILE, json.dumps(listed, indent=2) + "\n")


def torn(folder: Path, with_contents: bool = False, needed: Sequence[str] = tuple(_NEEDED)) -> str | None:
    """What is wrong with a checkpoint, as the rest of a sentence; None if it is whole.

    Args:
        with_contents: whether files are read and their hashes compared, besides their sizes.
        needed: the keys of `_NEEDED` that it must hold; by default all that a resume reads.
    """
    try:
        listed = json.loads((folder / COMPLETE_FILE).read_text())
        expected = {name: _size_and_hash(entry) for name, entry in listed.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"has no readable {COMPLETE_FILE}"
    for name, (size, digest) in expected.items():
        if name in DESCRIPTIONS:  # listed by versions before 0.2
            continue
        file = folder / name
        if not file.is_file():
            return f"lacks {name}"
        if (found := file.stat().st_size) != size:
            return f"holds {found} of {size} bytes of {name}"
        if with_contents and digest and sha256(file) != digest:
            return f"holds other bytes of {name} than were written"
    for what in needed:
        if not any(re.match(_NEEDED[what], name) for name in expected):
            return f"holds no {what}, which a resume needs"
    return None


def _size_and_hash(entry: Any) -> tuple[int, str | None]:
    """Version 0.1 listed sizes only."""
    return (entry, None) if isinstance(entry, int) else (int(entry["size"]), str(entry["sha256"]))


def checkpoints_of(output: Path) -> list[Path]:
    """The folders `checkpoint-N`, whole or torn, by their steps. A copy with another ending is not the run's."""
    numbered = [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(numbered, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_whole(output: Path, up_to: float = math.inf) -> Path | None:
    """The newest whole checkpoint of a folder, of a step `up_to` or earlier; a warning tells of torn ones."""
    for folder in reversed([path for path in checkpoints_of(output) if _step(path) <= up_to]):
        if (problem := torn(folder, with_contents=True)) is None:
            return folder
        logger.warning(f"{folder} {problem}: it is torn, and skipped.")
    return None


def checkpoint_to_resume(arguments: RunArguments) -> Path | None:
    """The checkpoint that a run resumes from; None to begin.

    | `resume_from_checkpoint` | resumes from |
    |---|---|
    | not set, or `true` | the newest whole one in `output_dir`, else begins; a warning tells of torn ones |
    | a folder | that checkpoint |
    | `false` | begins; `output_dir` must hold no checkpoints |

    Raises:
        ValueError: for a folder that is not a whole checkpoint, or `false` if there are checkpoints.
    """
    wish = arguments.resume_from_checkpoint
    output = arguments.output_folder
    if wish in ("false", "False"):
        if found := checkpoints_of(output):
            raise ValueError(f"{output} holds {found[-1].name}: choose another output_dir, or let the run resume.")
        return None
    if wish in NEWEST:
        return newest_whole(output)
    if (problem := torn(Path(wish), with_contents=True)) is not None:
        raise ValueError(f"resume_from_checkpoint: {wish} {problem}; name a whole checkpoint.")
    return Path(wish)


def is_finished(arguments: RunArguments, record: dict[str, Any]) -> bool:
    """Whether `output_dir` holds this very run, trained to its end or stopped early.

    Raises:
        ValueError: for a file; or if training would overwrite it: another run, a model of unknown origin, or this run,
            damaged or finished with fewer steps, without a checkpoint to resume from.
    """
    output = arguments.output_folder
    if not (place := existing_part(output)).is_dir():
        raise ValueError(f"output_dir: {place} is a file: name a folder.")
    if not (output / RUN_FILE).exists():
        if (output / "config.json").exists():
            raise ValueError(f"{output} holds a model that was not made by a run file: choose another output_dir.")
        return False
    check_same_run(output, record)
    if not (output / COMPLETE_FILE).exists():
        return False
    has_checkpoint = any(torn(path) is None for path in checkpoints_of(output))
    if (problem := torn(output, with_contents=True, needed=("weights", TRAINER_STATE_NAME, RUN_FILE))) is not None:
        if has_checkpoint:
            return False
        raise ValueError(f"{output} {problem}, and has no checkpoint to resume from: remove it to train again.")
    state = read_state(output)
    if arguments.max_steps > 0:
        is_done = arguments.max_steps <= state.global_step
    else:
        # Steps are rounded up to the end of a part of an epoch, so the state's epoch may be beyond what was asked for.
        asked = read_run_record(output).get(LENGTH, {}).get("num_train_epochs")
        trained = (state.epoch or 0) + 1e-9
        if isinstance(asked, int | float) and state.global_step >= state.max_steps:
            trained = asked
        is_done = arguments.num_train_epochs <= trained
    is_done = is_done or stopped_early(arguments, state)
    if not is_done and not has_checkpoint:
        raise ValueError(
            f"{output} holds this run, finished at step {state.global_step}, and no checkpoint to resume from: choose "
            "another output_dir."
        )
    return is_done


def rotate(output: Path, limit: int | None, step: int, kept: Sequence[Path] = ()) -> None:
    """Delete all checkpoints up to `step` except the newest `limit` whole ones and those in `kept`; torn ones do not
    count. A run that went back to an earlier checkpoint has later ones beside it: they stay until it comes to them.

    A checkpoint is renamed first: a kill then leaves none that looks whole and is half deleted. What earlier kills
    left is deleted too: half-deleted checkpoints, and torn ones older than the newest whole one.
    """
    for path in output.glob(f"{_DELETED}*"):
        shutil.rmtree(path, ignore_errors=True)
    if not limit:
        return
    found = [path for path in checkpoints_of(output) if _step(path) <= step]
    whole = [path for path in found if torn(path) is None]
    old = whole[:-limit] + [path for path in found[: found.index(whole[-1])] if path not in whole] if whole else []
    staying = {path.resolve() for path in kept}
    for path in old:
        if path.resolve() not in staying:
            delete_checkpoint(path)


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so it stops being a checkpoint at once."""
    if folder.exists():
        going = folder.with_name(f"{_DELETED}{folder.name}")
        shutil.rmtree(going, ignore_errors=True)
        shutil.rmtree(folder.rename(going), ignore_errors=True)


def run_record(
    config: PreTrainedConfig, data: DataArguments, identity: Identity, arguments: RunArguments
) -> dict[str, Any]:
    """Everything that the trained model depends on, as plain values: model, data and training; files by name and
    contents."""
    asked = arguments.to_dict().items()
    training = {name: value for name, value in asked if not name.startswith((*_MAY_CHANGE, *_PRECISION))} | {
        "world_size": arguments.world_size,
        # A launcher's too, which no argument names.
        "mixed_precision": arguments.mixed_precision,
        "kept_model": kept_model(arguments),
    }
    record = {
        "model": {
            "model_type": config.model_type,
            "model_name_or_path": _name_alone(config.name_or_path) or None,
            **{name: value for name, value in config.to_dict().items() if name not in _NOTES},
        },
        "data": {name: _name_alone(value) for name, value in vars(data).items() if name not in CARD_FIELDS}
        | {"made_of": identity},
        "training": training,
        LENGTH: {"num_train_epochs": None if arguments.max_steps > 0 else arguments.num_train_epochs},
    }
    return without_secrets(json.loads(json.dumps(record, default=str)))


def _name_alone(value: Any) -> Any:
    """The name of a local file or folder, without its place on this machine; a name on the Hub stays."""
    if isinstance(value, list):
        return [_name_alone(item) for item in value]
    return Path(value).resolve().name if isinstance(value, str) and value and Path(value).exists() else value


def check_same_run(folder: Path, record: dict[str, Any]) -> None:
    """Raise a ValueError that names what differs between a folder's run and this one.

    The rows of a step may be cut up in another way: other processes, rows a device or accumulation steps. DeepSpeed's
    shards need their number of processes.
    """
    before = read_run_record(folder)
    _add_what_older_versions_left_out(before["training"])
    _name_the_stages(folder, before["training"], record["training"])
    before["data"], record = _flat_identity(before["data"]), record | {"data": _flat_identity(record["data"])}
    changed = [
        f"{part}.{name} was {before[part][name]!r} and is {value!r}"
        for part, values in record.items()
        if part != LENGTH
        for name, value in values.items()
        if name in before[part] and before[part][name] != value and not (part == "training" and name in _CUT)
    ]
    if (rows := _rows_a_step(before)) is not None and rows != (wanted := _rows_a_step(record)):
        changed.append(f"the rows of a step ({' × '.join(_CUT)}) were {rows} and are {wanted}")
    steps, now = (run["training"].get("gradient_accumulation_steps") for run in (before, record))
    if record["training"].get("dataloader_drop_last") and steps != now:
        changed.append(
            f"training.gradient_accumulation_steps was {steps} and is {now}, and dataloader_drop_last: true then "
            "leaves out other rows"
        )
    processes = before["training"].get("world_size")
    if not changed and any(folder.glob("global_step*")) and processes != record["training"]["world_size"]:
        raise ValueError(f"{folder} holds DeepSpeed's shards for {processes} processes: start {processes}.")
    if changed:
        raise ValueError(
            f"{folder} belongs to another run: {'; '.join(changed)}. Undo that, or choose another output_dir."
        )


def _add_what_older_versions_left_out(training: dict[str, Any]) -> None:
    """A run kept its last model. Its precision is known if the run file named it, not if the launcher did."""
    training.setdefault("kept_model", LAST)
    for name in _PRECISION:
        if training.get(name):
            training.setdefault("mixed_precision", name)


def _name_the_stages(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run without `entropy_stage_steps` began its stages where its `max_steps` put them. To train longer, it must
    name these steps."""
    if before.get("entropy_stage_steps") == [] and now["entropy_stage_steps"]:
        stages = len(before["entropy_columns"])
        before["entropy_stage_steps"] = equal_stage_steps(read_state(folder).max_steps, stages)


def _flat_identity(data: dict[str, Any]) -> dict[str, Any]:
    """What the rows are made of, key by key: what an older version did not record is not compared."""
    rest = {name: value for name, value in data.items() if name != "made_of"}
    return rest | {f"made_of.{name}": value for name, value in data.get("made_of", {}).items()}


def is_cut_alike(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a checkpoint's run had as many processes, rows a device and accumulation steps: it then goes on bit for
    bit."""
    before = read_run_record(folder)["training"]
    return all(before.get(name, record["training"][name]) == record["training"][name] for name in _CUT)


def _rows_a_step(record: dict[str, Any]) -> int | None:
    """None for a record that does not tell."""
    values = [record["training"].get(name) for name in _CUT]
    return math.prod(values) if all(isinstance(value, int) for value in values) else None


def write_run_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `run.yaml` beside a checkpoint's weights."""
    write_atomically(folder / RUN_FILE, yaml.safe_dump(record, sort_keys=False))


def read_run_record(folder: Path) -> dict[str, dict[str, Any]]:
    """`run.yaml` of a folder; ValueError if it is missing or not such a file."""
    try:
        record = yaml.safe_load((folder / RUN_FILE).read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{folder / RUN_FILE} cannot be read: {type(error).__name__}. Remove {folder}.") from error
    parts = ("model", "data", "training")
    if not isinstance(record, dict) or not all(
        isinstance(record.get(part), dict) for part in (*parts, *({LENGTH} & set(record)))
    ):
        raise ValueError(
            f"{folder / RUN_FILE} is not the record of a run: it must hold {', '.join(parts)}. Remove {folder}."
        )
    return record


def read_state(folder: Path) -> TrainerState:
    """`trainer_state.json` of a folder; ValueError if it is missing or not such a file."""
    try:
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        is_state = isinstance(state.global_step, int) and isinstance(state.log_history, list)
        is_state = is_state and all(isinstance(entry, dict) for entry in state.log_history)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        is_state = False
    if not is_state:
        raise ValueError(f"{folder / TRAINER_STATE_NAME} is not the state of a training: remove {folder}.")
    return state
