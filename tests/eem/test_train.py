"""eem train from a run file to a folder that loads, is measured, described and pushed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from huggingface_hub import ModelCard, RepoUrl
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from typer.testing import CliRunner

from eem.train import app
from modeling_eem.training import RunTrainer

ROOT = Path(__file__).parents[2]


def run(path: Path, *overrides: str) -> Result:
    return CliRunner().invoke(app, ["--config", str(path), *overrides])


@pytest.fixture(scope="module")
def output(run_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of 4 steps with TensorBoard leaves behind."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "tiny.yaml").write_text(
        yaml.safe_dump(run_values(max_steps=4, save_steps=2, report_to=None, output_dir=str(folder / "out")))
    )
    result = run(folder / "tiny.yaml")
    assert result.exit_code == 0, result.output
    assert re.search(r"held out: bits_per_byte \d+\.\d{4}, cross_entropy \d", result.stdout.replace("\n", " "))
    return folder / "out"


@pytest.mark.parametrize("folder", [".", "checkpoint-2", "checkpoint-4"])
def test_everything_stands_beside_the_weights(output: Path, folder: str) -> None:
    names = {path.name for path in (output / folder).iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "modeling_eem.py"} <= names
    assert {"tokenizer.json", "README.md", "learning_curve.png", "results.json", "run.yaml"} <= names
    assert not [name for name in names if name.endswith(".part")]
    config = json.loads((output / folder / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_eem.EEMForCausalLM"
    assert json.loads((output / folder / "tokenizer_config.json").read_text())["model_max_length"] == 24
    with Image.open(output / folder / "learning_curve.png") as image:
        assert image.format == "PNG" and min(image.size) > 200


@pytest.mark.parametrize("folder, step", [(".", 4), ("checkpoint-2", 2), ("checkpoint-4", 4)])
def test_cards_hold_the_numbers_of_their_checkpoint(output: Path, folder: str, step: int) -> None:
    results = json.loads((output / folder / "results.json").read_text())
    state = json.loads((output / folder / "trainer_state.json").read_text())
    evaluations = {entry["step"]: entry for entry in state["log_history"] if "eval_bits_per_byte" in entry}
    tokens = {entry["step"]: entry["num_input_tokens_seen"] for entry in state["log_history"]}
    assert results["step"] == step and 0 < results["tokens"] == tokens[step] < step * 4 * 24
    assert results["held_out"]["bits_per_byte"] == evaluations[step]["eval_bits_per_byte"]
    assert results["curve"] == [[tokens[at], evaluations[at]["eval_bits_per_byte"]] for at in sorted(evaluations)]
    assert f"torch {torch.__version__}" in results["versions"]
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", results["commit"])
    card = ModelCard.load(output / folder / "README.md")
    assert f"{results['held_out']['bits_per_byte']:.4f}" in card.text
    (measured,) = [entry for entry in card.data.eval_results if entry.metric_type == "bits_per_byte"]
    assert measured.metric_value == pytest.approx(results["held_out"]["bits_per_byte"], abs=1e-6)
    assert f"| {step} of 4 " in card.text and f"{results['parameters']:,}" in card.text
    assert "learning_curve.png" in card.text and card.data.library_name == "transformers"


def test_the_cards_code_runs_without_this_package(output: Path, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)[1]
    hide = "import sys\nsys.modules['modeling_eem'] = None\n"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", hide + code], cwd=output, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_tensorboard_has_the_logs(output: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (output / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "eval/bits_per_byte", "eval/token_accuracy"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_the_same_command_goes_on(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_run(max_steps=4, save_steps=2)
    assert run(path, "--max_steps", "2").exit_code == 0
    result = run(path)
    assert result.exit_code == 0 and "going on from" in result.stdout and "checkpoint-2" in result.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["step"] == 4


# The Hub


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, bytes]]]:
    """What would go over the network: (repository, message, files by name)."""
    pushes: list[tuple[str, str, dict[str, bytes]]] = []

    def create_repo(_api: Any, repo_id: str, **_kwargs: Any) -> RepoUrl:
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(_api: Any, *, repo_id: str, folder_path: Path, commit_message: str, **kwargs: Any) -> None:
        kwargs = {name: kwargs.get(name) for name in ("allow_patterns", "ignore_patterns")}
        names = [str(path.relative_to(folder_path)) for path in sorted(folder_path.rglob("*")) if path.is_file()]
        files = {name: (folder_path / name).read_bytes() for name in filter_repo_objects(names, **kwargs)}
        pushes.append((repo_id, commit_message, files))

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    return pushes


# What a pushed entropy estimation model is, and nothing else.
PUBLISHED = {
    *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("README.md", "learning_curve.png", "results.json", "run.yaml"),
    *("modeling_eem.py", "configuration_eem.py", "bottleneck_eem.py", "quantization_eem.py", "loss_eem.py"),
    *("hub_eem.py", "configuration_masked_mixer.py", "modeling_masked_mixer.py", "mixing_masked_mixer.py"),
    *("layout_masked_mixer.py", "cache_masked_mixer.py", "cache_eem.py", "generation_masked_mixer.py"),
}


def test_the_trained_model_is_pushed_and_nothing_else(
    write_run: Callable[..., Path], pushed: list[tuple[str, str, dict[str, bytes]]], tmp_path: Path
) -> None:
    path = write_run(push_to_hub=True, hub_model_id="someone/tiny", save_steps=1, report_to="tensorboard")
    assert run(path).exit_code == 0
    ((repository, message, files),) = pushed
    assert (repository, message) == ("someone/tiny", "End of training") and files.keys() == PUBLISHED
    assert (tmp_path / "out" / "runs").is_dir() and (tmp_path / "out" / "checkpoint-2" / "optimizer.pt").is_file()
    assert json.loads(files["config.json"])["auto_map"]["AutoModelForCausalLM"] == "modeling_eem.EEMForCausalLM"
    assert b"2 of 2" in files["README.md"] and files["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert "hub_token" not in files["run.yaml"].decode()


def test_every_save_pushes_whole_checkpoints(
    write_run: Callable[..., Path], pushed: list[tuple[str, str, dict[str, bytes]]]
) -> None:
    path = write_run(push_to_hub=True, hub_model_id="someone/tiny", save_steps=1, hub_strategy="every_save")
    assert run(path).exit_code == 0
    assert [message for _, message, _ in pushed] == ["Step 1", "Step 2", "End of training"]
    assert all(files.keys() == PUBLISHED for *_, files in pushed)
    assert b"1 of 2" in pushed[0][2]["README.md"]


# Bad input


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--learning_rat", "1"], "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        (["--learning_rate", "fast"], "learning_rate"),
        (["--train_files", "nowhere.txt"], "nowhere.txt"),
        (["--tokenizer", "nowhere"], "no tokenizer in 'nowhere'"),
        (["--token_loss", "hinge"], "token_loss: hinge needs train_rows"),
        (["--report_to", "comet_ml"], "report_to: comet_ml is not installed; choose from tensorboard"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere has no readable complete.json"),
    ],
)
def test_bad_input_is_one_line(
    write_run: Callable[..., Path], tmp_path: Path, overrides: list[str], message: str
) -> None:
    result = run(write_run(), *overrides)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_is_one_line(
    write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunTrainer, "compute_loss", lambda *_, **__: torch.tensor(float("nan"), requires_grad=True))
    result = run(write_run())
    assert result.exit_code == 1 and "the loss is nan at step 1, micro-batch 1" in result.stderr


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "eem train --config asset:configs/quickstart.yaml" in re.sub(r"[\s│]+", " ", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["eem", "train"],
        ["python", "train.py"],
        ["python", "-m", "eem", "train"],
        ["accelerate", "launch", "--cpu", "train.py"],
        ["torchrun", "--nproc_per_node", "2", "--master_port", "29531", "train.py"],
    ],
)
def test_every_way_to_start_it(write_run: Callable[..., Path], tmp_path: Path, command: list[str]) -> None:
    """From the checkout, whose evaluate.py must not hide the library of that name."""
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run(
        [str(program), *command[1:], "--config", str(write_run())],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["held_out"]["bits_per_byte"] > 0
    assert results["rows_per_step"] == (8 if command[0] == "torchrun" else 4)


def test_a_finished_run_says_so(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_run()
    assert run(path).exit_code == 0
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    result = run(path)
    assert result.exit_code == 0 and "holds this run, finished" in result.stdout and "held out:" in result.stdout
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    result = run(path, "--learning_rate", "0.5")
    assert result.exit_code == 2 and "belongs to another run: training.learning_rate was 0.01" in result.stderr


def test_ctrl_c_says_what_is_kept(write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RunTrainer.training_step

    def training_step(trainer: RunTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if trainer.state.global_step == 1:
            raise KeyboardInterrupt
        return whole(trainer, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "training_step", training_step)
    result = run(write_run(save_steps=1))
    assert result.exit_code == 130
    assert "stopped at step 1; the same command goes on from" in result.stderr and "checkpoint-1" in result.stderr


@pytest.mark.slow
def test_two_processes_say_what_is_wrong_once(write_run: Callable[..., Path], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "train.py"), "--config", str(write_run()), "--learning_rate", "fast"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and done.stderr.count("error: command line: ") == 1, done.stderr
