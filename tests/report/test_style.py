"""What all plots share: page width, short ticks, nothing clipped, no comb of a histogram."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from modeling_eem.report import LearningCurve, learning_curves
from modeling_eem.report.curve_plots import entropy_floor_plot, loss_curves
from modeling_eem.report.entropy_plots import Band, index_plot, scatter_plot
from modeling_eem.report.plots import WIDTH, short
from modeling_eem.report.quantization_plots import code_histograms, format_costs, layer_sweep

POINTS = [(2e5, 3.0), (4e5, 2.5), (8e5, 2.2)]
FITS = {"linear": {"a run": POINTS}, "log-linear": {"a run": POINTS}}
BAND = Band([1, 2, 3], [0.3, 0.3, 0.3], [0.2, 0.2, -0.4], [0.4, 0.4, 0.95])
PLOTS = {
    "learning": lambda path: learning_curves(path, [LearningCurve("a", POINTS)], unit="nats"),
    "curves": lambda path: loss_curves(path, {"a run": POINTS}, FITS, {"b less a": POINTS}, "nats"),
    "floor": lambda path: entropy_floor_plot(
        path, {"a": (1.0, 2.0), "b": (2.0, 1.0)}, ["a", "b"], (3.0, -1.0), 3.0, (2.5, 3.5), ("least", 2.5)
    ),
    "scatter": lambda path: scatter_plot(path, [1, 2], [1, 2], labels=("x", "y"), line=(1, 0)),
    "index": lambda path: index_plot(path, {"exact": BAND}),
    "formats": lambda path: format_costs(path, {"a": {"int8": 0.1, "int4": 1.0}}, "Costs"),
    "layers": lambda path: layer_sweep(
        path, {"a": {("weights", f"float{i}"): {f"layer {i}": 0.1 for i in range(30)} for i in range(4)}}, "Layers"
    ),
    "histograms": lambda path: code_histograms(path, [0.0, 1.0, 2.0], [[1, 2], [3, 4]], "Codes"),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []

    def keep(path: str | Path, figure: Figure) -> Path:
        figure.draw_without_rendering()
        figures.append(figure)
        return Path(path)

    for module in ("plots", "curve_plots", "entropy_plots", "quantization_plots"):
        monkeypatch.setattr(f"modeling_eem.report.{module}.save_png", keep)
    return figures


@pytest.mark.parametrize("name", PLOTS)
def test_figures_are_as_wide_as_a_page_with_letters_that_can_be_read(
    name: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    PLOTS[name](tmp_path / "a.png")
    (figure,) = drawn
    assert figure.get_figwidth() == WIDTH and figure.get_figheight() <= 1.8 * WIDTH
    assert figure.get_facecolor() == (1, 1, 1, 1), "dark letters need a ground of their own"
    for axes in figure.axes:
        texts = [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()]
        assert min(text.get_fontsize() for text in texts if text.get_text()) >= 9
        assert not axes.title.get_text().startswith(("dashed", "run"))


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_an_opaque_png(name: str, tmp_path: Path) -> None:
    PLOTS[name](tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 160 * WIDTH
        assert image.convert("RGBA").getpixel((1, 1)) == (255, 255, 255, 255)


@pytest.mark.parametrize("scale", [2.87714e-4, 1.0, 3.1e7])
@pytest.mark.parametrize("spread", [1e-6, 0.1, 1.0])
def test_ticks_are_short_and_all_different(scale: float, spread: float, tmp_path: Path, drawn: list[Figure]) -> None:
    curve = LearningCurve("a", [(1e5 * i, scale * (1 + spread * i / 10)) for i in range(1, 10)])
    learning_curves(tmp_path / "a.png", [curve], unit="squared error, nats²")
    axes = drawn[0].axes[0]
    low, high = axes.get_ylim()
    ticks = [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert len(set(ticks)) == len(ticks) >= 3 and max(map(len, ticks)) <= 6
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert ("×10" in axes.get_ylabel()) == (scale != 1.0)
    assert all(low <= value <= high for _, value in curve.held_out)


@pytest.mark.parametrize(
    "value, text",
    [(3.14159, "3.14"), (0, "0"), (0.0123, "0.0123"), (2.8031e-4, "2.80×10⁻⁴"), (123.4, "123"), (-2e7, "-2.00×10⁷")],
)
def test_numbers_are_written_in_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_bands_are_not_clipped_but_at_one(tmp_path: Path, drawn: list[Figure]) -> None:
    index_plot(tmp_path / "a.png", {"exact": BAND})
    assert drawn[0].axes[0].get_ylim()[1] >= 0.95


def test_few_numbers_make_few_buckets(tmp_path: Path, drawn: list[Figure]) -> None:
    """Sixteen numbers in 128 buckets are a comb; all of them are drawn."""
    edges = [i / 128 for i in range(129)]
    windows = [[1 if i % 8 == number else 0 for i in range(128)] for number in range(2)]
    code_histograms(tmp_path / "a.png", edges, windows, "Codes")
    assert len(drawn[0].axes) == 3
    for axes, total in zip(drawn[0].axes, (32, 16, 16)):
        values, drawn_edges, _ = axes.patches[0].get_data()
        assert sum(values) == total and len(values) <= 13 and (drawn_edges[0], drawn_edges[-1]) == (0, 1)
    code_histograms(tmp_path / "a.png", edges, windows[:1], "Codes")
    assert len(drawn[1].axes) == 1, "one window is all windows"
