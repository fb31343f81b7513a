"""The entropy heat map: a text with each token coloured by a value, alone or beside other maps, as self-contained
HTML."""

import codecs
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from modeling_eem.report.rendering import render

_CONTROLS = re.compile(r"([\x00-\x1f\x7f-\x9f])")


@dataclass(frozen=True)
class _Piece:
    """`text` as a reader copies it, after a `sign` that shows invisible characters and is not selected."""

    text: str
    sign: str = ""


@dataclass(frozen=True)
class _Token:
    """What the template draws. The tooltip belongs to `body`: a line may end after `lead`, and does end in `tail`."""

    lead: str
    body: list[_Piece]
    tail: list[_Piece]
    tip: str
    level: float | None


@dataclass(frozen=True)
class _Map:
    """A text and its legend, as the templates draw them."""

    tokens: list[_Token]
    unit: str
    ticks: list[str]
    some_unscored: bool


@dataclass(frozen=True)
class HeatPanel:
    """One of several heat maps side by side.

    Attributes:
        title: the model and method.
        notes: lines below the title.
        tokens, values, unit, scale: as in `entropy_heatmap_html`.
    """

    title: str
    tokens: Sequence[str | bytes]
    values: Sequence[float]
    unit: str
    notes: Sequence[str] = ()
    scale: tuple[float, float] | None = None


def entropy_heatmap_html(
    tokens: Sequence[str | bytes],
    values: Sequence[float],
    *,
    unit: str,
    title: str,
    subtitle: str = "",
    scale: tuple[float, float] | None = None,
) -> str:
    """An HTML page that shows `tokens` as running text, each on a background coloured by its value.

    The page follows the reader's light or dark setting, wraps at any width, shows a token's value when you point at it
    or focus it, and loads nothing. Blanks keep their width; line breaks are kept and get a sign. If a character's
    bytes are in several tokens, the last token shows the character and the others show their bytes in hexadecimal.

    Args:
        tokens: the text's tokens in order, `bytes` if one may end inside a UTF-8 character; joined as they are.
        values: one a token; a token that was not scored (BOS, padding) is NaN and shown hatched.
        unit: the unit of the values, such as "bits".
        title: the page's heading.
        subtitle: a line below the title: which model, which text.
        scale: values of the faintest and the strongest colour; a value outside takes the nearer one. By default from
            0, or the lowest value if that is negative, to the highest.

    Raises:
        ValueError: if tokens and values differ in number, a value is infinite, or the scale does not rise.
    """
    return render(
        "heatmap.html.jinja",
        title=title,
        subtitle=subtitle,
        map=_map(HeatPanel(title, tokens, values, unit, (), scale)),
    )


def heat_panels_html(panels: Sequence[HeatPanel], of: str = "token") -> str:
    """Heat maps side by side as a part of an HTML page; on a narrow page one below the other.

    The page must include `heat_panels_css()` and the custom properties `--page`, `--ink`, `--quiet`, `--line`,
    `--middle` and `--strong`: the colours of the background, of letters, lines, and of a middle and a high value.

    Args:
        of: what a value belongs to: "token", "word", "byte".

    Raises:
        ValueError: as in `entropy_heatmap_html`.
    """
    return render("heatmap_panels.html.jinja", panels=_drawn(panels), of=of)


def heat_panels_page(panels: Sequence[HeatPanel], *, title: str, subtitle: str = "", of: str = "token") -> str:
    """The same as a whole page, in the style of `entropy_heatmap_html`."""
    return render("heatmap_panels_page.html.jinja", title=title, subtitle=subtitle, panels=_drawn(panels), of=of)


def heat_panels_css() -> str:
    """The style sheet of `heat_panels_html`."""
    return render("heatmap_tokens.css.jinja") + render("heatmap_panels.css.jinja")


def _drawn(panels: Sequence[HeatPanel]) -> list[dict[str, object]]:
    return [{"title": panel.title, "notes": panel.notes, "map": _map(panel)} for panel in panels]


def _map(panel: HeatPanel) -> _Map:
    tokens, values, unit, scale = panel.tokens, panel.values, panel.unit, panel.scale
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens need as many values, not {len(values)}; NaN stands for not scored.")
    if any(math.isinf(value) for value in values):
        raise ValueError("values must be finite, or NaN where a token was not scored.")
    scored = [value for value in values if not math.isnan(value)]
    low, high = scale or (min([0.0, *scored]), max([0.0, *scored]))
    if scale and not low < high:
        raise ValueError(f"scale must rise from its first to its second value, not go from {low} to {high}.")

    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    shown = []
    for token, value in zip(tokens, values):
        if math.isnan(value):
            tip, level = "not scored", None
        else:
            tip, level = f"{value:.3g} {unit}", min(max((value - low) / (high - low or 1.0), 0.0), 1.0)
        shown.append(_Token(*_layout(token, decoder), tip, level))
    return _Map(
        tokens=shown,
        unit=unit,
        ticks=[f"{low + share * (high - low):.3g}" for share in (0, 0.25, 0.5, 0.75, 1)],
        some_unscored=len(scored) < len(values),
    )


def _layout(token: str | bytes, decoder: codecs.IncrementalDecoder) -> tuple[str, list[_Piece], list[_Piece]]:
    """Split a token into lead, body and tail; `decoder` keeps a character's bytes until the last one comes."""
    data = token if isinstance(token, bytes) else token.encode("utf-8", "backslashreplace")
    text = decoder.decode(data)
    unfinished = decoder.getstate()[0][-len(data) :] if data else b""

    line, line_break, rest = text.partition("\n")
    blank = not line.strip(" ") and not line_break and not unfinished
    lead = "" if blank else line[: len(line) - len(line.lstrip(" "))]
    body = _pieces(line[len(lead) :])
    tail = []
    if line_break:
        body.append(_Piece("", "⏎"))
        tail = [_Piece("\n"), *_pieces(rest)]
    if unfinished:
        (tail or body).append(_Piece("", unfinished.hex(" ").upper()))
    return lead, body or [_Piece("", "∅")], tail


def _pieces(text: str) -> list[_Piece]:
    return [_control(part) if _CONTROLS.match(part) else _Piece(part) for part in _CONTROLS.split(text) if part]


def _control(character: str) -> _Piece:
    """Show a control character in caret notation: HTML refuses or reinterprets all except two."""
    if character in "\n\t":
        return _Piece(character, "⏎" if character == "\n" else "⇥")
    return _Piece("", "^" + chr(ord(character) ^ 0x40) if character <= "\x7f" else f"U+{ord(character):04X}")
