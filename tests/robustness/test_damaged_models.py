"""Damaged folders of models: an error of one line that names the folder, or right numbers.

A folder that a training ended in lists its files, so there every difference must be found. A folder without a list may
be damaged into another model that is whole, whose numbers are another model's: they must then be finite, and of all
of the text.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import damage
from processes import Contents, Result, contents, emptied, rounds, run, succeeded

NOT_READ = ("README.md", "results.json", "learning_curve.png", "run.yaml", "trainer_state.json", "training_args.bin")


@pytest.fixture(scope="module")
def folders(
    models: dict[str, Path],
    run_values: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Models by name: `trained`, which has a list of its files, and two without."""
    folder = tmp_path_factory.mktemp("trained")
    values = run_values("eem", output_dir=str(folder / "trained"), eval_strategy="no")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    succeeded(run(["train", "--config", folder / "tiny.yaml"], folder))
    return {"trained": folder / "trained", **models}


def words(command: str, model: Path, documents: dict[str, Path]) -> list[object]:
    given = {
        "bits": ["evaluate", "bits", "--data", documents["jsonl"]],
        "entropy": ["entropy", "--method", "causal", "--max-length", 16, "--data", documents["jsonl"]],
        "build": ["codec", "build", "--calibration", documents["jsonl"]],
    }
    return [*given[command], "--model", model, "--output", "out"]


COMMANDS = {"trained": ("bits", "build"), "eem": ("bits", "build"), "causal": ("entropy", "bits", "build")}


@pytest.fixture(scope="module")
def whole(
    folders: dict[str, Path], documents: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Contents]:
    """What a command leaves for a whole model."""
    known: dict[tuple[str, str], Contents] = {}

    def make(name: str, command: str) -> Contents:
        if (name, command) not in known:
            folder = tmp_path_factory.mktemp("whole")
            succeeded(run(words(command, place(folders[name], folder), documents), folder))
            known[name, command] = numbers(folder / "out")
        return known[name, command]

    return make


def place(model: Path, folder: Path) -> Path:
    """A copy of a model, by the same name in any folder."""
    shutil.copytree(model, folder / "model")
    return folder / "model"


def numbers(output: Path) -> Contents:
    """What numbers follow from, or are: all but descriptions."""
    return {
        name: content
        for name, content in contents(output).items()
        if name.endswith((".arrow", ".csv", ".safetensors", "results.json", "tokenizer.json", "codec.json"))
    }


def assert_is_measured(command: str, output: Path, texts: list[str]) -> None:
    """Every number is finite, and of the whole text."""
    if command == "bits":
        (model,) = json.loads((output / "bits.json").read_text())["models"]
        assert model["num_bytes"] == sum(len(text.encode()) for text in texts)
        assert model["bits_per_byte"] is not None and model["bits_per_byte"] > 0
    elif command == "entropy":
        counts = json.loads((output / "results.json").read_text())["splits"]["train"]
        assert counts["scored"] == counts["tokens"] - counts["rows"]
        assert counts["mean"] > 0


def test_a_damaged_model_is_named_or_measured_right(
    folders: dict[str, Path],
    documents: dict[str, Path],
    texts: list[str],
    whole: Callable[[str, str], Contents],
    tmp_path: Path,
) -> None:
    chance = random.Random("models")
    refused = 0
    for attempt in rounds(12, 5):
        with attempt:
            name = chance.choice(sorted(COMMANDS))
            command = chance.choice(COMMANDS[name])
            folder = emptied(tmp_path / "round")
            model = place(folders[name], folder)
            files = [file for file in sorted(model.iterdir()) if file.is_file() and file.name not in NOT_READ]
            file = chance.choice([file for file in files if file.suffix != ".py"])
            how = damage(file, chance)
            result: Result = run(words(command, model, documents), folder)
            what = f"{command} of {name}: {file.name}: {how}: {result}"
            if result.is_error:
                refused += 1
                assert str(model) in result.error, what
                assert not [path for path in (folder / "out").rglob("*") if path.name != ".lock"], what
                continue
            assert result.code == 0, what
            if name == "trained":
                assert numbers(folder / "out") == whole(name, command), what
            elif numbers(folder / "out") != whole(name, command):
                assert file.suffix in (".json", ".safetensors"), what
                assert_is_measured(command, folder / "out", texts)
    assert refused > 0
