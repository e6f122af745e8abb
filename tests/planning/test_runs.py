"""What reading finished runs accepts and refuses, and that a refusal names file, row and mend."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from chinchilla.config.errors import DataError, FaultError, UsageError
from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.config.plan import Plan, Training
from chinchilla.config.shape import Shape
from chinchilla.planning.fit import fit, predict
from chinchilla.planning.own_law import Settings, fitted_law
from chinchilla.planning.runs import make_runs, read_runs
from chinchilla.planning.search import Facts

ROWS = [(1e6, 2e7, 4.5), (1e6, 4e7, 4.3), (4e6, 2e7, 4.1), (4e6, 4e7, 3.9)]


def write(path, rows, header="params,tokens,loss"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def test_a_csv_is_read_in_order_with_compute_by_6nd(tmp_path):
    runs = read_runs(write(tmp_path / "runs.csv", ROWS))
    assert np.array_equal(np.column_stack([runs.num_params, runs.tokens, runs.loss]), ROWS)
    assert np.array_equal(runs.flops, 6 * runs.num_params * runs.tokens)
    assert (runs.convention, runs.places[2]) == ("paper6nd", f"{tmp_path / 'runs.csv'}, row 4")


def test_other_columns_spaces_a_byte_order_mark_and_the_users_own_flops_are_taken(tmp_path):
    path = tmp_path / "runs.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", " loss", "flops ", "tokens", "params"])
        table.writerows([f"run, {i}", loss, 7 * n * d, d, n] for i, (n, d, loss) in enumerate(ROWS))
    runs = read_runs(path)
    assert runs.convention == "given"
    assert np.allclose(runs.flops, 7 * runs.num_params * runs.tokens)


def test_jsonl_gives_the_same_runs_as_csv(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(dict(zip(("params", "tokens", "loss"), r, strict=True))) + "\n\n" for r in ROWS))
    runs, other = read_runs(path), read_runs(write(tmp_path / "runs.csv", ROWS))
    assert np.array_equal(runs.loss, other.loss)
    assert np.array_equal(runs.flops, other.flops)
    assert runs.places[1].endswith("runs.jsonl, row 3")


@pytest.mark.parametrize("bad", ["", "0", "-3", "nan", "inf", "lots", "1e999"])
@pytest.mark.parametrize(("column", "name"), list(enumerate(["params", "tokens", "loss"])))
def test_a_value_that_is_not_positive_and_finite_is_refused_by_row_and_column(tmp_path, bad, column, name):
    rows = [list(row) for row in ROWS]
    rows[2][column] = bad
    with pytest.raises(DataError, match=rf"runs\.csv, row 4: {name} is .*{bad}.*positive, finite"):
        read_runs(write(tmp_path / "runs.csv", rows))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"params": 1, "tokens": 2, "loss": null}', "row 1: loss is None"),
        ('{"params": 1, "tokens": true, "loss": 3}', "row 1: tokens is True"),
        ('{"params": [1], "tokens": 2, "loss": 3}', r"row 1: params is \[1\]"),
        ('{"params": 1, "loss": 3}', "row 1: no column tokens, there are: params, loss"),
        ('{"params": 1, "flops": 6, "loss": 3}', r"tokens are flops / \(6 · params\)"),
        ("[1, 2, 3]", "row 1: not an object"),
        ("{", "row 1: not valid JSON"),
    ],
)
def test_a_wrong_line_of_jsonl_is_named(tmp_path, line, message):
    (tmp_path / "runs.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_runs(tmp_path / "runs.jsonl")


def test_a_missing_column_a_short_row_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"runs\.csv: no column loss, there are: params, tokens, perplexity"):
        read_runs(write(tmp_path / "runs.csv", ROWS, "params,tokens,perplexity"))
    with pytest.raises(DataError, match="row 2: loss is None"):
        read_runs(write(tmp_path / "runs.csv", [(1e6, 2e7)]))
    for text in ("", "params,tokens,loss\n"):
        (tmp_path / "runs.csv").write_text(text)
        with pytest.raises(DataError, match=r"runs\.csv: no "):
            read_runs(tmp_path / "runs.csv")


def test_a_run_given_twice_is_refused_but_another_seed_is_not(tmp_path):
    with pytest.raises(DataError, match=r"row 6: the same run as .*row 3; keep one"):
        read_runs(write(tmp_path / "runs.csv", [*ROWS, ROWS[1]]))
    assert len(read_runs(write(tmp_path / "runs.csv", [*ROWS, (1e6, 4e7, 4.31)]))) == 5


def test_a_loss_that_rises_with_tokens_at_one_size_is_refused():
    with pytest.raises(DataError, match=r"row 5: loss 4.5 after 80M tokens, where .*row 4 .* 3.9 after 40M:"):
        make_runs(*np.array([*ROWS, (4e6, 8e7, 4.5)]).T, source="runs.csv")
    # Noise of a seed is no rise, and the same tokens with another seed are none either.
    assert len(make_runs(*np.array([*ROWS, (4e6, 8e7, 3.95), (1e6, 2e7, 4.9)]).T)) == 6


def test_compute_for_some_runs_only_is_refused(tmp_path):
    rows = [(*row, 6 * row[0] * row[1]) for row in ROWS]
    rows[3] = (*rows[3][:3], "")
    with pytest.raises(DataError, match=r"row 5: no flops, while .*row 2 has them"):
        read_runs(write(tmp_path / "runs.csv", rows, "params,tokens,loss,flops"))


def test_what_is_no_file_of_runs_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_runs(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"params,tokens,loss\n\xff\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_runs(tmp_path / "latin.csv")
    with pytest.raises(UsageError, match=r"no such file or folder; give a \.csv, a \.jsonl or a folder"):
        read_runs(tmp_path / "runs.xlsx")


def make_plan(num_params, vocab_size=1000):
    rate = MatmulRate(m=64, k=64, n=64, precision="fp32", flops_per_s=1e10)
    machine = {"name": "ours", "device": "cpu", "threads": 1, "memory_bytes": 1 << 33, "torch_version": "2.13"}
    machine |= {"measured_at": "2026-01-01", "noise": 0.1, "bytes_per_s": 1e10, "op_overhead_s": 1e-6}
    training = dict.fromkeys(Training.model_fields, 1) | {"optimizer": "muon", "schedule": "wsd", "class_weights": ()}
    return Plan(
        task="generate",
        shape=Shape(
            vocab_size=vocab_size, dim=64, num_heads=1, num_kv_heads=1, head_dim=64, ffn_dim=256, num_decoder_layers=2
        ),
        training=Training(**(training | {"precision": "fp32", "compile": False, "recompute": False})),
        num_params=num_params,
        flops_per_token=6.0 * num_params,
        unique_tokens=1_000_000,
        tokens_per_step=2048,
        bytes_per_token=4.2,
        machine=Machine(**machine, matmul=(rate,), has_compiler=False),
        predicted={},
        decisions=(),
    )


@pytest.fixture
def folder(tmp_path):
    """Four finished runs, an unfinished and a compressed one, and what is no run."""
    runs = tmp_path / "runs"
    for number, (num_params, tokens, loss) in enumerate(ROWS):
        path = runs / f"generate-{number}"
        path.mkdir(parents=True)
        (path / "plan.json").write_text(make_plan(int(num_params)).model_dump_json())
        (path / "results.json").write_text(json.dumps({"tokens": tokens, "valid_loss": loss, "metrics": {}}))
    for name, file in (("stopped", "events.jsonl"), ("int8", "compression.json"), ("int8", "results.json")):
        (runs / name).mkdir(exist_ok=True)
        (runs / name / "plan.json").write_text(make_plan(5).model_dump_json())
        (runs / name / file).write_text("{}")
    (runs / "notes.txt").write_text("none")
    return runs


def test_a_folder_gives_its_finished_runs_and_tells_of_the_others(folder, caplog):
    runs = read_runs(folder)
    assert np.array_equal(np.column_stack([runs.num_params, runs.tokens, runs.loss]), ROWS)
    compressed, stopped, repeated = (record.message for record in caplog.records)
    assert compressed.endswith("/int8: left out, compressed")
    assert stopped.endswith("/stopped: left out, not finished")
    assert f"{folder}: 4 of 4 runs saw their data more than 4 times (up to 40)" in repeated
    assert [plan.num_params for plan in runs.plans] == runs.num_params.tolist()


def test_runs_of_one_size_and_length_count_alike_from_a_folder_and_a_file(folder, tmp_path):
    again = folder / "generate-9"
    again.mkdir()
    (again / "plan.json").write_text(make_plan(int(ROWS[0][0])).model_dump_json())
    (again / "results.json").write_text(json.dumps({"tokens": ROWS[0][1], "valid_loss": 4.52}))
    ours, theirs = read_runs(folder), read_runs(write(tmp_path / "runs.csv", [*ROWS, (*ROWS[0][:2], 4.52)]))
    assert (len(ours), ours.repeats) == (len(theirs), theirs.repeats) == (5, 1)
    assert sorted(ours.loss) == sorted(theirs.loss)
    (again / "results.json").write_text(json.dumps({"tokens": ROWS[0][1], "valid_loss": ROWS[0][2]}))
    with pytest.raises(DataError, match=r"generate-9/results\.json: the same run as .*generate-0.*; keep one"):
        read_runs(folder)


def test_a_folder_of_unlike_runs_a_run_itself_and_damage_are_refused(folder):
    with pytest.raises(UsageError, match="this is one run"):
        read_runs(folder / "generate-0")
    (folder / "generate-3" / "plan.json").write_text(make_plan(4_000_000, vocab_size=2000).model_dump_json())
    with pytest.raises(DataError, match=r"generate-0 and .*generate-3 .*do not compare"):
        read_runs(folder)
    (folder / "generate-3" / "plan.json").write_text("{")
    with pytest.raises(FaultError, match=r"generate-3/plan\.json"):
        read_runs(folder)
    (folder / "generate-0" / "results.json").write_text('{"tokens": 5}')
    with pytest.raises(DataError, match=r"generate-0/results\.json: damaged .*valid_loss"):
        read_runs(folder)


def test_a_folder_whose_run_ended_in_nan_is_refused(folder):
    (folder / "generate-1" / "results.json").write_text('{"tokens": 5, "valid_loss": null}')
    with pytest.raises(DataError, match=r"generate-1/results\.json: loss is None"):
        read_runs(folder)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(DataError, match="no finished runs"):
        read_runs(tmp_path)


@pytest.fixture(scope="module")
def fitted():
    """A fit to sixteen runs of a known law with 0.5 % noise."""
    n, d = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(2e7, 6e8, 4)))
    noise = np.exp(0.005 * np.random.default_rng(1).standard_normal(16))
    return fit(make_runs(n, d, (1.7 + 400 / n**0.35 + 1500 / d**0.37) * noise), bootstraps=300)


def facts(**changes):
    told = {"task": "generate", "vocab_size": 1000, "unique_tokens": 10**8, "num_examples": 1000, "max_len": 256}
    told |= {"mean_source_len": 0, "mean_target_len": 256, "bytes_per_token": 4.2}
    return Facts(**told | changes)


def test_a_kept_fit_predicts_as_the_fit_does_and_discounts_the_plans_repeats(fitted, tmp_path):
    law = fitted_law(fitted)
    kept, direct = law.predict(8e6, 3e8), predict(fitted, 8e6, 3e8)
    assert (kept.p50, kept.source) == (pytest.approx(direct.p50, rel=0.003), direct.source)
    assert kept.p90 / kept.p10 - 1 == pytest.approx(direct.p90 / direct.p10 - 1, rel=0.4)
    there = law.for_data(facts(), tmp_path)
    assert there.predict(8e6, 9e7) == law.predict(8e6, 9e7)
    assert there.predict(8e6, 8e8).p50 > law.predict(8e6, 8e8).p50
    assert there.predict(8e6, 8e8).source == "guess"


def test_a_fit_of_a_file_says_what_is_assumed_and_one_of_a_folder_whose_it_is(fitted, tmp_path):
    from_file = fitted_law(fitted)
    assert "do not tell their task, vocabulary and text and training settings" in from_file.assumed
    for change in ({"vocab_size": 2000}, {"task": "translate"}):
        assert from_file.for_data(facts(**change), tmp_path).law == from_file.law
    plans = tuple(make_plan(int(each)) for each in fitted.runs.num_params)
    law = fitted_law(replace(fitted, runs=replace(fitted.runs, plans=plans)))
    assert (law.assumed, law.settings) == ("", Settings.of(plans[0].training))
    assert law.for_data(facts(unique_tokens=10**6), tmp_path).unique_tokens == 10**6
    for change in ({"vocab_size": 2000}, {"task": "translate"}, {"bytes_per_token": 3.0}):
        with pytest.raises(
            DataError, match=r"a law of generate, a vocabulary of 1000, 4\.2 bytes a token; the recipe's"
        ):
            law.for_data(facts(**change), tmp_path)
    faster = plans[0].model_copy(update={"training": plans[0].training.model_copy(update={"learning_rate": 0.5})})
    mixed = fitted_law(replace(fitted, runs=replace(fitted.runs, plans=(*plans[:-1], faster))))
    assert mixed.settings is None and mixed.assumed.startswith("its runs do not tell their training settings: assumed")
