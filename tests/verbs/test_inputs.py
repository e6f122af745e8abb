"""What a plan is made from beside the data: checked in every verb before data is read or anything is run."""

import pytest

from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.verbs.plan import plan

USAGE = 2
NODE = 'flops_per_s = { fp32 = "1T" }\nmemory_bytes = "64GB"\nbytes_per_s = "10GB/s"\n'
LINK = '[[link]]\nbetween = ["a", "{}"]\nbytes_per_s = "1GB/s"\nlatency_s = "1ms"\n'
TWO = "".join(f'[[node]]\nname = "{name}"\n{NODE}' for name in ("a", "b"))


@pytest.fixture
def words(numbers, tmp_path):
    data = (f"data.train={numbers / 'train.tsv'}", f"runs={tmp_path / 'runs'}")
    return ["task=translate", *data, "tokenizer.vocab_size=300", "train.threads=1", "budget.time=30m"]


@pytest.fixture
def unread(monkeypatch):
    """Fails where data is read."""
    for verb in ("plan", "whatif", "small_runs"):
        monkeypatch.setattr(f"chinchilla.verbs.{verb}.prepare", lambda *args: pytest.fail("data were read"))


def cluster(tmp_path, text):
    path = tmp_path / "cluster.toml"
    path.write_text(text, encoding="utf-8")
    return f"cluster.file={path}"


@pytest.mark.parametrize("verb", ["plan", "train", "sweep", "whatif"])
@pytest.mark.parametrize(
    ("text", "settings", "told"),
    [
        (TWO, (), "no path of links leads from 'a' to 'b'"),
        (TWO + LINK.format("c"), (), "no node is named 'c'"),
        (TWO + LINK.format("b") + LINK.format("b"), (), "joined by link 1 already"),
        (TWO + LINK.format("b"), ("train.precision=bf16",), "node 'a' has no bf16 rate"),
    ],
    ids=["unreached", "unknown", "twice", "unpriced"],
)
def test_a_bad_cluster_is_refused_before_data_is_read(verb, text, settings, told, words, unread, chinchilla, tmp_path):
    code, _, err = chinchilla(verb, *words, cluster(tmp_path, text), *settings)
    assert (code, told in err) == (USAGE, True), err


def test_a_missing_cluster_file_is_named_before_data_is_read(words, unread, chinchilla):
    for verb in ("sweep", "whatif"):
        code, _, err = chinchilla(verb, *words, "cluster.file=none.toml")
        assert (code, "no such cluster file" in err) == (USAGE, True), err


def test_a_rate_that_the_planned_precision_needs_is_asked_for_before_probes(words, tmp_path, monkeypatch):
    """The recipe leaves the precision open, so that it is known once the machine is."""
    monkeypatch.setattr("chinchilla.config.machine.Machine.fastest_precision", lambda machine: "bf16")
    monkeypatch.setattr("chinchilla.verbs.plan.choose", lambda *args: pytest.fail("shapes were probed"))
    run = load_run(None, [*words, cluster(tmp_path, TWO + LINK.format("b"))]).run
    with pytest.raises(UsageError, match="node 'a' has no bf16 rate: add one to its flops_per_s, or set train.prec"):
        plan(run)
