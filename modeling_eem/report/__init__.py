"""Turns plain values into tables, plots, heat maps and model cards. It computes nothing and needs no PyTorch."""

from typing import TYPE_CHECKING, Any

from modeling_eem.files import write_atomically
from modeling_eem.report.cards import add_to_card, check_card, model_card
from modeling_eem.report.heatmap import (
    HeatPanel,
    entropy_heatmap_html,
    heat_panels_css,
    heat_panels_html,
    heat_panels_page,
)
from modeling_eem.report.numbers import duration, quantity, readable
from modeling_eem.report.provenance import provenance
from modeling_eem.report.results import plain_name, write_results
from modeling_eem.report.tables import Cell, Table

if TYPE_CHECKING:
    from modeling_eem.report.plots import LearningCurve, learning_curves

__all__ = [
    "Cell",
    "HeatPanel",
    "LearningCurve",
    "Table",
    "add_to_card",
    "check_card",
    "duration",
    "entropy_heatmap_html",
    "heat_panels_css",
    "heat_panels_html",
    "heat_panels_page",
    "learning_curves",
    "model_card",
    "plain_name",
    "provenance",
    "quantity",
    "readable",
    "write_atomically",
    "write_results",
]


def __getattr__(name: str) -> Any:
    """Imports plots on first use: matplotlib takes a second to import, and most commands only print a table."""
    if name not in ("LearningCurve", "learning_curves"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from modeling_eem.report import plots

    return getattr(plots, name)
