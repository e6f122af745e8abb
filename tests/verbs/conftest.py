"""A tiny real task: numbers in English words to German ones, by rule, so that any amount of it is correct."""

import contextlib
import io
import json
import logging
import random

import pytest
import torch

from chinchilla.cli import main
from chinchilla.parallel.measure import measure

ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
GERMAN = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]


@pytest.fixture(scope="session")
def small_machine():
    """This machine, really measured, at two small products."""
    return measure([(1024, 64, 256), (2048, 256, 256)], threads=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch, small_machine):
    """One thread, and no half-minute measurement a test."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("chinchilla.verbs.plan.cached_measure", lambda *args, **kwargs: small_machine)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A folder with train.tsv: 1,500 distinct pairs in 300 documents."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = random.Random(0)
    rows = set()
    while len(rows) < 1500:
        digits = tuple(rng.randrange(10) for _ in range(rng.randrange(2, 8)))
        rows.add(digits)
    with (folder / "train.tsv").open("w", encoding="utf-8") as file:
        for index, digits in enumerate(sorted(rows)):
            source, target = (" ".join(words[d] for d in digits) for words in (ENGLISH, GERMAN))
            file.write(f"{source}\t{target}\tdocument{index % 300}\n")
    return folder


@pytest.fixture
def chinchilla(capsys, tmp_path):
    """Run the command line in this process; give (exit code, standard output, standard error)."""

    def run(*words):
        handlers = logging.getLogger().handlers[:]
        try:
            code = main([str(word) for word in words])
        finally:
            logging.getLogger().handlers[:] = handlers
            logging.captureWarnings(False)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


SETTINGS = (
    "task=translate",
    "train.threads=1",
    "tokenizer.vocab_size=300",
    "model.dim=32",
    "model.num_encoder_layers=1",
    "model.num_decoder_layers=1",
    "train.batch_tokens=512",
    "evaluate.beam_size=2",
    "evaluate.max_examples=20",
)


@pytest.fixture(scope="session")
def train_tiny(numbers, tmp_path_factory, small_machine):
    """Train a tiny model on the numbers with further settings; give what `train --json` printed."""

    def run(*settings):
        runs = tmp_path_factory.mktemp("runs")
        data = (f"data.train={numbers / 'train.tsv'}", f"runs={runs}")
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr("chinchilla.verbs.plan.cached_measure", lambda *args, **kwargs: small_machine)
            code = main(["train", *SETTINGS, *data, *settings, "--json"])
        logging.captureWarnings(False)
        assert code == 0
        return json.loads(out.getvalue().splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def trained(train_tiny):
    """A finished tiny run: its folder, and what `train --json` printed."""
    return train_tiny("budget.time=12")
