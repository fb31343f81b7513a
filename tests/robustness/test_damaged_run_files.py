"""Damaged run files: an error of one line that names the file or the key, or the run that the file now describes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import change_value, spoil
from processes import emptied, rounds, run


@pytest.fixture(scope="module")
def values(run_values: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return run_values("eem", eval_strategy="no", output_dir="out")


def keys(record: Any) -> set[str]:
    """Of a mapping and those in it."""
    if not isinstance(record, dict):
        return set()
    return {str(key) for key in record}.union(*(keys(value) for value in record.values()))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def assert_is_a_run(values: Any, original: dict[str, Any]) -> None:
    """No unknown key, and a number wherever one is needed: what YAML 1.1 reads as a text may be one (`1e-2`)."""
    assert isinstance(values, dict)
    assert keys(values) <= keys(original)
    for name, value in values.items():
        if is_number(original[name]) and value is not None:
            assert not isinstance(value, (bool, list, dict)) and is_number(float(value)), (name, value)
        if isinstance(original[name], dict) and name.endswith("config"):
            assert_is_a_run(value, original[name])


def test_damaged_run_files(values: dict[str, Any], tmp_path: Path) -> None:
    chance = random.Random("run files")
    refused = 0
    for attempt in rounds(6, 2):
        with attempt:
            folder = emptied(tmp_path / "round")
            file = folder / "tiny.yaml"
            record = yaml.safe_load(yaml.safe_dump(values))
            if chance.random() < 0.6:
                how = change_value(record, chance, is_small=True)
                file.write_text(yaml.safe_dump(record))
            else:
                file.write_text(yaml.safe_dump(record))
                how = spoil(file, chance)
            result = run(["train", "--config", file, "--dry-run"], folder)
            what = f"{how}: {result}"
            assert [path for path in folder.iterdir() if path != file] == [], what
            if result.is_error:
                refused += 1
                assert result.error, what
                continue
            assert result.code == 0, what
            assert_is_a_run(yaml.safe_load(file.read_text()), values)
    assert refused > 0
