import math
import re
from html.parser import HTMLParser

import pytest

from modeling_eem.report import (
    HeatPanel,
    entropy_heatmap_html,
    heat_panels_css,
    heat_panels_html,
    heat_panels_page,
)


class _Page(HTMLParser):
    """What a reader gets: the text to copy, and per token its level, tooltip and signs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.levels, self.tips, self.signs, self._main = "", [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._main = self._main or tag == "main"
        if self._main and tag == "span":
            self.levels.append(float(values["style"].removeprefix("--v:")) if "style" in values else None)
            self.signs.append([])
        if tag == "b":
            self.tips.append(values["data-tip"])
        if tag == "i":
            self.signs[-1].append(values["data-sign"])

    def handle_endtag(self, tag: str) -> None:
        self._main = self._main and tag != "main"

    def handle_data(self, data: str) -> None:
        self.text += data if self._main else ""


def _page(tokens: list[str | bytes], values: list[float] | None = None, **options: object) -> _Page:
    values = [1.0] * len(tokens) if values is None else values
    return _Page(entropy_heatmap_html(tokens, values, unit="bits", title="Title", **options))


def test_text_is_kept_and_values_become_levels() -> None:
    page = _page(["Call", " me", "  Ishmael", ".\n", "\n", "   "], [math.nan, 0, 1, 4, 3, 2])
    assert page.text == "Call me  Ishmael.\n\n   "
    assert page.levels == [None, 0, 0.25, 1, 0.75, 0.5]
    assert page.tips == ["not scored", "0 bits", "1 bits", "4 bits", "3 bits", "2 bits"]
    assert page.signs == [[], [], [], ["⏎"], ["⏎"], []]


def test_text_is_escaped() -> None:
    page = entropy_heatmap_html(['<script>"&amp;'], [1.0], unit="<u>", title="<t>", subtitle="<s>")
    assert _Page(page).text == '<script>"&amp;'
    assert not re.search("<script|<u>|<t>|<s>", page)


def test_a_character_spread_over_tokens_is_shown_once_by_the_last() -> None:
    emoji = "😀".encode()
    page = _page([b"a" + emoji[:1], emoji[1:3], emoji[3:] + b"b", "é"])
    assert page.text == "a😀bé"
    assert page.signs == [["F0"], ["9F 98"], [], []]


def test_bytes_that_are_no_text_are_written_out() -> None:
    assert _page([b"a\xff", b"b", b"\xc3"]).text == "a\\xffb"
    assert _page(["\ud800"]).text == "\\ud800"


def test_invisible_characters_are_signed_and_harmful_ones_left_out() -> None:
    page = _page(["\t", "\r\n", "\x00\x7f\x85", "", "x\n\ty\n"])
    assert page.signs == [["⇥"], ["^M", "⏎"], ["^@", "^?", "U+0085"], ["∅"], ["⏎", "⇥", "⏎"]]
    assert page.text == "\t\nx\n\ty\n"


def test_scale_can_be_shared_between_maps_and_starts_at_zero_by_default() -> None:
    assert _page(["a", "b", "c"], [-1.0, 5.0, 20.0], scale=(0, 10)).levels == [0, 0.5, 1]
    assert _page(["a", "b"], [-1.0, 1.0]).levels == [0, 1]
    assert _page(["a", "b"], [2.0, 4.0]).levels == [0.5, 1]
    assert _page(["a", "b"], [0.0, math.nan]).levels == [0, None]
    assert _page([]).levels == []


def test_the_page_loads_nothing_and_follows_the_readers_setting() -> None:
    page = entropy_heatmap_html(["a"], [math.nan], unit="nats", title="Title", subtitle="of a text")
    assert not re.search(r"https?:|src=|url\(|@import|<script|<link", page)
    assert "prefers-color-scheme: dark" in page
    assert "<h1>Title</h1>" in page and "of a text" in page and "nats a token" in page
    assert "</span> not scored" in page
    assert "</span> not scored" not in entropy_heatmap_html(["a"], [1.0], unit="nats", title="Title")


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens"):
        _page(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="finite"):
        _page(["a"], [math.inf])
    with pytest.raises(ValueError, match="rise"):
        _page(["a"], [1.0], scale=(2, 2))


def test_panels_show_their_texts_side_by_side() -> None:
    panels = [
        HeatPanel("first", ["a", "<b>"], [1.0, 2.0], "bits", notes=["in all 3"], scale=(0, 4)),
        HeatPanel("second", [b"a", b"<b>"], [1.0, math.nan], "nats"),
    ]
    part = heat_panels_html(panels, "word")
    assert re.findall(r"<h3>(.*)</h3>", part) == ["first", "second"]
    assert re.findall(r"--v:([\d.]+)", part) == ["0.250", "0.500", "1.000"]
    assert "bits a word" in part and "nats a word" in part and "<p>in all 3</p>" in part
    assert part.count("&lt;b&gt;") == 2 and "<style" not in part
    page = heat_panels_page(panels, title="Two", of="word")
    assert part in page and heat_panels_css()[-200:].strip() in page and "<h1>Two</h1>" in page
    assert not re.search(r"https?:|src=|url\(|@import|<script|<link", page)
