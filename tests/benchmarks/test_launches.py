"""How commands grow with processes: what was written is compared, and a small round runs."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import launches

    return launches


def test_files_must_be_the_same_bytes(launches: ModuleType, tmp_path: Path) -> None:
    for name, ids in {"one": [[1, 2]], "same": [[1, 2]], "other": [[1, 3]]}.items():
        Dataset.from_dict({"input_ids": ids}).save_to_disk(tmp_path / name)
    assert launches.same_arrow_files(tmp_path / "one", tmp_path / "same") == "the same bytes"
    with pytest.raises(AssertionError, match="differs between"):
        launches.same_arrow_files(tmp_path / "one", tmp_path / "other")
    with pytest.raises(AssertionError, match="hold other files"):
        launches.same_arrow_files(tmp_path / "one", tmp_path)


def test_weights_may_differ_by_rounding_alone(launches: ModuleType, tmp_path: Path) -> None:
    weights = torch.randn(50)
    for name, change in {"one": 0.0, "near": 1e-4, "far": 1.0}.items():
        (tmp_path / name).mkdir()
        save_file({"w": weights + change * torch.randn(50)}, tmp_path / name / "model.safetensors")
    assert "cosine of 1.0000" in launches.alike_weights(tmp_path / "one", tmp_path / "near")
    with pytest.raises(AssertionError, match="have a cosine of"):
        launches.alike_weights(tmp_path / "one", tmp_path / "far")


@pytest.mark.slow
def test_a_small_round(launches: ModuleType, tmp_path: Path) -> None:
    """Preparing and entropies, by one process and by two; without Ray its column is empty."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"The sea was calm on day {day}. " * 40}) + "\n" for day in range(60)))
    launches.launches(
        data=text, data_dir=None, output=tmp_path, only=["prepare", "entropy"], count=2, documents=2, repeats=1
    )
    content = json.loads((tmp_path / "launches.json").read_text())
    assert set(content["seconds"]["entropy"]) >= {launches.ONE, launches.THREADS, launches.PROCESSES}
    assert "prepare: a process a core, the same bytes" in (tmp_path / "launches.md").read_text()
