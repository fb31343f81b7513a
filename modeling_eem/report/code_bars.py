"""Parts of an HTML page: the numbers of a code as bars, and a text compared with another."""

from collections.abc import Sequence
from dataclasses import dataclass

from modeling_eem.report.rendering import render


@dataclass(frozen=True)
class _Bar:
    """Places in percent of the height, from the top."""

    tip: str
    top: float
    height: float
    mark: float | None


def code_bars_html(numbers: Sequence[float], marks: Sequence[float], limit: float, caption: str) -> str:
    """A bar for each number of a code, from zero in the middle; pointing at a bar shows its value.

    The page must include `code_bars_css()` and the properties that `heat_panels_html` names.

    Args:
        marks: each number before it was changed, drawn as a line across its bar if it differs.
        limit: the largest value that the axis shows, above 0; a larger bar ends there.
        caption: a line below the bars.
    """
    bars = []
    for index, number in enumerate(numbers):
        mark = None if marks[index] == number else marks[index]
        height = 50 * min(abs(number) / limit, 1.0)
        tip = f"z{index + 1} = {number:.4g}" + ("" if mark is None else f", was {mark:.4g}")
        bars.append(_Bar(tip, 50 - height if number > 0 else 50.0, height, None if mark is None else _at(mark, limit)))
    ticks = [f"{limit:.3g}", "0", f"−{limit:.3g}"]
    return render("code_bars.html.jinja", bars=bars, ticks=ticks, caption=caption)


def code_bars_css() -> str:
    """The style sheet of `code_bars_html`."""
    return render("code_bars.css.jinja")


@dataclass(frozen=True)
class Run:
    """A part of a text that is all the same as in another text, or all different."""

    text: str
    is_same: bool


def compared_text_html(title: str, runs: Sequence[Run], notes: Sequence[str]) -> str:
    """A text with the parts underlined that another text shares; the page must include `compared_text_css()`."""
    return render("compared_text.html.jinja", title=title, runs=runs, notes=notes)


def compared_text_css() -> str:
    """The style sheet of `compared_text_html`."""
    return render("compared_text.css.jinja")


def _at(number: float, limit: float) -> float:
    return 50 - 50 * min(max(number / limit, -1.0), 1.0)
