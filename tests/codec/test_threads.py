"""How many threads code windows: what was set, else what the environment says, else the cores."""

import os

import pytest

from modeling_eem.codec import num_threads, set_num_threads, threads


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


def test_no_thread_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        set_num_threads(0)
