"""What a dry run says a training costs, against the training itself; and that it leaves no trace."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import DatasetDict, load_from_disk
from filelock import FileLock
from rich.cells import cell_len
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from typer.testing import CliRunner
from whole_run import train

from eem.train import app
from modeling_eem.data.fingerprint import FINGERPRINT_FILE
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards
from modeling_eem.files import LOCK_FILE
from modeling_eem.models.loss_eem import ROW_MULTIPLE
from modeling_eem.training import DryRun, RunTrainer, dry_run, dry_run_table, prepare_run, training_flops
from modeling_eem.training.dry_run import _count
from modeling_eem.training.flops import counted_flops

LENGTH = 24
# Wide enough that weights are more than a tokenizer.
WIDE = {"hidden_size": 128, "num_hidden_layers": 2, "max_position_embeddings": LENGTH, "vocab_size": 280}
NO_TEXT = {"train_files": None, "validation_files": None}


@pytest.fixture(scope="module")
def full_rows(run_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that are all of one length, with entropies."""
    text = tmp_path_factory.mktemp("text") / "long.jsonl"
    lines = (run_text / "train.jsonl").read_text().splitlines()
    text.write_text(json.dumps({"text": " ".join(json.loads(line)["text"] for line in lines * 4)}) + "\n")
    folder = text.with_name("rows")
    shards = plan_shards([str(text)], "text", 100_000)
    options = RowOptions(max_length=LENGTH, held_out=0)
    prepare_rows(shards, AutoTokenizer.from_pretrained(run_text / "tokenizer"), folder, options, Launch(workers=1))
    rows = load_from_disk(folder)["train"].filter(lambda row: len(row["input_ids"]) == LENGTH)
    rows = rows.map(lambda row: {"token_entropies": [float("nan"), *(i % 3 for i in row["input_ids"][1:])]})
    full = folder.with_name("full")
    DatasetDict(train=rows).save_to_disk(full)
    shutil.copy(folder / FINGERPRINT_FILE, full)
    return full


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, run_text: Path) -> Path:
    """A foreign causal model in a folder."""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {name: value for name, value in WIDE.items() if name != "hidden_size"}
    config = LlamaConfig(**sizes, hidden_size=128, intermediate_size=256, num_attention_heads=2, bos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(run_text / "tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture
def full_run(write_run: Callable[..., Path], run_text: Path, full_rows: Path, llama: Path) -> Callable[..., Path]:
    """A run file of a kind of model on the rows of one length: three steps, checkpoints after 1, 2 and 3."""

    def write(kind: str, **changes: Any) -> Path:
        data = {"train_files": None, "train_rows": str(full_rows), "max_steps": 3, "save_steps": 1, **changes}
        if kind == "folder":
            return write_run(None, model_name_or_path=str(llama), tokenizer=None, **data)
        if kind == "eem":
            decoder = WIDE | {"max_position_embeddings": LENGTH + 1}
            return write_run("eem", encoder_config=WIDE, decoder_config=decoder, random_prefix_probability=0, **data)
        return write_run(kind, **WIDE, **data)

    return write


def figures(path: Path, *overrides: str) -> DryRun:
    costs = dry_run(path, overrides)
    assert isinstance(costs, DryRun)
    return costs


@pytest.mark.parametrize(
    "kind, token_loss",
    [("masked_mixer", "cross_entropy"), ("eem", "cross_entropy"), ("folder", "hinge"), ("folder", "mile")],
)
def test_the_figures_are_those_of_the_run(
    full_run: Callable[..., Path], tmp_path: Path, kind: str, token_loss: str
) -> None:
    path = full_run(kind, token_loss=token_loss, save_total_limit=2, gradient_accumulation_steps=2)
    costs = figures(path)
    assert not (tmp_path / "out").exists()

    run = prepare_run(path)
    trainer = RunTrainer(run)
    trainer.fit()
    trainer.write_finished_model()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert costs.parameters == results["parameters"] == costs.trained
    assert costs.tokens == results["tokens"] == 3 * 8 * LENGTH and costs.steps == results["step"]
    assert costs.evaluations == len(results["curve"])
    assert (costs.kept, costs.checkpoints) == (2, 3)
    written = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert costs.disk == pytest.approx(written, rel=0.03) and costs.most_disk > costs.disk
    saved = sum(file.stat().st_size for file in (tmp_path / "out" / "checkpoint-3").iterdir())
    assert costs.checkpoint_bytes == pytest.approx(saved, rel=0.03)

    steps = dict.fromkeys(("save_strategy", "eval_strategy"), "no")
    again = [word for name, value in steps.items() for word in (f"--{name}", value)]
    plain = RunTrainer(prepare_run(path, [*again, "--output_dir", str(tmp_path / "counted")]))
    plain.callback_handler.callbacks = [c for c in plain.callback_handler.callbacks if "Measure" not in str(c)]
    assert costs.flops == counted_flops(plain.train)
    if token_loss == "cross_entropy":
        head = 6 * WIDE["vocab_size"] * WIDE["hidden_size"]  # of one token
        scored = 4 * (LENGTH - 1)  # of each half of the step; the head fills them up to a multiple
        filled = scored + -scored % ROW_MULTIPLE
        assert costs.flops_per_step == 8 * (training_flops(run.model, LENGTH) - LENGTH * head) + 2 * filled * head


def test_what_is_left_of_a_run(full_run: Callable[..., Path]) -> None:
    path = full_run("masked_mixer", max_steps=2)
    whole = figures(path, "--max_steps", "5")
    trainer = RunTrainer(prepare_run(path))
    trainer.fit()  # leaves checkpoint-2, and is not finished
    left = figures(path, "--max_steps", "5")
    assert (left.first_step, left.steps, whole.steps) == (2, 3, 5) and "checkpoint-2" in left.begins
    assert left.flops == pytest.approx(whole.flops * 3 / 5)
    assert left.checkpoints == 3 and whole.checkpoints == 5


def test_measuring_at_the_start_is_no_step(full_run: Callable[..., Path]) -> None:
    without, measured = (figures(full_run("masked_mixer", eval_on_start=is_on)) for is_on in (False, True))
    assert measured.flops_per_row == without.flops_per_row
    assert measured.evaluations == without.evaluations + 1


def test_epochs_count_their_rows(full_run: Callable[..., Path], full_rows: Path) -> None:
    """The last step of an epoch has the rows that are left."""
    rows = len(load_from_disk(full_rows)["train"])
    changes = {"max_steps": None, "num_train_epochs": 2, "save_strategy": "epoch", "per_device_train_batch_size": 5}
    costs = figures(full_run("masked_mixer", **changes))
    assert rows % 5 and costs.rows == 2 * rows and costs.steps == 2 * -(-rows // 5) and costs.checkpoints == 2


@pytest.mark.parametrize("periods", [[], [3], [3, 4], [4, 6], [0, 5], [7, 7]])
def test_steps_are_counted_as_they_are_met(periods: list[int]) -> None:
    for first in range(0, 14):
        for last in range(first, 30):
            steps = {s for s in range(first + 1, last + 1) if any(p and s % p == 0 for p in periods) or s == last}
            assert _count(periods, first, last) == len(steps)


def output(path: Path, *overrides: str) -> Any:
    return CliRunner().invoke(app, ["--config", str(path), "--dry-run", *overrides])


def test_the_command_writes_nothing(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_run("eem", report_to="tensorboard", push_to_hub=True, hub_model_id="someone/tiny", save_steps=1)
    before = sorted(tmp_path.rglob("*"))
    result = output(path)
    assert result.exit_code == 0 and "FLOPs a step" in result.stdout and "disk at the end" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def stages(full_rows: Path, tmp_path: Path) -> dict[str, Any]:
    """Keys of a run with two stages of entropies."""
    rows = load_from_disk(full_rows)["train"]
    DatasetDict(train=rows.add_column("late", rows["token_entropies"])).save_to_disk(tmp_path / "rows")
    shutil.copy(full_rows / FINGERPRINT_FILE, tmp_path / "rows")
    return {
        "token_loss": "hinge",
        "entropy_columns": ["token_entropies", "late"],
        "train_rows": str(tmp_path / "rows"),
    }


def test_a_lengthened_run_names_the_stages_that_it_had(write_run: Callable[..., Path], stages: dict[str, Any]) -> None:
    path = write_run("masked_mixer", train_files=None, **stages, max_steps=3, save_steps=3)
    train(path)
    longer = ("--max_steps", "8")
    for start in (train, dry_run):
        with pytest.raises(ValueError, match=r"set entropy_stage_steps to \[1\], where the stages .* began"):
            start(path, *longer) if start is train else start(path, longer)
    with pytest.raises(ValueError, match=r"training.entropy_stage_steps was \[1\] and is \[2\]"):
        prepare_run(path, [*longer, "--entropy_stage_steps", "2"])
    named = (*longer, "--entropy_stage_steps", "1")
    assert figures(path, *named).steps == 5
    assert train(path, *named).state.global_step == 8
    assert prepare_run(path, named).is_finished


def test_it_takes_fewer_steps_than_a_stage_of_entropies(full_run: Callable[..., Path], stages: dict[str, Any]) -> None:
    """A later stage may begin after the rehearsal's last step, not after the run's."""
    path = full_run("masked_mixer", **stages, max_steps=None, num_train_epochs=10, entropy_stage_steps=[12])
    assert figures(path).steps > 12
    with pytest.raises(ValueError, match="a stage that begins at step 5000 never comes in"):
        figures(full_run("masked_mixer", **stages, max_steps=None, entropy_stage_steps=[5000]))


def test_it_refuses_what_the_run_would(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_run("masked_mixer")
    for overrides in (
        ["--learnig_rate", "1"],
        ["--vocab_size", "281"],
        ["--token_loss", "hinge"],
        ["--max_length", "99"],
        ["--train_files", "nowhere.jsonl"],
        ["--label_smoothing_factor", "0.1"],
        ["--output_dir", str(path)],
    ):
        result = output(path, *overrides)
        assert result.exit_code == 2, overrides
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    lock = FileLock(tmp_path / "out" / LOCK_FILE)
    (tmp_path / "out").mkdir()
    with lock:
        result = output(path)
    assert result.exit_code == 2 and "another process" in result.stderr


def test_a_finished_run_has_nothing_left(write_run: Callable[..., Path]) -> None:
    path = write_run("masked_mixer")
    trainer = RunTrainer(prepare_run(path))
    trainer.fit()
    trainer.write_finished_model()
    result = output(path)
    assert result.exit_code == 0 and "nothing is left to train" in " ".join(result.stdout.split())


def test_a_loss_that_is_no_number_ends_it(write_run: Callable[..., Path]) -> None:
    result = output(write_run("masked_mixer", learning_rate=1e30))
    assert result.exit_code == 1 and "the loss is" in result.stderr


COSTS = DryRun(
    name="a-run-with-a-long-name",
    begins="going on from runs/a-run-with-a-long-name/checkpoint-123000",
    parameters=1_234_567_890,
    trained=12_345_678,
    first_step=123_000,
    last_step=500_000,
    rows_per_step=512,
    flops_per_row=3.21e12,
    tokens_per_row=1000.5,
    rows=512 * 377_000,
    step_seconds=1.5,
    timed_steps=10,
    evaluations=300,
    evaluation_seconds=75,
    memory=98_765_432_100,
    model_bytes=5_000_000_000,
    checkpoint_bytes=15_000_000_000,
    checkpoints=377,
    kept=3,
    free_bytes=7_000_000_000,
)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_is_whole(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(dry_run_table(COSTS))
    text = console.file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    for figure in (
        "1,234,567,890",
        "1.64 PFLOP",
        "98.8 GB",
        "50.0 GB",
        "60.0 GB",
        "6 d 19 h",
        "12,345,678",
        "3 of 377",
    ):
        assert figure in text, figure
    assert "has too little space" in " ".join(text.split())
