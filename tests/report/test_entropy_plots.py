from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_eem.report.entropy_plots import Band, index_plot, scatter_plot

LABELS = ("exact, nats", "causal, nats")


def _colours(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}


def test_few_tokens_are_points_and_many_are_hexagons(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for count, has_hexagons in ((50, False), (20_000, True)):
        x = generator.gamma(2, 1, count)
        path = scatter_plot(tmp_path / "new" / "a.png", x, 0.5 * x, labels=LABELS, line=(0.5, 0.0), title="A title")
        colours = _colours(path)
        assert (0xD5, 0x5E, 0x00) in colours, "the line"
        assert ((0x44, 0x01, 0x54) in colours) == has_hexagons, "the darkest hexagon"


def test_curves_have_bands(tmp_path: Path) -> None:
    x = list(range(1, 20))
    band = Band(x, [1 / i for i in x], [0.8 / i for i in x], [1.2 / i for i in x])
    colours = _colours(index_plot(tmp_path / "a.png", {"exact": band, "causal": band}))
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not 1 and 2"):
        scatter_plot(tmp_path / "a.png", [1.0], [1.0, 2.0], labels=LABELS, line=(1, 0))
    with pytest.raises(ValueError, match="not 0 and 0"):
        scatter_plot(tmp_path / "a.png", [], [], labels=LABELS, line=(1, 0))
    with pytest.raises(ValueError, match="1 to 7 curves, not 0"):
        index_plot(tmp_path / "a.png", {})
    assert list(tmp_path.iterdir()) == []
