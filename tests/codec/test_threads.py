"""How many threads code windows: what was set, else what the environment says, else the cores."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_eem.codec import IntegerModel, num_threads, set_num_threads, threads


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_chosen", None)


@pytest.mark.parametrize(("value", "number"), [("3", 3), ("4,2", 4)])
def test_the_environment_says_it(monkeypatch: pytest.MonkeyPatch, value: str, number: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert num_threads() == number
    set_num_threads(2)
    assert num_threads() == 2


@pytest.mark.parametrize("value", ["", "0", "many"])
def test_else_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert 1 <= num_threads() <= (os.cpu_count() or 1)


def test_more_threads_than_windows_cost_nothing(integer_model: Callable[[str], IntegerModel]) -> None:
    model = integer_model("flat")
    set_num_threads(2_000_000_000)
    payloads = model.encode_windows([[5, 6, 7], [8]])
    assert model.decode_windows(payloads, [3, 1]) == [[5, 6, 7], [8]]


def test_a_user_without_a_home_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compilation = pytest.importorskip("modeling_eem.codec.compilation")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compilation.Path, "home", no_home)
    monkeypatch.setattr(compilation._SETTINGS, "CACHE_DIR", "")
    assert compilation._cache_folder() is None


def test_no_thread_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        set_num_threads(0)
