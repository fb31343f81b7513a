"""What a user edits, copies or launches beside checkpoints costs none; parts of epochs are what was asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_run import train

from modeling_eem.training import prepare_run
from modeling_eem.training.checkpoints import COMPLETE_FILE, mark_complete, rotate, torn


def test_an_edited_card_costs_no_checkpoint(again: Callable[..., Path], tmp_path: Path) -> None:
    """`eem evaluate harness --cards` writes into the card; a list of an older version names it."""
    path = again(max_steps=12)
    folder = tmp_path / "out" / "checkpoint-10"
    listed = json.loads((folder / COMPLETE_FILE).read_text())
    (folder / COMPLETE_FILE).write_text(json.dumps(listed | {"README.md": {"size": 3, "sha256": "0" * 64}}))
    with (folder / "README.md").open("a") as card:
        card.write("More scores.")
    assert torn(folder, with_contents=True) is None and prepare_run(path).checkpoint == folder
    mark_complete(folder)
    assert not set(json.loads((folder / COMPLETE_FILE).read_text())) & {"README.md", "results.json"}


def test_copies_beside_checkpoints_are_the_users(again: Callable[..., Path], tmp_path: Path) -> None:
    path = again(max_steps=12)
    output = tmp_path / "out"
    shutil.copytree(output / "checkpoint-5", output / "checkpoint-5-keep")
    shutil.copytree(output / "checkpoint-10", output / "checkpoint-99.bak")
    assert prepare_run(path).checkpoint == output / "checkpoint-10"
    rotate(output, limit=1, step=10)
    assert {folder.name for folder in output.glob("checkpoint-*")} == {
        "checkpoint-10",
        "checkpoint-5-keep",
        "checkpoint-99.bak",
    }


def test_a_launchers_precision_belongs_to_the_run(again: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` hands it over by the environment; `--bf16 true` is the same precision."""
    path = again(max_steps=12)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="training.mixed_precision was 'no' and is 'bf16'"):
        prepare_run(path)
    record = prepare_run(path, ["--output_dir", "other"]).record["training"]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    given = prepare_run(path, ["--output_dir", "other", "--bf16", "true"]).record["training"]
    assert record["mixed_precision"] == given["mixed_precision"] == "bf16" and "bf16" not in record


def test_part_of_an_epoch_is_what_was_asked_for(write_run: Callable[..., Path]) -> None:
    """Half of five batches, two a step, is two steps, which end at 0.8: 0.7 asks for a third."""
    changes = {"max_steps": None, "save_steps": 1, "gradient_accumulation_steps": 2}
    path = write_run("masked_mixer", **changes, num_train_epochs=0.5)
    rows = len(prepare_run(path).train_rows)
    size = ["--per_device_train_batch_size", str(-(-rows // 5))]
    first = train(path, *size)
    assert first.state.max_steps == 2 and first.state.epoch == pytest.approx(0.8)
    assert prepare_run(path, size).is_finished
    more = [*size, "--num_train_epochs", "0.7"]
    assert not prepare_run(path, more).is_finished
    assert train(path, *more).state.global_step == 3
