"""Estimates and codes as HTML."""

import re

import pytest

from modeling_eem.view import rendering
from modeling_eem.view.codes import encode_text, read_code
from modeling_eem.view.estimates import estimate_text
from modeling_eem.view.models import ViewedModel

TEXT = "A <b>ship</b> & ${value} {{value}}\ncame home."


def test_text_is_escaped_everywhere(viewed: dict[str, ViewedModel]) -> None:
    estimates = [estimate_text(viewed["causal"], "causal", TEXT)]
    reading = read_code(viewed["eem"], (encoded := encode_text(viewed["eem"], TEXT)), encoded.code)
    for html in (
        rendering.panels_html(estimates, "words", True),
        rendering.download_html(estimates, "words", True),
        rendering.table_html(estimates, "words", True, rendering.IN_ORDER),
        rendering.reading_panels_html(reading),
        rendering.message_html(TEXT),
    ):
        assert "<b>" not in html and "&lt;" in html


def test_the_table_is_sorted_by_surprise_and_says_what_it_leaves_out(
    viewed: dict[str, ViewedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates = [estimate_text(viewed["causal"], "causal", TEXT), estimate_text(viewed["eem"], "exact", TEXT)]
    for number, estimate in enumerate(estimates):
        html = rendering.table_html(estimates, "tokens", False, estimate.name)
        rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in html.split("<tr>")[2:]]
        values = [float(row[2 + number]) for row in rows]
        assert values == sorted(values, reverse=True) and len(values) > 10
    in_order = rendering.table_html(estimates, "tokens", False, rendering.IN_ORDER)
    places = [int(row[1]) for row in (re.findall(r">([^<]*)</td>", part) for part in in_order.split("<tr>")[2:])]
    assert places == sorted(places) and "The first" not in in_order
    monkeypatch.setattr(rendering, "TABLE_ROWS", 5)
    cut = rendering.table_html(estimates, "tokens", False, rendering.IN_ORDER)
    assert cut.count("<tr>") == 6 and f"The first 5 of {len(places)}" in cut


def test_bars_mark_only_numbers_that_were_changed(viewed: dict[str, ViewedModel]) -> None:
    eem = viewed["eem"]
    encoded = encode_text(eem, TEXT)
    own = rendering.bars_html(read_code(eem, encoded, encoded.code), encoded.code)
    assert own.count('class="column"') == 6 and 'class="mark"' not in own
    changed = rendering.bars_html(read_code(eem, encoded, [encoded.code[0] + 1, *encoded.code[1:]]), encoded.code)
    assert changed.count('class="mark"') == 1 and "1 changed" in changed


def test_nothing_is_drawn_of_nothing() -> None:
    assert rendering.panels_html([], "tokens", True) == rendering.message_html() == ""
    assert rendering.table_html([], "tokens", True, rendering.IN_ORDER) == ""
