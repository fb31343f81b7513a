"""Checkpoints that are known to be whole, and the run that each belongs to.

transformers writes a checkpoint's files one after another into its folder, so a kill leaves it torn. Ours end with
`complete.json`, which lists every file and its size: a folder without it, or whose files differ from it, is torn.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import logging

from modeling_eem.files import write_atomically
from modeling_eem.training.token_loss_arguments import TokenWeightedTrainingArguments
from modeling_eem.training.training_text import CARD_FIELDS, DataArguments, Identity

logger = logging.get_logger(__name__)

COMPLETE_FILE = "complete.json"
RUN_FILE = "run.yaml"

# Beginnings of the training arguments that may change between the starts of a run: they say how long it goes on,
# what is measured, kept and shown, and where, but not what a step computes.
_MAY_CHANGE = ("max_steps", "num_train_epochs", "eval_", "per_device_eval_", "save_", "logging_", "log_", "report_to")
_MAY_CHANGE += ("disable_tqdm", "output_dir", "run_name", "project", "trackio_", "push_to_hub", "hub_", "do_")
_MAY_CHANGE += ("resume_from_checkpoint", "dataloader_num_workers", "dataloader_pin_memory", "local_rank")
_MAY_CHANGE += ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ddp_timeout")
# What transformers notes in a saved config, which is no choice of the run's.
_NOTES = ("transformers_version", "architectures", "auto_map", "_name_or_path", "dtype")


def mark_complete(folder: Path) -> None:
    """Write `complete.json`, the last file of a checkpoint."""
    write_atomically(folder / COMPLETE_FILE, json.dumps(_sizes(folder), indent=2) + "\n")


def torn(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as the rest of a sentence; None if it is whole."""
    try:
        written = json.loads((folder / COMPLETE_FILE).read_text())
    except (OSError, ValueError):
        return f"has no readable {COMPLETE_FILE}"
    sizes = _sizes(folder)
    for name, size in written.items():
        if name not in sizes:
            return f"lacks {name}"
        if sizes[name] != size:
            return f"holds {sizes[name]} of {size} bytes of {name}"
    return None


def checkpoint_to_resume(arguments: TokenWeightedTrainingArguments) -> Path | None:
    """The checkpoint that a run goes on from; None to begin.

    | `resume_from_checkpoint` | goes on from |
    |---|---|
    | not set, or `true` | the newest whole one in `output_dir`, torn ones skipped with a warning; else begins |
    | a folder | that checkpoint |
    | `false` | begins, in an `output_dir` without checkpoints |

    Raises:
        ValueError: a folder that is no whole checkpoint; `false` where there are checkpoints.
    """
    wish = arguments.resume_from_checkpoint
    output = Path(arguments.output_dir)
    found = [Path(path) for path in sort_checkpoints(str(output))]
    if wish in ("false", "False"):
        if found:
            raise ValueError(f"{output} holds {found[-1].name}: choose another output_dir, or let the run resume.")
        return None
    if wish not in (None, "true", "True"):
        if (problem := torn(Path(wish))) is not None:
            raise ValueError(f"resume_from_checkpoint: {wish} {problem}; name a whole checkpoint.")
        return Path(wish)
    for folder in reversed(found):
        if (problem := torn(folder)) is None:
            return folder
        logger.warning(f"{folder} {problem}: it is torn, and skipped.")
    return None


def rotate(output: Path, limit: int | None, best: str | None) -> None:
    """Delete all but the newest `limit` whole checkpoints and the best one; a torn one counts for none of them."""
    whole = [path for path in sort_checkpoints(str(output)) if torn(Path(path)) is None]
    for path in whole[:-limit] if limit else []:
        if best is None or Path(path) != Path(best):
            shutil.rmtree(path, ignore_errors=True)


def run_record(
    config: PreTrainedConfig, data: DataArguments, identity: Identity, arguments: TokenWeightedTrainingArguments
) -> dict[str, Any]:
    """All that a step follows from, as plain values: model, data and training."""
    training = {name: value for name, value in arguments.to_dict().items() if not name.startswith(_MAY_CHANGE)} | {
        "world_size": arguments.world_size
    }
    record = {
        "model": {
            "model_type": config.model_type,
            "model_name_or_path": config.name_or_path or None,
            **{name: value for name, value in config.to_dict().items() if name not in _NOTES},
        },
        "data": {name: value for name, value in vars(data).items() if name not in CARD_FIELDS} | {"made_of": identity},
        "training": training,
    }
    return json.loads(json.dumps(record, default=str))


def check_same_run(checkpoint: Path, record: dict[str, Any]) -> None:
    """ValueError that names what differs between a checkpoint's run and this one."""
    before = yaml.safe_load((checkpoint / RUN_FILE).read_text())
    changed = [
        f"{part}.{name} was {before[part][name]!r} and is {value!r}"
        for part, values in record.items()
        for name, value in values.items()
        if name in before[part] and before[part][name] != value
    ]
    if changed:
        raise ValueError(
            f"{checkpoint} belongs to another run: {'; '.join(changed)}. Undo that, or choose another output_dir."
        )


def write_run_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `run.yaml` beside a checkpoint's weights."""
    write_atomically(folder / RUN_FILE, yaml.safe_dump(record, sort_keys=False))


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE_FILE)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
