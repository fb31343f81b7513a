"""What stands in a run's output folder: the same run, another one, damage, another writer; and what never does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from whole_run import train

from modeling_eem.files import locked
from modeling_eem.training import RunTrainer, held_out_metrics, prepare_run
from modeling_eem.training.checkpoints import read_state


def test_a_finished_run_says_so_and_is_left_alone(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, values = trained
    shutil.copytree(output, tmp_path / "out")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "out")}))
    before = {name: name.stat().st_mtime_ns for name in sorted((tmp_path / "out").rglob("*"))}
    trainer = train(path)
    assert trainer.run.is_finished and "holds this run, finished" in trainer.run.begins
    assert trainer.state.global_step == 10 and held_out_metrics(trainer.run, trainer.state, 10)["bits_per_byte"] > 0
    saved = load_file(output / "model.safetensors")
    assert all(torch.equal(weight, saved[name]) for name, weight in trainer.model.state_dict().items())
    assert {name: name.stat().st_mtime_ns for name in sorted((tmp_path / "out").rglob("*"))} == before
    longer = prepare_run(path, ["--max_steps", "12"])
    assert not longer.is_finished and longer.checkpoint == tmp_path / "out" / "checkpoint-10"
    for step in (5, 10):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="finished at step 10, and no checkpoint to resume from: choose another"):
        prepare_run(path, ["--max_steps", "12"])


def test_a_folder_with_another_run_is_refused(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Also where that saved no checkpoint, and where no run made the model at all."""
    output, values = trained
    shutil.copytree(output, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoint-*"))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "out"), "seed": 1}))
    with pytest.raises(ValueError, match="out belongs to another run: training.seed was 42 and is 1"):
        prepare_run(path)
    (tmp_path / "out" / "run.yaml").unlink()
    with pytest.raises(ValueError, match="out holds a model that was not made by a run file: choose another output"):
        prepare_run(path)


@pytest.mark.parametrize("content", ["[]", "3", "model: 3", "model: {}\ndata: {}", "{", "\udcff", "a: b: c"])
def test_a_record_of_another_kind_is_named(trained: tuple[Path, dict[str, Any]], tmp_path: Path, content: str) -> None:
    output, values = trained
    shutil.copytree(output, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoint-*"))
    (tmp_path / "out" / "run.yaml").write_text(content, errors="surrogateescape")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "out")}))
    with pytest.raises(ValueError, match="out/run.yaml (cannot be read|is not the record of a run)") as failed:
        prepare_run(path)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("content", ["[]", "3", '{"global_step": "x"}', "{", "[" * 100_000])
def test_a_state_of_another_kind_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match="trainer_state.json is not the state of a training: remove"):
        read_state(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer_state.json"])
def test_a_finished_run_that_is_damaged_is_made_again_or_refused(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    """From its last checkpoint; without one, training would overwrite what may be mended. A card may be edited."""
    output, values = trained
    shutil.copytree(output, tmp_path / "out")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "out")}))
    (tmp_path / "out" / "README.md").write_text("Mine.")
    assert prepare_run(path).is_finished
    spoiled = tmp_path / "out" / name
    spoiled.write_bytes(bytes(spoiled.stat().st_size))
    run = prepare_run(path)
    assert not run.is_finished and run.checkpoint == tmp_path / "out" / "checkpoint-10"
    for step in (5, 10):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=f"out holds other bytes of {name} than were written, and has no checkpoint"):
        prepare_run(path)


def test_a_file_may_lie_elsewhere_and_no_place_is_recorded(
    again: Callable[..., Path], tmp_path: Path, run_text: Path
) -> None:
    """The record knows files by name and contents."""
    shutil.copy(run_text / "train.jsonl", tmp_path / "train.jsonl")
    run = prepare_run(again(train_files=[str(tmp_path / "train.jsonl")]))
    assert run.checkpoint == tmp_path / "out" / "checkpoint-10"
    assert str(tmp_path) not in yaml.safe_dump(run.record) and str(run_text) not in yaml.safe_dump(run.record)


def test_nothing_that_is_secret_or_local_is_written(
    write_run: Callable[..., Path], tmp_path: Path, run_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(save_steps=1, hub_token="hf_" + "x1Y2" * 8, push_to_hub=False)
    command = ["/somewhere/train.py", "--config", str(path), "--hub_token", "hf_" + "x1Y2" * 8, "--api_key", "x1Y2"]
    monkeypatch.setattr("sys.argv", command)
    train(path)
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    for file in written:
        assert b"x1Y2" not in file.read_bytes(), file
        if file.name != "trainer_state.json":
            assert str(tmp_path).encode() not in file.read_bytes(), file
            assert str(run_text).encode() not in file.read_bytes(), file
    assert not [file for file in written if file.name == "training_args.bin"]


# One writer


def test_two_trainings_over_one_folder_are_refused(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """While one holds it; and where one wrote between the other's preparation and its start."""
    path = write_run(save_steps=1)
    first, second = (RunTrainer(prepare_run(path)) for _ in range(2))
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="out is being written by another process"):
        first.fit()
    first.fit()
    first.write_finished_model()
    with pytest.raises(ValueError, match="was changed by another training: start this one again"):
        second.fit()
    assert prepare_run(path).is_finished


def test_a_checkpoint_that_goes_while_it_is_read_is_found(
    again: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers goes on without an optimizer's state that is missing."""
    path = again(max_steps=12)
    whole = RunTrainer._load_optimizer_and_scheduler

    def vanish(trainer: RunTrainer, checkpoint: str | None) -> None:
        (Path(str(checkpoint)) / "optimizer.pt").unlink()
        whole(trainer, checkpoint)

    monkeypatch.setattr(RunTrainer, "_load_optimizer_and_scheduler", vanish)
    with pytest.raises(ValueError, match="checkpoint-10 lacks optimizer.pt: it was changed while it was read"):
        train(path)


def test_a_hub_that_cannot_be_reached_is_a_line_before_training(write_run: Callable[..., Path]) -> None:
    run = prepare_run(write_run(push_to_hub=True, hub_model_id="someone/tiny"))
    with pytest.raises(OSError, match="the Hub cannot be reached, or refuses .*: leave out --push_to_hub") as caught:
        RunTrainer(run)
    assert "\n" not in str(caught.value)
