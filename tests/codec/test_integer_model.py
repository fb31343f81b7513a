"""Windows of any tokens round trip, whatever the model's shape."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modeling_eem.codec import IntegerModel

MakeModel = Callable[[str], IntegerModel]
Draw = Callable[[IntegerModel, int], tuple[list[list[int]], list[list[int]]]]


@pytest.mark.parametrize("kind", ["flat", "tied", "heads", "taps", "token", "embedding", "combination"])
def test_windows_of_any_tokens_come_back(integer_model: MakeModel, draw_windows: Draw, kind: str) -> None:
    model = integer_model(kind)
    windows, contexts = draw_windows(model, 9)
    lengths = list(map(len, windows))
    assert model.decode_windows(model.encode_windows(windows), lengths) == windows
    payloads = model.encode_windows(windows, contexts)
    assert model.decode_windows(payloads, lengths, contexts) == windows


@pytest.mark.parametrize("kind", ["token", "embedding", "combination"])
def test_windows_with_a_code_come_back(integer_model: MakeModel, draw_windows: Draw, kind: str) -> None:
    model = integer_model(kind)
    windows, contexts = draw_windows(model, 9)
    codes = [code if index % 2 else None for index, code in enumerate(model.encode_codes(windows))]
    payloads = model.encode_windows(windows, contexts, codes)
    with_code = [code is not None for code in codes]
    assert model.decode_windows(payloads, list(map(len, windows)), contexts, with_code) == windows


@pytest.mark.parametrize("kind", ["heads", "token"])
def test_a_saved_model_is_the_same(integer_model: MakeModel, draw_windows: Draw, kind: str, tmp_path: Path) -> None:
    model = integer_model(kind)
    windows, contexts = draw_windows(model, 5)
    model.save_pretrained(tmp_path)
    loaded = IntegerModel.from_pretrained(tmp_path)
    assert loaded.id == model.id
    assert loaded.encode_windows(windows, contexts) == model.encode_windows(windows, contexts)
    if model.has_code:
        for ours, theirs in zip(model.encode_codes(windows), loaded.encode_codes(windows)):
            assert np.array_equal(ours, theirs)


def test_payloads_are_as_long_as_their_costs(integer_model: MakeModel, draw_windows: Draw) -> None:
    model = integer_model("flat")
    windows, _ = draw_windows(model, 50)
    for payload, bits in zip(model.encode_windows(windows), model.window_costs_bits(windows)):
        assert 8 * len(payload) <= bits + 8 + 1e-3 * bits
