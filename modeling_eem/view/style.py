"""The page's style sheet: the report's, in the colours of Gradio's light or dark theme."""

from modeling_eem.report import heat_panels_css
from modeling_eem.report.code_bars import code_bars_css, compared_text_css
from modeling_eem.report.value_table import value_table_css

_COLOURS = """
:root, .dark {
  --page: var(--background-fill-primary); --ink: var(--body-text-color);
  --line: var(--border-color-primary);
}
:root { --quiet: #63666e; --middle: #ffbb6b; --strong: #f2552c; }
.dark { --quiet: #a2a5ae; --middle: #7a4312; --strong: #c23a10; }
"""
_LAYOUT = """
.gradio-container { max-width: 92rem !important; }
.view-title h1 { margin: .5rem 0 0; font: 600 1.35rem/1.4 system-ui, sans-serif; color: var(--ink); }
.view-title p { margin: .1rem 0 .4rem; color: var(--quiet); font: .9rem/1.5 system-ui, sans-serif; }
.view-message, .view-working { padding: .55rem .85rem; border-radius: 6px; border-left: 4px solid var(--line);
  color: var(--ink); font: .9rem/1.5 system-ui, sans-serif; }
.view-message { border-color: var(--strong); background: color-mix(in oklab, var(--strong) 9%, transparent); }
.view-message p, .view-working p { margin: 0; }
.view-results { padding: .4rem .25rem; }
.view-sliders > .form { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
  gap: .5rem; border: 0; background: transparent; }
"""


def style_tag() -> str:
    """A `<style>` element for the page's head."""
    sheets = (_COLOURS, heat_panels_css(), value_table_css(), code_bars_css(), compared_text_css(), _LAYOUT)
    return f"<style>{''.join(sheets)}</style>"
