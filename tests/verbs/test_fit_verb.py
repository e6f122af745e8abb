"""`chinchilla fit` from the command line: tables, JSON and refusals."""

import json

import numpy as np
import pytest

from chinchilla.planning.forms import FORMS
from chinchilla.planning.laws import ChinchillaLaw
from chinchilla.planning.own_law import read_law

TRUTH = {"E": 1.7, "A": 400.0, "B": 1500.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture
def runs_csv(tmp_path):
    """Sixteen runs of a known law with 0.3 % noise, as a CSV."""
    n, d = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(2e7, 6e8, 4)))
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(16))
    loss = (TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]) * noise
    path = tmp_path / "runs.csv"
    np.savetxt(path, np.column_stack([n, d, loss]), delimiter=",", header="params,tokens,loss", comments="")
    return path


def test_json_has_the_constants_with_intervals_around_them(chinchilla, runs_csv):
    code, out, err = chinchilla("fit", runs_csv, "--bootstraps", "200", "--json")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert "Budgets ahead" in err
    for name, truth in TRUTH.items():
        low, high = found["intervals"][name]
        assert low < found[name] < high
        assert low < truth < high
    assert found["a"] == pytest.approx(found["beta"] / (found["alpha"] + found["beta"]))
    assert found["repeats"] == 0
    assert (found["runs"], found["bootstraps"], found["confidence"]) == (16, 200, 0.95)
    law = ChinchillaLaw.model_validate(found["law"])
    assert law.optimum(found["ahead"][0]["flops"])[0] == pytest.approx(found["ahead"][0]["params"]["p50"], rel=0.5)
    assert {each["predicted"]["unit"] for each in found["identification"]["roll_out"]} == {"nats/token"}


def test_the_table_tells_constants_budgets_and_checks(chinchilla, runs_csv):
    code, out, _ = chinchilla("fit", runs_csv, "--bootstraps", "100")
    assert code == 0
    for words in (
        "from 16 runs",
        "0 of 16 have the size",
        "alpha",
        "95 % interval",
        "Budgets ahead",
        "cheap runs foretell",
        "most influential",
    ):
        assert words in out


@pytest.mark.parametrize("approach", ["1", "2"])
def test_the_other_approaches_give_exponents(chinchilla, tmp_path, approach):
    n = np.geomspace(0.2, 5, 9)[None] * np.geomspace(1e6, 3e7, 6)[:, None]
    d = 20 * np.geomspace(1e6, 3e7, 6)[:, None] ** 2 / n
    loss = 1.7 + 130 / n**0.35 + 380 / d**0.35
    path = tmp_path / "levels.csv"
    rows = np.column_stack([n.ravel(), d.ravel(), loss.ravel()])
    np.savetxt(path, rows, delimiter=",", header="params,tokens,loss", comments="")
    code, out, err = chinchilla("fit", path, "--approach", approach, "--bootstraps", "100", "--json")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert found["a"] == pytest.approx(0.5, abs=0.05)
    assert found["intervals"]["a"][0] <= found["intervals"]["a"][1]
    assert "Best size by compute" in err


def test_ill_placed_runs_are_refused_with_runs_that_would_settle_it(chinchilla, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n1e6,2e7,4.5\n4e6,8e7,3.9\n16e6,32e7,3.4\n")
    code, out, err = chinchilla("fit", path, "--json")
    assert (code, out) == (3, "")
    assert "3 runs of 3 sizes" in err
    assert "would settle it" in err


def test_a_wrong_file_or_approach_is_an_error_without_a_trace(chinchilla, tmp_path, runs_csv):
    assert chinchilla("fit", tmp_path / "none.csv")[0] == 3
    assert chinchilla("fit", tmp_path / "none.txt")[0] == 2
    assert chinchilla("fit", runs_csv, "--approach", "4")[0] == 2
    assert chinchilla("fit", runs_csv, "--bootstraps", "5")[0] == 2


def test_a_fit_is_kept_and_a_plan_takes_it_and_says_what_it_assumes(chinchilla, tmp_path, runs_csv, numbers):
    kept = tmp_path / "law.json"
    code, _, err = chinchilla("fit", runs_csv, "--bootstraps", "200", "--out", kept, "--json")
    assert (code, f"kept for chinchilla plan --law: {kept}" in err) == (0, True), err
    words = ["task=translate", f"data.train={numbers / 'train.tsv'}", "tokenizer.vocab_size=300", "train.threads=1"]
    words += ["model.dim=32", "model.num_encoder_layers=1", "model.num_decoder_layers=1", "evaluate.beam_size=1"]
    code, out, err = chinchilla("plan", *words, "--law", kept, "--budget", "30s", "--json")
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    (reason,) = (line["reason"] for line in made["decisions"] if line["name"] == "model")
    assert "own law" in reason
    assert "its runs do not tell their task, vocabulary and text and training settings: assumed to be" in reason
    law = read_law(kept).model_copy(update={"unique_tokens": made["unique_tokens"]})
    assert made["predicted"]["loss"] == law.predict(made["num_params"], made["predicted"]["tokens"]["p50"]).model_dump()


def test_what_is_no_law_is_not_kept_and_no_law_is_taken_where_the_size_is_fixed(chinchilla, tmp_path, runs_csv):
    for more in (["law.json", "--approach", "2"], ["law.txt"], ["none/law.json"]):
        code, _, err = chinchilla("fit", runs_csv, "--out", tmp_path / more[0], *more[1:])
        assert (code, "--out" in err) == (2, True), err
    assert not list(tmp_path.glob("law.*"))
    words = ["task=translate", "data.train=none.tsv", "model.start=runs/old", "budget.time=30s"]
    code, _, err = chinchilla("plan", *words, "--law", tmp_path / "law.json")
    assert (code, "--law: decides the size, which model.start" in err) == (2, True), err
    code, _, err = chinchilla("plan", *words[:2], words[3], "--law", tmp_path / "law.json")
    assert (code, "`chinchilla fit --out` wrote" in err) == (3, True), err


REPLICAS = {"A": 19.2, "alpha": 0.098, "beta": 0.0116}


@pytest.fixture
def replicas_csv(tmp_path):
    """Sixteen runs of the low-communication form with 0.1 % noise, as a CSV with a column more."""
    form, rng = FORMS["low-communication"], np.random.default_rng(2)
    rows = ["name,replicas,params,loss"]
    for size in (1e8, 3e8, 1e9, 3e9):
        for count in (1, 2, 4, 8):
            loss = form.loss(REPLICAS, {"params": size, "replicas": count}) * np.exp(0.001 * rng.standard_normal())
            rows.append(f"diloco,{count},{size},{loss}")
    path = tmp_path / "replicas.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_form_is_fitted_to_runs_that_bring_its_columns(chinchilla, replicas_csv):
    code, out, err = chinchilla("fit", replicas_csv, "--form", "low-communication", "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (found["form"], found["runs"]) == ("low-communication", 16)
    for name, truth in REPLICAS.items():
        constant = found["constants"][name]
        assert abs(constant["value"] - truth) < 4 * constant["error"] < truth
    assert 0 < found["median_error"] < found["largest_error"] < 0.004
    for words in ("A * N^-alpha * M^beta, from 16 runs", "standard error", "median 0.", "a plan does not use it"):
        assert words in " ".join(err.split())


def test_runs_that_do_not_bring_what_a_form_needs_are_refused(chinchilla, tmp_path, runs_csv, replicas_csv):
    few, same = tmp_path / "few.csv", tmp_path / "same.csv"
    lines = replicas_csv.read_text().splitlines()
    few.write_text("\n".join(lines[:5]) + "\n")
    alone = [f"diloco,1,{size},{19.2 * size**-0.098}" for size in (2e8, 5e8, 7e8)]
    same.write_text("\n".join([lines[0], *lines[1::4], *alone]) + "\n")
    for path, name, code, told in (
        (runs_csv, "precision", 3, "no column weights_bits, activations_bits, cache_bits"),
        (few, "low-communication", 3, "4 runs are too few for the low-communication form's 3 constants"),
        (same, "low-communication", 3, "do not settle beta of the low-communication form: add runs that vary size"),
        (tmp_path, "precision", 2, "run folders do not say params, tokens, weights_bits"),
        (tmp_path / "none.txt", "precision", 2, "give a .csv or a .jsonl"),
        (runs_csv, "precison", 2, "did you mean 'precision'? there are precision, quantisation"),
    ):
        found, out, err = chinchilla("fit", path, "--form", name)
        assert (found, out, told in err) == (code, "", True), err
    for more in (["--approach", "3"], ["--bootstraps", "200"], ["--out", tmp_path / "law.json"]):
        code, _, err = chinchilla("fit", replicas_csv, "--form", "low-communication", *more)
        assert (code, "--form fits constants" in err) == (2, True), err
