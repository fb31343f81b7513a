"""What the curves' plots show, beyond being PNGs."""

import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_eem.report.curve_plots import entropy_floor_plot, loss_curves


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, drawn."""
    figures: list[Figure] = []

    def keep(path: str | Path, figure: Figure) -> Path:
        figure.draw_without_rendering()
        figures.append(figure)
        return Path(path)

    monkeypatch.setattr("modeling_eem.report.curve_plots.save_png", keep)
    return figures


def test_less_than_a_decade_of_tokens_is_labelled_alike_on_both_axes(tmp_path: Path, drawn: list[Figure]) -> None:
    points = [(2e5, 3.0), (4e5, 2.5), (8e5, 2.2)]
    fits = {"linear": {"run": points}, "log-linear": {"run": points}}
    loss_curves(tmp_path / "a.png", {"run": points}, fits, {}, "nats")
    linear, logarithmic = drawn[0].axes
    labels = [label.get_text() for label in logarithmic.get_xticklabels(which="minor")]
    assert "200k" in labels and "400k" in labels and not any("times" in label for label in labels)
    assert any(label.get_text() == "400k" for label in linear.get_xticklabels())


def _floor(path: Path, drawn: list[Figure], interval: tuple[float, float]) -> Axes:
    points = {"small": (1.0, 2.0), "middle": (2.0, 1.0), "large": (4.0, 0.0)}
    entropy_floor_plot(path, points, ["small", "middle"], (3.0, -1.0), 3.0, interval, ("true entropy", 2.5))
    return drawn[-1].axes[0]


def test_runs_outside_the_fit_are_hollow(tmp_path: Path, drawn: list[Figure]) -> None:
    axes = _floor(tmp_path / "a.png", drawn, (2.5, 3.5))
    faces = [line.get_markerfacecolor() for line in axes.lines[:3]]
    assert faces[0] == faces[1] != "white" and faces[2] == "white"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["fitted line", "ideal, true entropy 2.500", "its 95 %", "crossing 3.000"]


def test_an_infinite_interval_is_not_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    axes = _floor(tmp_path / "a.png", drawn, (-math.inf, math.inf))
    assert "its 95 %" not in [text.get_text() for text in axes.get_legend().get_texts()]
