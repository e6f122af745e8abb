"""The page at `/`, driven in headless Chromium as a person would."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_fakes import Counting, Running, Translator, Writer, eventually, running

from chinchilla.serving.answerer import Piece

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & 'quotes'"


class Parrot(Writer):
    """A model that writes markup."""

    def decoding(self) -> Counting:
        batch = Counting(self)
        batch.piece = lambda prompt, count: Piece(HOSTILE, "length" if count == prompt.max_tokens else None)
        return batch


class Page:
    """One browser window, by the ids of the page's elements."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def open(self, server: Running) -> None:
        self.browser.get(server.url)
        eventually(lambda: self.text("state") not in ("", "connecting…"))

    def element(self, name: str):
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        """The text as it is in the document, unrendered."""
        return self.element(name).get_attribute("textContent")

    def write(self, name: str, text: str) -> None:
        self.element(name).clear()
        self.element(name).send_keys(text)

    def press(self, label: str) -> None:
        self.browser.find_element(
            By.XPATH, f"//button[normalize-space()='{label}' and not(ancestor::*[@hidden])]"
        ).click()

    def complaints(self) -> list[str]:
        """What the browser's console holds against the page: scripts that failed, content that was blocked."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(DRIVER))
    chrome.set_script_timeout(20)
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: Chrome) -> Iterator[Page]:
    browser.get_log("browser")
    page = Page(browser)
    yield page
    assert page.complaints() == []


@pytest.fixture(scope="module")
def translating() -> Iterator[Running]:
    with running(Translator()) as server:
        yield server


@pytest.fixture(scope="module")
def writing() -> Iterator[Running]:
    with running(Writer(step_s=0.01, max_len=100_000), new_tokens=50_000) as server:
        yield server


def test_a_sentence_is_translated(page: Page, translating: Running):
    page.open(translating)
    assert page.text("name") == "fake-translate" and page.text("state") == "ready to translate"
    assert page.element("translate").is_displayed() and not page.element("complete").is_displayed()
    facts = page.element("facts").text
    assert all(fact in facts for fact in ("4.72 M", "18.9 MB", "int8", "256 tokens", "23.1", "BLEU"))
    page.write("source", "guten tag")
    page.press("Translate")
    eventually(lambda: page.text("target") == "GUTEN TAG")
    eventually(lambda: "3 → 3 tokens" in page.text("translate-note"))


def test_lines_are_translated_one_by_one_with_the_chosen_beam(page: Page, translating: Running):
    page.open(translating)
    page.write("source", "eins\n\nzwei")
    Select(page.element("beam")).select_by_value("2")
    page.element("source").send_keys(Keys.CONTROL, Keys.ENTER)
    eventually(lambda: page.text("target") == "EINS\n\nZWEI")
    translator = translating.engine.answerer
    assert sorted(translator.batches[-1]) == ["eins", "zwei"] and translator.beams[-1] == 2


def test_hostile_text_is_shown_as_text(page: Page, translating: Running, writing: Running):
    page.open(translating)
    page.write("source", HOSTILE)
    page.press("Translate")
    eventually(lambda: page.text("target") == HOSTILE.upper())
    page.open(writing)
    page.write("prompt", HOSTILE)
    page.write("max-tokens", "2")
    page.press("Continue")
    eventually(lambda: page.text("continuation") == f"{HOSTILE} 1 2")
    assert "owned" not in page.browser.title
    assert page.browser.find_elements(By.CSS_SELECTOR, "main img, main script") == []


def test_hostile_answers_are_shown_as_text(page: Page):
    with running(Parrot()) as server:
        page.open(server)
        page.write("prompt", "say it: ")
        page.write("max-tokens", "2")
        page.press("Continue")
        eventually(lambda: page.text("continuation") == f"say it: {HOSTILE}{HOSTILE}")
        assert "owned" not in page.browser.title
        assert page.browser.find_elements(By.CSS_SELECTOR, "main img, main script") == []


def test_a_hostile_model_name_is_shown_as_text(page: Page):
    with running(Translator(name=HOSTILE)) as server:
        page.open(server)
        assert page.text("name") == HOSTILE and "owned" not in page.browser.title.split("·")[1]
        assert page.browser.find_elements(By.CSS_SELECTOR, "header script") == []


def test_the_refusal_of_the_server_is_shown(page: Page, translating: Running):
    page.open(translating)
    page.browser.execute_script("arguments[0].value = 'wort '.repeat(300)", page.element("source"))
    page.press("Translate")
    eventually(lambda: "301 tokens exceed" in page.text("alert"))
    assert page.element("alert").is_displayed()
    assert any("422" in complaint for complaint in page.complaints())
    page.write("source", "wort")
    page.press("Translate")
    eventually(lambda: page.text("target") == "WORT")
    assert not page.element("alert").is_displayed()


def test_a_completion_streams_in_and_can_be_stopped(page: Page, writing: Running):
    page.open(writing)
    assert page.element("complete").is_displayed() and not page.element("translate").is_displayed()
    page.write("prompt", "count")
    page.write("max-tokens", "40000")
    page.press("Continue")
    eventually(lambda: page.text("continuation").startswith("count 1 2 3"))
    early = len(page.text("continuation"))
    eventually(lambda: len(page.text("continuation")) > early)
    page.press("Stop")
    eventually(lambda: page.text("complete-note") == "stopped")
    eventually(lambda: writing.metric("chinchilla_cancelled_total") >= 1)
    assert page.element("complete").find_element(By.CSS_SELECTOR, ".primary").is_enabled()
    steps = writing.engine.answerer.steps
    eventually(
        lambda: writing.post("/v1/completions", {"prompt": "x", "max_tokens": 3}).is_success and steps[-1] == ["x"]
    )


def test_the_settings_reach_the_server(page: Page, writing: Running):
    page.open(writing)
    page.write("prompt", "count")
    page.write("max-tokens", "9")
    page.write("stop", "4")
    page.write("seed", "5")
    page.press("Continue")
    eventually(lambda: page.text("continuation") == "count 1 2 3")
    eventually(lambda: page.text("complete-note").startswith("4 tokens in"))
    page.browser.find_element(By.CSS_SELECTOR, "#command summary").click()
    command = page.text("curl")
    assert f"{writing.url}/v1/completions" in command
    for part in ('"max_tokens":9', '"seed":5', '"stop":"4"', '"temperature":0.8', '"stream":true'):
        assert part in command


def test_the_command_is_safe_to_paste(page: Page, translating: Running, tmp_path: Path):
    page.open(translating)
    page.write("source", 'it\'s $(touch owned) `touch owned` "x"')
    command = page.text("curl")
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\nfor last; do :; done\nprintf %s "$last"\n')
    curl.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.stdout == '{"text":["it\'s $(touch owned) `touch owned` \\"x\\""],"beam_size":4}'
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_is_cut_off_at_any_width(page: Page, translating: Running, writing: Running, width: int):
    page.browser.set_window_size(width, 800)
    for server in (translating, writing):
        page.open(server)
        wide, seen = page.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= seen


def test_every_control_has_a_name(page: Page, translating: Running, writing: Running):
    for server in (translating, writing):
        page.open(server)
        nameless = [
            element.get_attribute("outerHTML")
            for element in page.browser.find_elements(By.CSS_SELECTOR, "input, select, textarea, button, [role=region]")
            if element.is_displayed() and not element.accessible_name
        ]
        assert nameless == []
