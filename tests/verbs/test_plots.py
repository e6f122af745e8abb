"""`--plot` of `fit` and `plan`: files that stand alone, and refusals before any work."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

SVG = "{http://www.w3.org/2000/svg}svg"


@pytest.fixture
def runs_csv(tmp_path):
    """Nine sizes at each of six computes: every approach can fit them."""
    middle = np.geomspace(1e6, 3e7, 6)[:, None]
    n = middle * np.geomspace(0.2, 5, 9)
    d = 20 * middle**2 / n
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(n.shape))
    loss = (1.7 + 130 / n**0.35 + 380 / d**0.35) * noise
    path = tmp_path / "runs.csv"
    rows = np.column_stack([n.ravel(), d.ravel(), loss.ravel()])
    np.savetxt(path, rows, delimiter=",", header="params,tokens,loss", comments="")
    return path


def loads_nothing(text):
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    return all(link.startswith("#") for link in links) and not re.search(r"<(script|link|img)|url\((?!#)", text)


@pytest.mark.parametrize(("approach", "charts"), [("1", 1), ("2", 2), ("3", 3)])
def test_a_fit_is_drawn_as_one_page_that_loads_nothing(chinchilla, runs_csv, tmp_path, approach, charts):
    path = tmp_path / "law.html"
    code, out, err = chinchilla("fit", runs_csv, "--approach", approach, "--bootstraps", "100", "--plot", path)
    assert code == 0
    assert str(path) in err
    assert str(path) not in out
    text = path.read_text("utf-8")
    assert text.count("<svg") == charts
    assert "54 runs of" in text
    assert loads_nothing(text)


def test_a_fit_is_drawn_as_one_picture(chinchilla, runs_csv, tmp_path):
    path = tmp_path / "law.svg"
    assert chinchilla("fit", runs_csv, "--bootstraps", "100", "--plot", path)[0] == 0
    root = ET.parse(path).getroot()
    assert root.tag == SVG
    assert len(root.findall(SVG)) == 3
    assert "var(--" not in path.read_text("utf-8")


@pytest.mark.parametrize("name", ["law.png", "nowhere/law.html", "law"])
def test_a_file_that_cannot_be_drawn_into_is_refused_before_the_fit(chinchilla, tmp_path, name):
    code, _, err = chinchilla("fit", tmp_path / "missing.csv", "--plot", tmp_path / name)
    assert code == 2
    assert "--plot" in err


def test_a_plan_is_drawn_with_its_roofline_memory_and_layouts(chinchilla, numbers, tmp_path):
    cluster = tmp_path / "cluster.toml"
    node = 'devices = 1\nflops_per_s = {{ fp32 = 1e11, bf16 = 2e11 }}\nmemory_bytes = "16GB"\nbytes_per_s = 2e10\n'
    names = "".join(f'[[node]]\nname = "{name}"\n{node.format()}' for name in ("a", "b"))
    cluster.write_text(f'{names}[[link]]\nbetween = ["a", "b"]\nbytes_per_s = 1e8\nlatency_s = 1e-4\n')
    path = tmp_path / "plan.html"
    settings = ("task=translate", "train.threads=1", "tokenizer.vocab_size=300", "model.dim=32", "train.probes=false")
    more = ("model.num_encoder_layers=1", "model.num_decoder_layers=1", f"cluster.file={cluster}", "budget.time=60")
    code, _, err = chinchilla("plan", *settings, *more, f"data.train={numbers / 'train.tsv'}", "--plot", path)
    assert code == 0, err
    text = path.read_text("utf-8")
    for title in ("Roofline", "Memory over a step", "Layouts of a step"):
        assert title in text
    assert text.count("<svg") == 4
    assert loads_nothing(text)


def test_the_worked_case_is_not_drawn(chinchilla, tmp_path):
    assert chinchilla("plan", "--example", "cluster", "--plot", tmp_path / "plan.html")[0] == 2
