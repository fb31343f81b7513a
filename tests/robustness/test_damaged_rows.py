"""Damaged rows and entropies on disk: an error of one line that names the folder, or the numbers of whole ones."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import damage
from processes import Contents, contents, emptied, rounds, run, succeeded
from safetensors.torch import load_file

NOT_READ = ("results.json", "shards.jsonl", ".lock", "README.md")
COMMANDS = {"rows": ("entropy", "bits", "train"), "entropies": ("train", "correlation", "bits")}


@pytest.fixture(scope="module")
def second(made: dict[str, Path], harness_model: Callable[..., Path]) -> Path:
    """Another model's entropies of the same rows, to compare with."""
    output = made["rows"].parent / "second"
    words = ["--method", "causal", "--rows-a-part", 20, "--data", made["rows"], "--output", output]
    succeeded(run(["entropy", "--model", harness_model("llama"), *words], output.parent))
    return output


@pytest.fixture(scope="module")
def words(
    models: dict[str, Path], second: Path, run_values: Callable[..., dict[str, Any]]
) -> Callable[[str, Path, Path], list[object]]:
    """The words of a command that reads a data set, its output in a folder."""
    sizes = {"vocab_size": 300, "max_position_embeddings": 16}
    values = run_values("masked_mixer", train_files=None, validation_files=None, tokenizer=None, **sizes)

    def make(command: str, data: Path, folder: Path) -> list[object]:
        out = folder / "out"
        if command == "train":
            run_file = {**values, "train_rows": str(data), "output_dir": str(out), "tokenizer": str(models["causal"])}
            (folder / "tiny.yaml").write_text(yaml.safe_dump(run_file))
            return ["train", "--config", folder / "tiny.yaml"]
        given: dict[str, list[object]] = {
            "entropy": ["entropy", "--method", "causal", "--rows-a-part", 20, "--model", models["causal"]],
            "bits": ["evaluate", "bits", "--model", models["causal"]],
            "correlation": ["evaluate", "correlation", "--entropies", data, second],
        }
        return [*given[command], *(() if command == "correlation" else ("--data", data)), "--output", out]

    return make


@pytest.fixture(scope="module")
def whole(
    made: dict[str, Path], words: Callable[..., list[object]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Contents]:
    """The numbers that a command makes of a whole data set."""
    known: dict[tuple[str, str], Contents] = {}

    def make(name: str, command: str) -> Contents:
        if (name, command) not in known:
            folder = tmp_path_factory.mktemp("whole")
            shutil.copytree(made[name], folder / "data")
            succeeded(run(words(command, folder / "data", folder), folder))
            known[name, command] = numbers(command, folder / "out")
        return known[name, command]

    return make


def numbers(command: str, output: Path) -> Contents:
    if command == "train":
        return {name: tensor.tolist() for name, tensor in load_file(output / "model.safetensors").items()}
    if command == "correlation":
        made = json.loads((output / "correlation.json").read_text())
        return {"regressions": made["regressions"], "index": list(made["index"].values())}
    made = contents(output)
    return {name: content for name, content in made.items() if name.endswith((".arrow", ".csv", "results.json"))}


def test_damaged_rows_are_named_or_measured_right(
    made: dict[str, Path],
    words: Callable[..., list[object]],
    whole: Callable[[str, str], Contents],
    tmp_path: Path,
) -> None:
    chance = random.Random("rows")
    refused = 0
    for attempt in rounds(10, 4):
        with attempt:
            name = chance.choice(sorted(COMMANDS))
            command = chance.choice(COMMANDS[name])
            folder = emptied(tmp_path / "round")
            shutil.copytree(made[name], folder / "data", ignore=shutil.ignore_patterns("logs"))
            files = [
                path for path in sorted((folder / "data").rglob("*")) if path.is_file() and path.name not in NOT_READ
            ]
            file = chance.choice(files)
            how = damage(file, chance)
            result = run(words(command, folder / "data", folder), folder)
            what = f"{command} of {name}: {file.relative_to(folder)}: {how}: {result}"
            if result.is_error:
                refused += 1
                assert str(folder / "data") in result.error, what
                continue
            assert result.code == 0, what
            assert numbers(command, folder / "out") == whole(name, command), what
    assert refused > 0
