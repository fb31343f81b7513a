"""`make test-gpu`: what a GPU computes, against the CPU in float32. `TEST_DEVICE=cpu` runs the same tests on a CPU.

Two tolerances. In float32 every number is within 1e-4 (absolute, and relative to itself) of the CPU's: sums are taken
in another order. In half precision a tensor's distance to the CPU's, as a vector, is a share of its length: `HALF`.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
HALF = {torch.bfloat16: 0.03, torch.float16: 0.004}  # four to eight roundings of 2**-8 and 2**-11
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    is_missing = DEVICE == "cuda" and not torch.cuda.is_available()
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            if is_missing:
                item.add_marker(pytest.mark.skip(reason="GPU"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(scope="session")
def assert_near() -> Callable[[Any, Any, torch.dtype], None]:
    """What a device computed in a dtype, tensors or lists of them, against the CPU's float32; NaN where it has NaN."""

    def check(actual: Any, expected: Any, dtype: torch.dtype) -> None:
        if isinstance(expected, (list, tuple)):
            assert len(actual) == len(expected)
            for one, other in zip(actual, expected):
                check(one, other, dtype)
            return
        actual, expected = actual.detach().cpu().double(), expected.detach().double()
        if dtype == torch.float32:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
            return
        assert actual.shape == expected.shape and torch.equal(actual.isnan(), expected.isnan())
        distance, length = (actual - expected).nan_to_num().norm(), expected.nan_to_num().norm()
        assert distance <= HALF[dtype] * length + 1e-6, f"{distance / length:.2g} of its length"

    return check


@pytest.fixture(scope="session")
def on_device(device: torch.device) -> Callable[[Any, torch.dtype], Any]:
    """A copy of a model there, its weights in a dtype."""

    def move(model: Any, dtype: torch.dtype) -> Any:
        return copy.deepcopy(model).to(device, dtype)

    return move


@pytest.fixture(scope="session")
def autocast(device: torch.device) -> Callable[[torch.dtype], Any]:
    """Mixed precision as in training; nothing for float32."""

    def context(dtype: torch.dtype) -> Any:
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)

    return context


@pytest.fixture
def batch_there(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in batch.items()}


@pytest.fixture
def deterministic_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
