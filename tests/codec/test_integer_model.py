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
    assert not [*tmp_path.rglob("*.py")], "weights, tables and a tokenizer, without code"
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


@pytest.mark.parametrize("kind", ["flat", "token"])
def test_a_window_costs_its_tokens_and_its_code(integer_model: MakeModel, draw_windows: Draw, kind: str) -> None:
    model = integer_model(kind)
    windows, contexts = draw_windows(model, 9)
    codes = model.encode_codes(windows) if model.has_code else None
    of_tokens = model.token_costs_bits(windows, contexts, codes)
    assert [len(costs) for costs in of_tokens] == [len(window) for window in windows]
    assert all((costs > 0).all() for costs in of_tokens)
    of_codes = [
        whole - costs.sum() for whole, costs in zip(model.window_costs_bits(windows, contexts, codes), of_tokens)
    ]
    if kind == "flat":
        assert of_codes == pytest.approx([0.0] * len(windows))
    else:  # a code costs what its prior says, whatever the window
        assert codes is not None and all(bits > 1 for bits in of_codes)
        again = model.window_costs_bits([[]] * len(windows), None, codes)
        assert of_codes == pytest.approx(again)


@pytest.mark.parametrize("kind", ["flat", "token", "embedding"])
def test_damaged_payloads_give_a_value_error_or_tokens(
    integer_model: MakeModel, draw_windows: Draw, kind: str
) -> None:
    model = integer_model(kind)
    windows, _ = draw_windows(model, 8)
    codes = model.encode_codes(windows) if model.has_code else None
    payloads = model.encode_windows(windows, codes=codes)
    rng = np.random.default_rng(0)
    num_refused = 0
    for trial in range(60):
        index = trial % len(windows)
        data = bytearray(payloads[index] or b"x")
        place = int(rng.integers(len(data)))
        if trial % 4 == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif trial % 4 == 1:
            del data[place:]
        elif trial % 4 == 2:
            data += rng.bytes(9)
        else:
            data[:] = rng.bytes(len(data))
        length = len(windows[index])
        try:
            (tokens,) = model.decode_windows([bytes(data)], [length], with_code=[model.has_code])
        except ValueError:
            num_refused += 1
        else:
            assert len(tokens) == length and all(0 <= token < model.sizes.vocab_size for token in tokens)
    assert num_refused > 10


def test_what_does_not_fit_is_refused(integer_model: MakeModel) -> None:
    model, eem = integer_model("flat"), integer_model("token")
    full = [5] * (model.context - 1)
    assert model.decode_windows(model.encode_windows([full]), [len(full)]) == [full]
    with pytest.raises(ValueError, match="does not fit"):
        model.encode_windows([[*full, 5]])
    with pytest.raises(ValueError, match="does not fit"):
        model.decode_windows([b""], [len(full)], contexts=[[5]])
    for token in (-1, model.sizes.vocab_size):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            model.encode_windows([[token]])
        with pytest.raises(ValueError, match="outside the vocabulary"):
            model.decode_windows([b""], [1], contexts=[[token]])
    with pytest.raises(ValueError, match="causal"):
        model.encode_windows([[5]], codes=[np.zeros(6, dtype=np.int64)])
    with pytest.raises(ValueError, match="causal"):
        model.decode_windows([b""], [1], with_code=[True])
    with pytest.raises(ValueError, match="no encoder"):
        model.encode_codes([[5]])
    for code in ([0] * 5, [0] * 5 + [256], [-1] + [0] * 5):
        with pytest.raises(ValueError, match="code|format"):
            eem.encode_windows([[5]], codes=[np.array(code)])


def test_no_windows_and_empty_windows(integer_model: MakeModel) -> None:
    model = integer_model("flat")
    assert model.encode_windows([]) == [] and model.decode_windows([], []) == [] and model.window_costs_bits([]) == []
    assert model.encode_windows([[], []]) == [b"", b""] and model.decode_windows([b"", b""], [0, 0]) == [[], []]


def test_a_changed_file_is_no_model_of_that_id(integer_model: MakeModel, tmp_path: Path) -> None:
    integer_model("flat").save_pretrained(tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"sea"', '"ses"') + " ")
    with pytest.raises(ValueError, match="are not those of model"):
        IntegerModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a codec model"):
        IntegerModel.from_pretrained(tmp_path / "nowhere")
