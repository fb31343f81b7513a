"""The heat map as Chromium draws it: light and dark, on a phone and on a desktop, with a value shown."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from modeling_eem.report import entropy_heatmap_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

WORDS = ["Call", " me", " Ishmael", ".", " Some", " years", " ago", "—", "never", " mind", " how", " long"] * 8
VALUES = [math.nan, *(0.1 * (index % 60) for index in range(1, len(WORDS) - 1)), 12.0]
PAGE, STRONG = ((0xFF, 0xFF, 0xFF), (0x16, 0x17, 0x1B)), ((0xF2, 0x55, 0x2C), (0xC2, 0x3A, 0x10))
INK = ((0x1C, 0x1D, 0x21), (0xF1, 0xF1, 0xF3))


def _screenshot(folder: Path, page: str, is_dark: bool, width: int) -> NDArray:
    """The page's pixels, `[height, width, 3]`; nothing on the network can be found."""
    (folder / "page.html").write_text(page)
    scheme = 0 if is_dark else 1
    subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--blink-settings=preferredColorScheme={scheme}",
            f"--user-data-dir={folder / 'profile'}", f"--window-size={width},800",
            f"--screenshot={folder / 'page.png'}", (folder / "page.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )  # fmt: skip
    with Image.open(folder / "page.png") as image:
        return np.asarray(image.convert("RGB"))


def _count(pixels: NDArray, colour: tuple[int, int, int]) -> int:
    return int((pixels == np.array(colour)).all(-1).sum())


def _page() -> str:
    return entropy_heatmap_html(WORDS, VALUES, unit="nats", title="Moby-Dick", subtitle="a chapter's beginning")


@pytest.mark.parametrize(
    ("is_dark", "width"),
    [(True, 390), pytest.param(False, 390, marks=pytest.mark.slow), (False, 1280)]
    + [pytest.param(True, 1280, marks=pytest.mark.slow)],
)
def test_the_page_is_drawn(tmp_path: Path, is_dark: bool, width: int) -> None:
    pixels = _screenshot(tmp_path, _page(), is_dark, width)
    page, strong = PAGE[is_dark], STRONG[is_dark]
    assert pixels.shape[1] == width and _count(pixels, page) > 0.5 * pixels.shape[0] * width
    assert (pixels[:, -8:] == page).all() and (pixels[:, :8] == page).all(), "the text wraps inside the margins"
    assert _count(pixels, INK[is_dark]) > 100, "text"
    # The legend ends in the strongest colour too, but in a column or two; the last token is an area of it.
    drawn = (pixels != page).any(-1).any(-1).nonzero()[0]
    last_line = pixels[drawn[-1] - 20 : drawn[-1] + 1]
    assert _count(last_line, strong) > 100
    lines = len(drawn) / pixels.shape[0]
    assert lines > 0.3 if width == 390 else lines < 0.6
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7].tolist()}
    assert len(colours) > 30, "a colour for each level"


def test_a_value_is_shown_where_the_reader_points(tmp_path: Path) -> None:
    """The focus of a keyboard shows what the pointer does."""
    marked = 'style="--v:1.000">'
    assert _page().count(marked) == 1
    focused = _page().replace(marked, f"autofocus {marked}")
    before, after = (_screenshot(tmp_path, page, False, 900) for page in (_page(), focused))
    tooltip = (before != after).any(-1)
    rows, columns = tooltip.any(1).nonzero()[0], tooltip.any(0).nonzero()[0]
    assert 20 <= rows[-1] - rows[0] <= 80 and 40 <= columns[-1] - columns[0] <= 160, "a box beside the token"
    inside = after[rows[0] : rows[-1], columns[0] : columns[-1]]
    assert _count(inside, INK[0]) > 300 and _count(inside, PAGE[0]) > 20, "its value in light on dark"
