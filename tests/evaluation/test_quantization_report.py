"""Tables of formats and layers, from costs whose differences are known."""

import math

import pytest

from modeling_eem.bits import CodeLength
from modeling_eem.evaluation.quantization import UNROUNDED, CodeHistogram, FormatCost, LayerEffect
from modeling_eem.evaluation.quantization_report import comparison_table, formats_table, sweep_table, to_json


def _cost(name: str, nats: list[float], tokens: int = 10) -> FormatCost:
    length = CodeLength(nll_nats=sum(nats), num_bytes=100, num_tokens=tokens * len(nats))
    return FormatCost(name, 64, length, {index: (value, tokens) for index, value in enumerate(nats)})


def test_costs_are_told_from_the_unrounded_code_and_from_another_model_s() -> None:
    formats = {
        "plain": [_cost(UNROUNDED, [20.0, 30.0, 40.0]), _cost("int8", [21.0, 31.0, 41.0])],
        "noisy": [_cost(UNROUNDED, [22.0, 33.0, 44.0]), _cost("int8", [22.5, 33.5, 44.5])],
    }
    rows = {(row[0], row[1]): row for row in formats_table(formats).rows}
    assert rows["plain", "int8"][4] == pytest.approx(0.1) and rows["noisy", "int8"][4] == pytest.approx(0.05)
    assert rows["noisy", "int8"][5] == "+0.0500 … +0.0500", "every document loses the same"
    assert rows["plain", UNROUNDED][4] is None
    ((model, name, less, spread),) = comparison_table(formats).rows
    assert (model, name, less, spread) == ("noisy", "int8", pytest.approx(-0.05), "-0.0500 … -0.0500")


def test_a_cost_too_small_for_its_digits_is_zero_everywhere() -> None:
    costs = [_cost(UNROUNDED, [20.0, 30.0, 40.0]), _cost("float16", [20.0 - 1e-6, 30.0, 40.0])]
    markdown = formats_table({"model": costs}).to_markdown()
    assert "+0.0000 | +0.0000 … +0.0000" in markdown and "e-0" not in markdown and "-0.0" not in markdown


def test_the_layer_that_minds_most_is_named() -> None:
    effects = [
        LayerEffect(layer, part, name, value)
        for part in ("activations", "weights")
        for name in ("float8_e4m3fn", "float8_e5m2")
        for layer, value in {"a": 0.1, "b": 0.5, "c": math.nan, "d": 0.2}.items()
    ]
    rows = sweep_table({"model": effects}).rows
    assert len(rows) == 4
    for row in rows:
        assert row[3:] == (4, pytest.approx(0.2), 0.5, "b")


def test_the_json_holds_what_the_tables_say() -> None:
    formats = {
        "plain": [_cost(UNROUNDED, [20.0, 30.0, 40.0]), _cost("int8", [21.0, 31.0, 41.0])],
        "noisy": [_cost(UNROUNDED, [22.0, 33.0, 44.0]), _cost("int8", [22.5, 33.5, 44.5])],
    }
    histogram = CodeHistogram([0.0, 1.0], [[1]])
    content = to_json(formats, {name: [] for name in formats}, dict.fromkeys(formats, histogram))
    plain, noisy = content["plain"]["formats"][1], content["noisy"]["formats"][1]
    assert plain["more_than_float32"] == pytest.approx(0.1) and "costs_more_than_the_first" not in plain
    assert noisy["more_than_float32"] == pytest.approx(0.05)
    assert noisy["costs_more_than_the_first"] == pytest.approx(-0.05)
    assert noisy["costs_more_than_the_first_95"] == {"low": pytest.approx(-0.05), "high": pytest.approx(-0.05)}
