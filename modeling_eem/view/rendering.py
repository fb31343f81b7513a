"""Estimates and codes as HTML, for the page and for downloads."""

import html
from collections.abc import Sequence

from modeling_eem.report import heat_panels_html, heat_panels_page
from modeling_eem.report.code_bars import code_bars_html, compared_text_html
from modeling_eem.report.value_table import value_table_html
from modeling_eem.view.codes import CodeReading, reach
from modeling_eem.view.estimates import PIECES, Estimate, Pieces, comparison, heat_panels, scales_of

TABLE_ROWS = 300
_SEEN = 0.01  # share of the axis; a smaller change of a number is not marked
_LONGEST = 40  # the most characters of a piece in the table
IN_ORDER = "place in the text"


def panels_html(estimates: Sequence[Estimate], pieces: Pieces, bits: bool) -> str:
    """All estimates side by side."""
    return heat_panels_html(heat_panels(estimates, pieces, bits), PIECES[pieces]) if estimates else ""


def download_html(estimates: Sequence[Estimate], pieces: Pieces, bits: bool) -> str:
    """The same as a self-contained page."""
    title = f"Surprise of {pieces}"
    return heat_panels_page(heat_panels(estimates, pieces, bits), title=title, of=PIECES[pieces])


def table_html(estimates: Sequence[Estimate], pieces: Pieces, bits: bool, sort_by: str) -> str:
    """The pieces as a table of at most `TABLE_ROWS` lines.

    Args:
        sort_by: `IN_ORDER`, or an estimate's name: the most surprising pieces first.
    """
    if not estimates:
        return ""
    table = comparison(estimates, pieces, bits)
    columns = list(table.columns[3:])
    names = [estimate.name for estimate in estimates]
    if sort_by in names:
        table = table.sort_values(columns[names.index(sort_by)], ascending=False, kind="stable")
    shown = table.head(TABLE_ROWS)
    notes = []
    if len(table) > len(shown):
        notes = [f"The first {len(shown):,} of {len(table):,}; the TSV has all."]
    return value_table_html(
        [PIECES[pieces], "at byte", *columns],
        [_visible(piece) for piece in shown.iloc[:, 0]],
        shown[["start_byte", *columns]].astype(float).values.tolist(),
        [None, *scales_of(estimates, pieces, bits)],
        notes,
    )


def message_html(*lines: str) -> str:
    """A message on what the reader should know or change; empty without lines."""
    if not lines:
        return ""
    return f'<div class="view-message" role="alert">{"".join(f"<p>{html.escape(line)}</p>" for line in lines)}</div>'


def working_html(line: str) -> str:
    """A line on the work in progress."""
    return f'<div class="view-working" role="status"><p>{html.escape(line)}</p></div>'


def bars_html(reading: CodeReading, own: Sequence[float]) -> str:
    """A code as bars, with marks where its numbers differ from the text's own."""
    limit = max(reach(own), reach(reading.code) / 1.5)
    # A changed number may change the common scale, and with it how all numbers are rounded.
    marks = [after if abs(after - before) < _SEEN * limit else before for after, before in zip(reading.code, own)]
    changed = sum(mark != after for mark, after in zip(marks, reading.code))
    caption = f"{len(own)} numbers of the code, as they are stored."
    if changed:
        caption += f" {changed} changed; a line marks the text's own."
    return code_bars_html(reading.code, marks, limit, caption)


def reading_panels_html(reading: CodeReading, bits: bool = True) -> str:
    """Cross-entropy with and without the code, and what it saves, side by side."""
    return heat_panels_html(heat_panels(reading.estimates, "tokens", bits))


def written_html(reading: CodeReading, tokens_left: int) -> str:
    """The text that the decoder writes from the code alone."""
    share = f"{reading.num_same} of {reading.num_tokens} tokens are the text's at their place (underlined)."
    notes = [share, *reading.notes]
    if tokens_left:
        notes.append(f"{tokens_left:,} tokens behind the model's context are left out.")
    return compared_text_html("Regenerated from the code alone", reading.runs, notes)


def _visible(piece: str) -> str:
    """A piece with visible blanks and line breaks; only the beginning of a long piece."""
    piece = piece if len(piece) <= _LONGEST else f"{piece[:_LONGEST]}…"
    return piece.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"
