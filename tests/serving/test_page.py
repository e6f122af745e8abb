"""The page at `/`, driven in headless Chromium as a person would."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from serving_fakes import (
    FORMS,
    Chatter,
    Classifier,
    Counting,
    Recommender,
    Running,
    Translator,
    Writer,
    eventually,
    running,
)

from chinchilla.data.codec import Asked
from chinchilla.serving.answerer import Answer, Piece

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


PIXELS = """
const [canvas, y, places] = arguments, { width, height } = canvas;
const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
const start = (x) => 4 * (Math.round(y * height) * width + Math.round(x * width));
return places.map((x) => [...data.slice(start(x), start(x) + 4)]);
"""


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
def chatting() -> Iterator[Running]:
    with running(Chatter(step_s=0.01, max_len=400)) as server:
        yield server


@pytest.fixture(scope="module")
def sorting_texts() -> Iterator[Running]:
    with running(Classifier("text")) as server:
        yield server


@pytest.fixture(scope="module")
def sorting_images() -> Iterator[Running]:
    with running(Classifier("image"), image_body_bytes=100_000) as server:
        yield server


@pytest.fixture(scope="module")
def sorting_rows() -> Iterator[Running]:
    with running(Classifier("table")) as server:
        yield server


@pytest.fixture(scope="module")
def recommending() -> Iterator[Running]:
    with running(Recommender()) as server:
        yield server


@pytest.fixture(scope="module")
def every(
    translating: Running,
    writing: Running,
    chatting: Running,
    sorting_texts: Running,
    sorting_images: Running,
    sorting_rows: Running,
    recommending: Running,
) -> list[Running]:
    return [translating, writing, chatting, sorting_texts, sorting_images, sorting_rows, recommending]


@pytest.fixture(scope="module")
def writing() -> Iterator[Running]:
    with running(Writer(step_s=0.01, max_len=100_000), new_tokens=50_000) as server:
        yield server


def test_a_sentence_is_translated(page: Page, translating: Running):
    page.open(translating)
    assert page.text("name") == "fake-translate" and page.text("state") == "ready to translate"
    assert page.element("rewrite").is_displayed() and not page.element("complete").is_displayed()
    facts = page.element("facts").text
    assert all(fact in facts for fact in ("4.72 M", "18.9 MB", "int8", "256 tokens", "23.1", "BLEU"))
    page.write("source", "guten tag")
    page.press("Translate")
    eventually(lambda: page.text("target") == "GUTEN TAG")
    eventually(lambda: "3 → 3 tokens" in page.text("rewrite-note"))


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
    page.write("complete-max-tokens", "2")
    page.press("Continue")
    eventually(lambda: page.text("continuation") == f"{HOSTILE} 1 2")
    assert "owned" not in page.browser.title
    assert page.browser.find_elements(By.CSS_SELECTOR, "main img, main script") == []


def test_hostile_answers_are_shown_as_text(page: Page):
    with running(Parrot()) as server:
        page.open(server)
        page.write("prompt", "say it: ")
        page.write("complete-max-tokens", "2")
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
    assert page.element("complete").is_displayed() and not page.element("rewrite").is_displayed()
    page.write("prompt", "count")
    page.write("complete-max-tokens", "40000")
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
    page.write("complete-max-tokens", "9")
    page.write("stop", "4")
    page.write("complete-seed", "5")
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


def test_a_summary_is_of_the_whole_text(page: Page):
    with running(Translator("summarise")) as server:
        page.open(server)
        assert page.text("state") == "ready to summarise" and page.text("target-label") == "Summary"
        page.write("source", "one\n\ntwo")
        page.press("Summarise")
        eventually(lambda: page.text("target") == "ONE\n\nTWO")
        assert server.engine.answerer.batches == [["one\n\ntwo"]]


def bars(page: Page) -> list[tuple[str, str, int]]:
    """Name, share and width in per cent of each bar."""
    lines = page.element("bars").find_elements(By.TAG_NAME, "li")
    return [
        (
            line.find_element(By.CLASS_NAME, "name").text,
            line.find_element(By.CLASS_NAME, "chance").text,
            round(100 * line.find_element(By.CLASS_NAME, "fill").rect["width"] / line.rect["width"]),
        )
        for line in lines
    ]


def test_a_text_is_put_in_a_class_with_a_bar_for_each(page: Page, sorting_texts: Running):
    page.open(sorting_texts)
    assert page.text("state") == "ready to classify" and "96.5" not in page.text("facts")
    page.write("subject", "odd" + " word" * 12)
    page.press("Classify")
    eventually(lambda: page.text("verdict") == "b")
    assert bars(page) == [("b", "75.0 %", 75), ("a", "25.0 %", 25)]
    eventually(lambda: "read the first 9 of 13 tokens" in page.text("classify-note"))
    page.write("subject", " ")
    page.press("Classify")
    eventually(lambda: "an empty text has no class" in page.text("alert"))
    assert any("422" in complaint for complaint in page.complaints())


def test_hostile_class_names_are_shown_as_text(page: Page):
    class Hostile(Classifier):
        def verdict(self, odd: int) -> Answer:
            return Answer({"label": HOSTILE, "probabilities": {HOSTILE: 1.0}})

    with running(Hostile("text")) as server:
        page.open(server)
        page.write("subject", "a")
        page.press("Classify")
        eventually(lambda: page.text("verdict") == HOSTILE)
        assert bars(page)[0][0] == HOSTILE and "owned" not in page.browser.title
        assert page.browser.find_elements(By.CSS_SELECTOR, "main img, main script") == []


def test_an_image_is_shown_before_it_is_sent_as_it_is(page: Page, sorting_images: Running, tmp_path: Path):
    class Any(Classifier):
        def read(self, value: bytes) -> Asked:
            return Asked(value)

    photo = tmp_path / "it's a photo.png"
    Image.effect_noise((64, 32), 50).save(photo)
    with running(Any("image")) as server:
        page.open(server)
        page.press("Classify")
        eventually(lambda: page.text("alert") == "choose an image first")
        page.element("file").send_keys(str(photo))
        eventually(lambda: page.element("preview").is_displayed())
        assert page.element("preview").accessible_name == photo.name
        assert page.element("preview").get_attribute("width") == "64"
        assert "'it'\\''s a photo.png'" in page.text("curl")
        page.press("Classify")
        eventually(lambda: page.text("verdict") == "ab"[len(photo.read_bytes()) % 2])
        assert server.engine.answerer.batches == [[photo.read_bytes()]]
    page.open(sorting_images)
    large = tmp_path / "large.png"
    large.write_bytes(bytes(90_000))
    page.element("file").send_keys(str(large))
    eventually(lambda: "cannot show it" in page.text("file-name"))
    page.press("Classify")
    eventually(lambda: "large.png is too large: at most" in page.text("alert"))


def test_what_is_found_in_an_image_is_drawn(page: Page, tmp_path: Path):
    class Detector(Classifier):
        def read(self, value: bytes) -> Asked:
            return Asked(value)

        def verdict(self, odd: int) -> Answer:
            return Answer({"boxes": [{"label": HOSTILE, "score": 0.9, "box": [0.25, 0.5, 0.75, 1.0]}]})

    photo = tmp_path / "photo.png"
    Image.new("RGB", (100, 100), "white").save(photo)
    with running(Detector("image", task="detect")) as server:
        page.open(server)
        assert page.text("state") == "ready to look"
        page.element("file").send_keys(str(photo))
        page.press("Find things")
        eventually(lambda: page.text("verdict") == "1 thing found")
        eventually(lambda: page.text("classify-note") != "")
        assert bars(page) == [(f"1 {HOSTILE}", "90.0 %", 90)] and "owned" not in page.browser.title
        inside, edge = page.browser.execute_script(PIXELS, page.element("preview"), 0.7, [0.5, 0.75])
        assert inside[:3] == [255, 255, 255] and edge[0] > edge[1] + 100


def test_a_row_is_asked_for_by_its_columns(page: Page, sorting_rows: Running):
    page.open(sorting_rows)
    form = page.element("columns")
    assert [label.text.split("\n")[0] for label in form.find_elements(By.TAG_NAME, "label")] == ["age", "job"]
    page.write("column-0", "41")
    page.press("Classify")
    eventually(lambda: page.text("verdict") == "b")
    eventually(lambda: "no value for job: taken as missing" in page.text("classify-note"))
    Select(page.element("column-1")).select_by_visible_text("smith")
    eventually(lambda: '"row":{"age":"41","job":"smith"}' in page.text("curl"))
    page.press("Classify")
    eventually(lambda: "missing" not in page.text("classify-note") and page.text("classify-note"))


def test_the_page_says_from_which_chance_on_a_class_is_answered(page: Page):
    form = FORMS["table"] | {"positive": "b", "threshold": 1 / 6}
    with running(Classifier("table", form=form)) as server:
        page.open(server)
        page.write("column-0", "41")
        page.press("Classify")
        eventually(lambda: "b from 16.7 % on" in page.text("classify-note"))


def test_a_history_gets_recommendations(page: Page, recommending: Running):
    page.open(recommending)
    page.press("Recommend")
    eventually(lambda: page.text("recommended").startswith("a1.00b0.500"))
    for name in ("a", "c", "d"):
        page.element("item").send_keys(name, Keys.ENTER)
    page.element("history").find_elements(By.TAG_NAME, "button")[1].click()
    page.write("count", "2")
    page.press("Recommend")
    eventually(lambda: page.text("recommended") == "e1.00f0.500")
    assert '{"items":["a","d"],"k":2,"exclude_seen":true}' in page.text("curl")


def bubbles(page: Page) -> list[tuple[str, str]]:
    """Who said what."""
    found = page.browser.find_elements(By.CLASS_NAME, "bubble")
    return [(each.get_attribute("class").split()[-1], each.get_attribute("textContent")) for each in found]


def test_a_conversation_goes_on(page: Page, chatting: Running):
    page.open(chatting)
    page.browser.find_element(By.CSS_SELECTOR, ".more summary").click()
    page.write("chat-max-tokens", "3")
    page.write("system", "be brief")
    page.element("message").send_keys("hello", Keys.SHIFT, Keys.ENTER, Keys.NULL, HOSTILE, Keys.ENTER)
    eventually(lambda: page.text("chat-note").startswith("3 tokens in"))
    assert bubbles(page) == [("user", f"Youhello\n{HOSTILE}"), ("assistant", "Model 1 2 3")]
    page.element("message").send_keys("and?", Keys.ENTER)
    eventually(lambda: len(bubbles(page)) == 4 and page.text("chat-note").startswith("3 tokens in"))
    asked = chatting.engine.answerer.asked[-1]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user"]
    assert asked[2]["content"] == " 1 2 3" and asked[0]["content"] == "be brief"
    assert "owned" not in page.browser.title and page.browser.find_elements(By.CSS_SELECTOR, "main img") == []


def test_an_answer_can_be_stopped_and_a_conversation_begun_anew(page: Page, chatting: Running):
    page.open(chatting)
    page.element("message").send_keys("hello", Keys.ENTER)
    eventually(lambda: bubbles(page)[-1][1].startswith("Model 1 2"))
    page.press("Stop")
    eventually(lambda: page.text("chat-note") == "stopped")
    page.press("New conversation")
    assert bubbles(page) == []
    page.element("message").send_keys("again", Keys.ENTER)
    eventually(lambda: len(chatting.engine.answerer.asked[-1]) == 1 and bubbles(page)[-1][1].startswith("Model 1"))
    page.press("Stop")


def test_what_was_refused_can_be_mended(page: Page, chatting: Running):
    page.open(chatting)
    page.browser.execute_script("arguments[0].value = 'wort '.repeat(500)", page.element("message"))
    page.press("Send")
    eventually(lambda: "tokens" in page.text("alert"))
    assert bubbles(page) == [] and page.element("message").get_attribute("value").startswith("wort wort")
    assert any("422" in complaint for complaint in page.complaints())


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_is_cut_off_at_any_width(page: Page, every: list[Running], width: int):
    page.browser.set_window_size(width, 800)
    for server in every:
        page.open(server)
        wide, seen = page.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= seen


def test_every_control_has_a_name(page: Page, every: list[Running]):
    for server in every:
        page.open(server)
        nameless = [
            element.get_attribute("outerHTML")
            for element in page.browser.find_elements(
                By.CSS_SELECTOR, "input, select, textarea, button, [role=region], [role=log]"
            )
            if element.is_displayed() and not element.accessible_name
        ]
        assert nameless == []
