"""The page as a browser shows it: what it asks for, what a reader clicks, what is downloaded."""

import json
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from modeling_eem.view.models import ViewedModel

pytest.importorskip("gradio", reason="the extra view is not installed")
from modeling_eem.view.page import build_page, launch  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
TEXT = "The sea was calm <i>&amp; ${value} {{value}}\nA ship came home."
MAX_BYTES = 200


@pytest.fixture(scope="module")
def address(viewed: dict[str, ViewedModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = list(viewed.values())
    page = build_page(models, ["exact", "causal", "stored"], MAX_BYTES, tmp_path_factory.mktemp("downloads"))
    _, local, public = launch(page, host="127.0.0.1", port=None)
    assert public is None
    yield local
    page.close(verbose=False)


def test_the_page_is_served_here_and_forbids_the_browser_other_servers(address: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with urllib.request.urlopen(address) as answer:
        policy, html = answer.headers["content-security-policy"], answer.read().decode()
    assert "default-src 'self'" in policy and "connect-src 'self'" in policy and "http" not in policy
    config = json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", html, re.S)[1])  # type: ignore[index]
    assert config["analytics_enabled"] is False and config["run_history"] is False
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"?https?:", html)


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a headless Chromium in which no other machine can be found."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    opened = []

    def browse(width: int, is_dark: bool) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        scheme = 0 if is_dark else 1
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ):  # fmt: skip
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False,
        })  # fmt: skip
        opened.append(browser)
        return browser

    yield browse
    for browser in opened:
        browser.quit()


def _wait(browser: Any, condition: Callable[[Any], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 120, 0.2).until(condition)


def _shown(browser: Any, selector: str) -> Any:
    """The first element of a selector, once it is shown."""
    found = _wait(
        browser, lambda browser: [e for e in browser.find_elements("css selector", selector) if e.is_displayed()]
    )
    return found[0]


def _click(browser: Any, selector: str) -> None:
    """Click what is shown, once the page around it stands still."""
    places = [None]

    def stands_still(browser: Any) -> bool:
        places.append(_shown(browser, selector).rect)
        return places[-1] == places[-2]

    _wait(browser, stands_still)
    _shown(browser, selector).click()


def _type(browser: Any, text: str) -> None:
    box = _shown(browser, "#text textarea")
    browser.execute_script(
        "const set = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set;"
        "set.call(arguments[0], arguments[1]); arguments[0].dispatchEvent(new Event('input', {bubbles: true}));",
        box,
        text,
    )


def _asked(browser: Any) -> set[str]:
    """The addresses of all that was asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


@pytest.mark.slow
@pytest.mark.parametrize("width, is_dark", [(1280, False), (390, True)])
def test_a_reader_sees_estimates_side_by_side_and_takes_them_away(
    width: int, is_dark: bool, address: str, browse: Callable[..., Any], tmp_path: Path
) -> None:
    browser = browse(width, is_dark)
    browser.get(address)
    _type(browser, "a" * (MAX_BYTES + 1))
    _click(browser, "#show")
    assert f"takes {MAX_BYTES} at most" in _shown(browser, "#message [role=alert]").text

    for size, name in ((MAX_BYTES + 1, "large.txt"), (5, "small.txt")):
        (tmp_path / name).write_text("a" * size)
        browser.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / name))
        if size > MAX_BYTES:
            assert "large.txt has 201 bytes" in _shown(browser, "#refusal [role=alert]").text
    _wait(browser, lambda browser: _shown(browser, "#text textarea").get_property("value") == "aaaaa")
    assert browser.find_element("css selector", "#refusal").text == ""

    _type(browser, TEXT)
    _click(browser, "#show")
    panels = _wait(
        browser, lambda browser: (found := browser.find_elements("css selector", "#panels .panel"))[2:] and found
    )
    assert [panel.find_element("css selector", "h3").text for panel in panels] == [
        "eem-16 · exact", "llama-16 · causal", "codec · stored",
    ]  # fmt: skip
    for panel in panels:
        assert panel.find_element("css selector", ".text").get_property("textContent") == TEXT
    places = [panel.rect for panel in panels]
    assert len({place["y"] for place in places}) == (1 if width == 1280 else 3), "side by side, or one below the other"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    token = panels[1].find_element("css selector", ".t b")
    tip = browser.execute_script("return getComputedStyle(arguments[0], '::after').content", token)
    assert tip == "none"
    browser.execute_script("arguments[0].parentElement.focus()", token)
    tip = browser.execute_script("return getComputedStyle(arguments[0], '::after').content", token)
    assert re.fullmatch(r'"[\d.]+ bits"', tip)

    _click(browser, "#unit input[value=nats]")
    _click(browser, "#pieces input[value=words]")
    _wait(browser, lambda browser: "nats a word" in browser.find_element("css selector", "#panels").text)
    for button in ("#tsv", "#html"):
        _click(browser, button)
    _wait(browser, lambda _: {path.name for path in tmp_path.iterdir()} >= {"words.tsv", "words.html"})
    table = pd.read_csv(tmp_path / "words.tsv", sep="\t")
    assert list(table.columns[3:]) == ["eem-16 · exact (nats)", "llama-16 · causal (nats)", "codec · stored (nats)"]
    assert table["end_byte"].iloc[-1] == len(TEXT)
    assert (tmp_path / "words.html").read_text().count('class="panel"') == 3

    _click(browser, "#table-of-pieces button")
    assert "␣sea" in _shown(browser, "#table table").text
    assert {url for url in _asked(browser) if not url.startswith((address, "data:", "blob:"))} == set()


@pytest.mark.slow
def test_a_reader_changes_the_code_and_comes_back(address: str, browse: Callable[..., Any]) -> None:
    browser = browse(1280, False)
    browser.get(address)
    _type(browser, TEXT)
    _wait(
        browser,
        lambda browser: [e for e in browser.find_elements("css selector", "button[role=tab]") if e.text == "Code"],
    )[0].click()
    _click(browser, "#encode")
    assert len(_wait(browser, lambda browser: browser.find_elements("css selector", "#bars .column"))) == 6
    _wait(browser, lambda browser: len(browser.find_elements("css selector", "#code-panels .panel")) == 3)
    own = browser.find_element("css selector", "#bars").get_attribute("innerHTML")
    number = _shown(browser, "#z1 input[type=number]")
    largest = float(number.get_attribute("max"))
    number.clear()
    number.send_keys(str(largest))
    _wait(browser, lambda browser: "1 changed" in browser.find_element("css selector", "#bars").text)
    assert len(browser.find_elements("css selector", "#bars .mark")) == 1
    _click(browser, "#back")
    _wait(browser, lambda browser: browser.find_element("css selector", "#bars").get_attribute("innerHTML") == own)
    assert float(_shown(browser, "#z1 input[type=number]").get_attribute("value")) < largest
