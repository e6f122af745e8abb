"""The report opened from disk in headless Chromium, as a person would."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs.report import report

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = CHROMIUM or ""
    with Chrome(options, ChromeService(DRIVER)) as chrome:
        yield chrome


def show(browser: Chrome, path: Path, width: int, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(path.as_uri())


def colour(browser: Chrome, selector: str, name: str) -> str:
    return str(
        browser.execute_script(
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name
        )
    )


def test_the_page_opens_from_disk_without_a_word(compressed: RunFolder, browser: Chrome) -> None:
    path = report(compressed.path)
    colours = {}
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            show(browser, path, width, scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
            heights = browser.execute_script(
                "return [...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().height)"
            )
            assert len(heights) == 11
            assert min(heights) > 80
        colours[scheme] = (colour(browser, "body", "backgroundColor"), colour(browser, "#loss-legend_1 text", "fill"))
    assert browser.get_log("browser") == []
    assert colours["light"][0] != colours["dark"][0]
    assert colours["light"][1] != colours["dark"][1]


def test_a_script_that_got_in_would_not_run(run: RunFolder, browser: Chrome) -> None:
    path = report(run.path)
    text = path.read_text("utf-8").replace("</main>", "<script>document.title = 'owned'</script></main>")
    path.write_text(text, "utf-8")
    show(browser, path, 1280, "light")
    assert "translate-1" in browser.title
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
