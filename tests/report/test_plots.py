import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from modeling_eem.report import LearningCurve, learning_curves

CURVE = LearningCurve("EEM", held_out=[(1e5, 3.0), (2e5, math.nan), (3e5, 2.1)], train=[(1e4, 9.0), (3e5, 2.0)])


def test_draws_a_png_with_every_part(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "curves.png"
    curves = [CURVE, LearningCurve("causal", held_out=[(1e5, 2.9)])]
    references = {"xz": 2.92, "bzip2": 2.9}
    assert learning_curves(path, curves, unit="bits per byte", title="Curves", references=references) == path
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.size == (1280, 768)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x6B, 0x6B, 0x6B)} <= colours, "two runs and a reference"


def test_one_flat_curve_is_enough(tmp_path: Path) -> None:
    assert learning_curves(tmp_path / "a.png", [LearningCurve("flat", [(1, 2.0)])], unit="nats").stat().st_size > 0


def test_the_line_of_training_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("modeling_eem.report.plots.save_png", lambda path, figure: drawn.append(figure))
    learning_curves(tmp_path / "a.png", [CURVE], unit="held-out bits per byte", title="Learning curve of EEM")
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["EEM", "training"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not 0"):
        learning_curves(tmp_path / "a.png", [], unit="nats")
    with pytest.raises(ValueError, match="not 8"):
        learning_curves(tmp_path / "a.png", [CURVE] * 8, unit="nats")
    with pytest.raises(ValueError, match="'empty'"):
        learning_curves(tmp_path / "a.png", [LearningCurve("empty", [(1, math.nan)])], unit="nats")
    assert list(tmp_path.iterdir()) == []
