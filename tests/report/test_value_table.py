import re

import pytest

from modeling_eem.report.value_table import value_table_html


def test_numbers_stand_on_colours_and_nan_is_empty() -> None:
    html = value_table_html(
        ["word", "at byte", "model (bits)"],
        ["<a>", "b"],
        [[0, 5.0], [1200, float("nan")]],
        [None, (0, 20)],
        ["a note"],
    )
    assert re.findall(r"<td[^>]*>([^<]*)</td>", html) == ["&lt;a&gt;", "0", "5.000", "b", "1,200", ""]
    assert re.findall(r"--v:([\d.]+)", html) == ["0.250"]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", html) == ["word", "at byte", "model (bits)"]
    assert "<p>a note</p>" in html


@pytest.mark.parametrize("value, level", [(-1.0, "0.000"), (3.0, "1.000")])
def test_values_beyond_the_scale_take_the_nearer_colour(value: float, level: str) -> None:
    assert f"--v:{level}" in value_table_html(["", "x"], ["a"], [[value]], [(0, 2)])
