"""What makes a run another run: the contents of its text, its tokenizer and its base model, not their names alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from whole_run import train

from modeling_eem.data import train_tokenizer
from modeling_eem.training import prepare_run
from modeling_eem.training.run_arguments import RunArguments
from modeling_eem.training.run_file import read_run_file
from modeling_eem.training.training_text import DataArguments


def write_lines(path: Path, *texts: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_contents_count_where_names_are_alike(write_run: Callable[..., Path], tmp_path: Path) -> None:
    held_out = [write_lines(tmp_path / name / "text.jsonl", f"{name} came home") for name in ("one", "two")]
    for name, text in (("one", "the sea was calm"), ("two", "a ship came home at last")):
        tokenizer = train_tokenizer([text] * 3, 262)
        tokenizer.save_pretrained(tmp_path / name / "tokenizer")
    one = str(tmp_path / "one" / "tokenizer")
    path = write_run("masked_mixer", validation_files=held_out[:1], tokenizer=one, vocab_size=262)
    train(path)
    with pytest.raises(ValueError, match=r"another run: data.made_of.validation_files was \[\['text.jsonl'"):
        prepare_run(path, ["--validation_files", held_out[1]])
    shutil.copytree(one, tmp_path / "other" / "tokenizer")
    assert prepare_run(path, ["--tokenizer", str(tmp_path / "other" / "tokenizer")]).is_finished
    with pytest.raises(ValueError, match="belongs to another run: .*data.made_of.tokenizer_sha256 was"):
        prepare_run(path, ["--tokenizer", str(tmp_path / "two" / "tokenizer")])


def test_another_base_model_of_the_same_name_is_another_run(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_run("masked_mixer")
    bases = [str(tmp_path / name / "model") for name in ("a", "b")]
    for seed, base in enumerate(bases):
        train(path, "--output_dir", base, "--seed", str(seed))
    run = yaml.safe_load(path.read_text())
    model_keys = {"model_type", "vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"}
    path.write_text(yaml.safe_dump({key: value for key, value in run.items() if key not in model_keys}))
    train(path, "--model_name_or_path", bases[0])
    assert prepare_run(path, ["--model_name_or_path", bases[0]]).is_finished
    with pytest.raises(ValueError, match="belongs to another run: data.made_of.base_model was"):
        prepare_run(path, ["--model_name_or_path", bases[1]])


def test_a_folder_of_text_trains_and_a_url_says_what_to_do(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for number, text in enumerate(("the sea was calm", "no one spoke a word")):
        write_lines(tmp_path / "text" / f"part-{number}.jsonl", *[text] * 4)
    path = write_run("masked_mixer", train_files=[str(tmp_path / "text")])
    files = [name for name, _ in train(path).run.record["data"]["made_of"]["files"]]
    assert files == ["part-0.jsonl", "part-1.jsonl"]
    write_lines(tmp_path / "text" / "part-1.jsonl", *["a word was spoken"] * 4)
    with pytest.raises(ValueError, match="belongs to another run: data.made_of.files was"):
        prepare_run(path)
    with pytest.raises(ValueError, match="trained on from local files: `eem data prepare` takes URLs"):
        prepare_run(path, ["--train_files", "hf://datasets/a/b/c.jsonl"])


def test_a_lengthened_run_goes_on_with_its_own_learning_rate(write_run: Callable[..., Path]) -> None:
    """The shorter run's schedule had come to 0."""
    path = write_run("masked_mixer", max_steps=3, save_strategy="steps", save_steps=3, lr_scheduler_type="linear")
    train(path)
    history = train(path, "--max_steps", "6").state.log_history
    rates = {entry["step"]: entry["learning_rate"] for entry in history if "learning_rate" in entry}
    assert [rates[step] for step in (4, 5, 6)] == pytest.approx([0.01 * left / 6 for left in (3, 2, 1)])


@pytest.mark.parametrize(
    "before, after",
    [
        ({"num_train_epochs": 1.5}, {"num_train_epochs": 2}),
        ({"max_steps": 2}, {"num_train_epochs": 1}),
    ],
    ids=["more epochs", "epochs in place of steps"],
)
def test_a_finished_run_is_lengthened_by_epochs(
    write_run: Callable[..., Path], before: dict[str, float], after: dict[str, float]
) -> None:
    """Three steps an epoch. A state's `num_train_epochs` is rounded up: 1.5 to 2, two thirds to 1."""
    given = {"max_steps": None, "rows": "pad", "save_strategy": "steps", "save_steps": 1}
    train(write_run("masked_mixer", **given | before))
    path = write_run("masked_mixer", **given | after)
    assert not prepare_run(path).is_finished
    assert train(path).state.epoch == after["num_train_epochs"]
    assert prepare_run(path).is_finished


def test_a_run_that_drops_its_last_rows_goes_on_cut_up_as_before(write_run: Callable[..., Path]) -> None:
    """Of ten rows, batches of four drop two, and batches of two drop none."""
    given = {"rows": "pad", "dataloader_drop_last": True, "save_steps": 1}
    train(write_run("masked_mixer", **given))
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4}
    with pytest.raises(ValueError, match="gradient_accumulation_steps was 1 and is 2, and dataloader_drop_last: true"):
        prepare_run(write_run("masked_mixer", **given | cut))
    assert prepare_run(write_run("masked_mixer", **given, max_steps=4)).checkpoint is not None


@pytest.mark.parametrize(
    "saved, measured, keeps_best",
    [("epoch", "no", False), ("no", "epoch", False), ("epoch", "epoch", False), ("epoch", "epoch", True)],
)
def test_each_epochs_end_is_measured_once(
    write_run: Callable[..., Path], saved: str, measured: str, keeps_best: bool
) -> None:
    path = write_run(
        "masked_mixer",
        max_steps=None,
        num_train_epochs=2,
        save_strategy=saved,
        eval_strategy=measured,
        load_best_model_at_end=keeps_best,
        logging_steps=100,
    )
    trainer = train(path)
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(steps) == len(set(steps)) == 2 and steps[-1] == trainer.state.max_steps
    kept = {folder.name for folder in trainer.args.output_folder.glob("checkpoint-*")}
    assert kept == ({f"checkpoint-{step}" for step in steps} if saved == "epoch" else set())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--report_to", "[tensorboard]"], ["tensorboard"]),
        (["--report_to", "tensorboard"], ["tensorboard"]),
        (["--report_to", "tensorboard", "tensorboard"], ["tensorboard", "tensorboard"]),
        (["--report_to", "[]"], []),
        (["--report_to", "none"], []),
        (["--report_to", "false"], []),
    ],
    ids=str,
)
def test_one_or_several_trackers(write_run: Callable[..., Path], given: list[str], expected: list[str]) -> None:
    pytest.importorskip("tensorboard")
    _, (_, arguments) = read_run_file(write_run("masked_mixer"), (DataArguments, RunArguments), given)
    assert arguments.report_to == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_steps: 1:30", "max_steps"),
        ("max_steps: 3\nmax_steps: 4", "'max_steps' stands twice"),
    ],
)
def test_numbers_that_yaml_reads_otherwise(write_run: Callable[..., Path], line: str, message: str) -> None:
    path = write_run("masked_mixer", max_steps=None)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_run_file(path, (DataArguments, RunArguments))


def test_a_tracker_that_is_no_name_is_refused(write_run: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="report_to must be names of trackers, or none; got 3"):
        read_run_file(write_run("masked_mixer", report_to=3), (DataArguments, RunArguments))


def test_a_leading_zero_makes_no_octal_number(write_run: Callable[..., Path]) -> None:
    path = write_run("masked_mixer", max_steps=None)
    path.write_text(path.read_text() + "max_steps: 010\n")
    assert read_run_file(path, (DataArguments, RunArguments))[1][1].max_steps == 10


def test_a_whole_nested_config_is_merged_like_one_of_a_file(write_run: Callable[..., Path]) -> None:
    path, kinds = write_run("eem"), (DataArguments, RunArguments)
    before: Any = read_run_file(path, kinds)[0]
    changed: Any = read_run_file(path, kinds, ["--encoder_config", "{hidden_size: 24}"])[0]
    assert changed.encoder_config.hidden_size == 24 != before.encoder_config.hidden_size
    assert changed.encoder_config.num_hidden_layers == before.encoder_config.num_hidden_layers


def test_a_run_of_an_older_version_goes_on(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """Its record lacks the hashes of tokenizer and held-out text: these are not compared."""
    path = write_run("masked_mixer")
    train(path)
    record_file = tmp_path / "out" / "run.yaml"
    record = yaml.safe_load(record_file.read_text())
    record["data"]["made_of"] = {"files": record["data"]["made_of"]["files"]}
    record_file.write_text(yaml.safe_dump(record))
    with pytest.raises(ValueError, match="data.made_of.files was"):
        prepare_run(path, ["--train_files", write_lines(tmp_path / "train.jsonl", "another text")])
    (tmp_path / "out" / "complete.json").unlink()  # it knows the record's own hash
    assert prepare_run(path).checkpoint is not None
