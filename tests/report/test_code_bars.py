import re

from modeling_eem.report.code_bars import Run, code_bars_html, compared_text_html


def test_bars_stand_on_zero_and_end_at_the_limit() -> None:
    html = code_bars_html([1.0, -0.5, 9.0], [1.0, -0.5, 9.0], 2.0, "three numbers")
    assert re.findall(r"--top:([\d.]+)%;--height:([\d.]+)%", html) == [
        ("25.00", "25.00"), ("50.00", "12.50"), ("0.00", "50.00"),
    ]  # fmt: skip
    assert re.findall(r'data-tip="([^"]*)"', html) == ["z1 = 1", "z2 = -0.5", "z3 = 9"]
    assert "mark" not in html and "three numbers" in html


def test_a_changed_number_is_marked_where_it_was() -> None:
    html = code_bars_html([1.0, -0.5], [1.0, 1.0], 2.0, "")
    assert re.findall(r"--at:([\d.]+)%", html) == ["25.00"]
    assert 'data-tip="z2 = -0.5, was 1"' in html


def test_what_is_the_same_is_underlined() -> None:
    html = compared_text_html("Again", [Run("the <sea>", True), Run(" was", False)], ["1 of 2"])
    assert "<u>the &lt;sea&gt;</u> was" in html and "<p>1 of 2</p>" in html
