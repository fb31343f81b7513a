"""A run that was trained once, and copies of it to go on from; rows with entropies, and arguments of one step."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset

sys.path.append(str(Path(__file__).parent))  # the tests find `whole_run` by its name

from whole_run import train  # noqa: E402

from modeling_eem.training import TokenWeightedTrainingArguments  # noqa: E402

STEPS = {"max_steps": 10, "save_steps": 5, "logging_steps": 2, "eval_steps": 3}


@pytest.fixture(scope="module")
def trained(
    run_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The output of an uninterrupted run with checkpoints 5 and 10, and its values."""
    folder = tmp_path_factory.mktemp("trained")
    values = run_values(**STEPS, output_dir=str(folder / "out"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    train(folder / "tiny.yaml")
    yield folder / "out", values


@pytest.fixture
def again(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """A run file with a copy of that output before it was finished, its values changed."""

    def write(**changes: Any) -> Path:
        output, values = trained
        shutil.copytree(output, tmp_path / "out", dirs_exist_ok=True)
        for file in (tmp_path / "out").iterdir():
            if file.is_file():
                file.unlink()
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**values, "output_dir": str(tmp_path / "out"), **changes}))
        return path

    return write


@pytest.fixture
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 9, (8,), generator=generator).tolist()
    return Dataset.from_list(
        [
            {
                "input_ids": [1, *torch.randint(2, 40, (length - 1,), generator=generator).tolist()],
                "token_entropies": [float("nan"), *(4 * torch.rand(length - 1, generator=generator)).tolist()],
            }
            for length in lengths
        ]
    )


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TokenWeightedTrainingArguments]:
    def make(kind: type = TokenWeightedTrainingArguments, **changes: Any) -> TokenWeightedTrainingArguments:
        given = {
            "per_device_train_batch_size": 8,
            "max_steps": 1,
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return kind(output_dir=str(tmp_path), **given | changes)

    return make
