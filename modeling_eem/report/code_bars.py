"""The numbers of a code as bars, and a text beside another, as parts of an HTML page."""

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
    """A bar for each number of a code, from zero in the middle; its value shows where the reader points.

    The page brings `code_bars_css()` and the properties that `heat_panels_html` names.

    Args:
        marks: what each number was before it was changed, drawn as a line across its bar where that is another.
        limit: the largest value that the axis shows, above 0; a bar beyond it ends there.
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
    """A part of a text that is all the same as another's, or all different."""

    text: str
    is_same: bool


def compared_text_html(title: str, runs: Sequence[Run], notes: Sequence[str]) -> str:
    """A text whose parts that are another's are underlined; the page brings `compared_text_css()`."""
    return render("compared_text.html.jinja", title=title, runs=runs, notes=notes)


def compared_text_css() -> str:
    """The style sheet of `compared_text_html`."""
    return render("compared_text.css.jinja")


def _at(number: float, limit: float) -> float:
    return 50 - 50 * min(max(number / limit, -1.0), 1.0)
