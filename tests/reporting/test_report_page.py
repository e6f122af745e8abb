"""The report page: its sections, its escaping, and that it loads nothing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reporting_fakes import HOSTILE, make_compression, make_plan, make_results

from chinchilla.config.errors import FaultError, UsageError
from chinchilla.config.load import load_run
from chinchilla.config.plan import Rows
from chinchilla.reporting import page, record
from chinchilla.store import journal
from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs.report import report

SECTIONS = ["plan", "training", "ledger", "samples", "compression", "events", "environment", "serve"]
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use"}


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails on tags closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        shown = " ".join(data for tag, data in self.texts if tag not in ("style", "title"))
        return re.sub(r"\s+", " ", shown)

    def section_ids(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]


def outline(run: RunFolder) -> Outline:
    return Outline(page.render(record.read(run.path)))


def test_the_report_is_written_into_the_run_folder(run: RunFolder) -> None:
    path = report(run.path)
    assert path == run.path / "report.html"
    text = path.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert text == page.render(record.read(run.path))


def test_a_finished_run_shows_everything(run: RunFolder) -> None:
    shown = outline(run)
    assert shown.section_ids() == SECTIONS
    text = shown.text()
    for piece in (
        "BLEU 22.84",
        "validation loss 2.290 predicted 2.21 – 2.62",
        "predictions kept 6 of 7",
        "best loss of 5 probed shapes after 20 s each",
        "How it was planned Roofline",
        "Memory over a step",
        "214 ms [198 ms – 231 ms] 221 ms -3.2 % yes",
        "Klicken Sie auf die Schaltfläche, um das Dialogfeld zu öffnen.",
        "checkpoint 4",
        "step: 150; steps: 2040; step_time_s: 0.246",
        "packages.torch",
        f"chinchilla serve {run.path}",
    ):
        assert piece in text, piece
    assert next(attributes["aria-label"] for tag, attributes in shown.tags if tag == "svg").startswith("Loss against")
    assert sum(tag == "svg" for tag, _ in shown.tags) == 10


def test_a_compressed_run_tells_its_parents_story_too(run: RunFolder, compressed: RunFolder) -> None:
    shown = outline(compressed)
    text = shown.text()
    for piece in (
        f"Compressed from {run.path}",
        "in 7m41s, then compressed (int8 dynamic)",
        "22.71 compressed",
        "4.86 MB 3.87× smaller",
        "48.8 ms 1.46× faster",
        "int8 dynamic",
        "before Klicken Sie auf die Schaltfläche, um das Dialogfeld zu öffnen. after Klicken",
        "before and after Satz 0.",
        "step: 150; steps: 2040",
        f"chinchilla serve {compressed.path}",
    ):
        assert piece in text, piece
    assert sum(tag == "svg" for tag, _ in shown.tags) == 11


def test_lines_copied_from_the_parent_are_told_once(run: RunFolder, compressed: RunFolder) -> None:
    for line in journal.read(run.ledger):
        journal.append(compressed.ledger, line)
    assert "predictions kept 6 of 7" in outline(compressed).text()


def test_a_text_model_has_prompts_and_bits_per_byte(run: RunFolder) -> None:
    run.write_plan(run.read_plan().model_copy(update={"task": "generate"}))
    sample = {"source": "Package: ", "reference": "", "output": "a small editor"}
    (run.path / "results.json").write_text(json.dumps({"metrics": {"bits_per_byte": 1.2345}, "samples": [sample]}))
    text = outline(run).text()
    assert "bits per byte 1.234" in text
    assert "prompt Package: output a small editor" in text
    assert "text generation" in text


def test_a_moved_compressed_run_finds_its_parent_beside_it(compressed: RunFolder) -> None:
    told = make_compression("/gone/translate-1")
    (compressed.path / "compression.json").write_text(json.dumps(told))
    assert "Compressed from" in outline(compressed).text()


def test_a_lost_parent_leaves_the_comparison(compressed: RunFolder) -> None:
    told = make_compression("/gone/elsewhere-9")
    (compressed.path / "compression.json").write_text(json.dumps(told))
    text = outline(compressed).text()
    assert "Compressed from" not in text
    assert "3.87× smaller" in text
    assert "No step has been logged yet." in text


def test_a_run_that_has_only_been_planned_is_shown(bare_run: RunFolder) -> None:
    shown = outline(bare_run)
    assert shown.section_ids() == SECTIONS
    text = shown.text()
    for missing in ("No step has been logged yet.", "Nothing has been measured", "No samples", "not been compressed"):
        assert missing in text
    assert "median product 1.9× faster" in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "ledger.jsonl", "env.json", "results.json"])
def test_any_one_part_may_be_missing(run: RunFolder, name: str) -> None:
    (run.path / name).unlink()
    assert outline(run).section_ids() == SECTIONS


def test_results_without_metrics_or_samples_are_shown(run: RunFolder) -> None:
    (run.path / "results.json").write_text(json.dumps({"metrics": {}, "samples": [], "valid_loss": None}))
    assert "No samples" in outline(run).text()


def test_the_page_loads_nothing(compressed: RunFolder) -> None:
    text = page.render(record.read(compressed.path))
    shown = Outline(text)
    tags = {tag for tag, _ in shown.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "image"}
    for tag, attributes in shown.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset", "background"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, name)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_policy_forbids_all_but_inline_style(run: RunFolder) -> None:
    policies = [a["content"] for tag, a in outline(run).tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]


def test_ids_are_unique_and_links_lead_somewhere(compressed: RunFolder) -> None:
    shown = outline(compressed)
    ids = [a["id"] for _, a in shown.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "").removeprefix("#") for tag, a in shown.tags if tag == "a"} <= set(ids)


ATTACKS = [
    HOSTILE,
    "<img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "</style><script>x()</script>",
    "{{ 7*7 }}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_text_stays_text_wherever_it_comes_from(bare_run: RunFolder, attack: str) -> None:
    run = bare_run
    plan = run.read_plan()
    decision = plan.decisions[0].model_copy(update={"name": attack, "value": attack, "reason": attack})
    predicted = {attack: plan.predicted["loss"].model_copy(update={"unit": attack})}
    run.write_plan(plan.model_copy(update={"decisions": (decision,), "predicted": predicted}))
    run.log_prediction(attack, predicted[attack], 2.3, attack)
    run.log_event(attack, **{attack: {attack: [attack]}})
    run.env_json.write_text(json.dumps({attack: {attack: attack}}))
    run.run_toml.write_text(attack)
    sample = {"source": attack, "reference": attack, "output": attack}
    results = make_results() | {"metrics": {attack: 1.0, "signature": attack}, "samples": [sample]}
    (run.path / "results.json").write_text(json.dumps(results))
    told = make_compression(f"../{attack}") | {"scheme": attack, "samples": [sample | {"before": attack, "after": "x"}]}
    told["before"]["metrics"] = told["after"]["metrics"] = {attack: 2.0}
    (run.path / "compression.json").write_text(json.dumps(told))
    shown = outline(run)
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert shown.text().count(attack) >= 14
    assert "49" not in shown.text().split("Plan", 1)[0]


def test_a_hostile_folder_name_is_quoted_for_the_shell(run: RunFolder, tmp_path: Path) -> None:
    moved = run.path.rename(tmp_path / "a'; touch <x>; '")
    text = outline(RunFolder(moved)).text()
    quoted = str(moved).replace("'", "'\"'\"'")
    assert f"chinchilla serve '{quoted}'" in text


def test_half_a_surrogate_pair_is_replaced(run: RunFolder) -> None:
    (run.path / "results.json").write_text('{"samples": [{"source": "a\\ud800b", "output": "c"}]}')
    assert "a?b" in report(run.path).read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results.json", "{", "results.json: cannot be read as JSON"),
        ("results.json", "[1]", "results.json: holds list"),
        ("results.json", '{"tokens": "many"}', "results.json: tokens: "),
        ("env.json", "\x00", "env.json: cannot be read as JSON"),
        ("compression.json", '{"parent": "x"}', "compression.json: before: "),
        ("ledger.jsonl", '{"name": "x"}\n', "ledger.jsonl: line 1: predicted: "),
        ("metrics.jsonl", "{\n{}\n", "metrics.jsonl: line 1"),
    ],
)
def test_a_damaged_file_is_named_and_no_report_is_written(run: RunFolder, name: str, content: str, said: str) -> None:
    (run.path / name).write_text(content)
    with pytest.raises(FaultError) as caught:
        report(run.path)
    assert said in str(caught.value)
    assert not (run.path / "report.html").exists()


def test_what_is_not_a_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        report(tmp_path)


def test_many_events_are_counted_and_the_last_shown(run: RunFolder) -> None:
    lines = [json.dumps({"time": "2026-09-01T10:00:00+00:00", "kind": "checkpoint", "step": n}) for n in range(1000)]
    run.events.write_text("\n".join(lines) + "\n")
    text = outline(run).text()
    assert "checkpoint 1000" in text
    assert "The last 200 of 1000" in text
    assert "step: 999" in text
    assert "step: 799 " not in text
    assert "2026-09-01 10:00:00 " in text


def with_cluster(run: RunFolder, path: Path) -> None:
    """Make it a run of a plan that kept its rows, for two nodes of a file."""
    node = 'devices = 1\nflops_per_s = { bf16 = 2e11 }\nmemory_bytes = "16GB"\nbytes_per_s = 2e10\n'
    nodes = "".join(f'[[node]]\nname = "{name}"\n{node}' for name in ("one", "two"))
    path.write_text(f'{nodes}[[link]]\nbetween = ["one", "two"]\nbytes_per_s = 1e8\nlatency_s = 1e-4\n')
    words = ["task=translate", "data.train=pairs.tsv", "budget.time=10m", f"cluster.file={path}"]
    run.write_run(load_run(None, words))
    rows = Rows(num_examples=90_000, mean_source_len=120, mean_target_len=120, max_len=128)
    run.write_plan(make_plan().model_copy(update={"rows": rows}))


def test_the_layouts_of_a_cluster_are_in_the_report(run: RunFolder, tmp_path: Path, caplog) -> None:
    cluster = tmp_path / "cluster.toml"
    with_cluster(run, cluster)
    text = report(run.path).read_text("utf-8")
    assert "Layouts of a step" in text
    assert "one node: one" in text
    cluster.unlink()
    with caplog.at_level("WARNING", logger="chinchilla"):
        text = report(run.path).read_text("utf-8")
    assert "Layouts of a step" not in text
    assert "the report shows no layouts" in caplog.text and "cluster.toml" in caplog.text


def test_other_plans_are_in_the_report_and_an_older_plan_has_none(run: RunFolder) -> None:
    shown = outline(run).text()
    assert "Other plans for the budget" in shown
    assert "3+3×128 12.7 MB 124 ms 1.14 GB 2.470 guess 1.48× smaller, 1.26× faster; loss +0.090 (+3.8%)" in shown
    run.write_plan(make_plan().model_copy(update={"considered": ()}))
    assert "Other plans" not in outline(run).text()
