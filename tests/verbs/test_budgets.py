"""Budgets in money and energy, limits on latency: what they become, and what is refused, with the nearest there is."""

import json
import re
from pathlib import Path

import contract_data
import pytest

from chinchilla.config.errors import UsageError
from chinchilla.config.load import load_run
from chinchilla.planning.count import num_params
from chinchilla.planning.rows import facts_of
from chinchilla.planning.search import LEAST_SEEN
from chinchilla.store import journal
from chinchilla.store.run_folder import RunFolder
from chinchilla.verbs.plan import plan, timed
from chinchilla.verbs.whatif import HERE, whatif

USAGE, BUDGET = 2, 4
TINY = ("train.threads=1", "tokenizer.vocab_size=300", "train.probes=false", "train.batch_tokens=512")
SHAPE = ("model.dim=32", "model.num_encoder_layers=1", "model.num_decoder_layers=1")


@pytest.fixture
def words(numbers):
    return ["task=translate", f"data.train={numbers / 'train.tsv'}", *TINY]


def cluster(tmp_path, *lines):
    """A cluster file with one node."""
    path = tmp_path / "cluster.toml"
    known = ['name = "here"', 'flops_per_s = { fp32 = "1T", bf16 = "1T" }', 'memory_bytes = "64GB"']
    path.write_text("\n".join(["[[node]]", *known, 'bytes_per_s = "10GB/s"', *lines]), encoding="utf-8")
    return f"cluster.file={path}"


def one(words):
    (case,) = whatif(None, words, [], [HERE])
    return case


def test_a_plan_for_money_is_one_for_the_time_it_buys_and_tells_what_it_costs(words, chinchilla):
    prices = ("machine.price_per_hour=90", "machine.watts=50", "machine.grams_per_kwh=400")
    code, out, err = chinchilla("plan", *words, *SHAPE, "budget.money=0.75", *prices, "limits.latency=10s", "--json")
    assert code == 0, err
    plan = json.loads(out.splitlines()[-1])
    assert plan["budget_time_s"] == pytest.approx(30)
    first = plan["decisions"][0]
    assert (first["name"], first["reason"]) == ("budget", "budget.money: 0.75 at 90 an hour: 30s")
    predicted = plan["predicted"]
    spent_s = plan["planning_time_s"] + predicted["train_time_s"]["p50"]
    assert spent_s == pytest.approx(30, rel=0.1)
    assert predicted["money"]["p50"] == pytest.approx(spent_s * 90 / 3600)
    assert predicted["energy_j"]["p50"] == pytest.approx(spent_s * 50)
    assert predicted["co2_g"]["p50"] == pytest.approx(spent_s * 50 / 3.6e6 * 400)
    assert predicted["latency_s"]["source"] == "measured"
    (model,) = [line for line in plan["decisions"] if line["name"] == "model"]
    assert model["reason"].endswith("; limits.latency 10 s rules out 0 of 1 shapes")


def test_a_plan_keeps_the_facts_that_it_was_made_from(words):
    made, prepared = plan(load_run(None, [*words, *SHAPE, "budget.time=30s"]).run)
    assert facts_of(made) == prepared.facts


@pytest.mark.parametrize("budget", ["budget.time=30s", "train.steps=9", "budget.flops=1e10"])
def test_either_the_clock_or_what_is_seen_is_open(words, budget):
    extra = ["budget.time=30s"] if budget.startswith("train") else []
    made, _ = plan(load_run(None, [*words, *SHAPE, budget, *extra]).run)
    step_s, time_s, seen, flops = (made.predicted[n] for n in ("step_time_s", "train_time_s", "tokens", "flops"))
    ratios = [each.p90 / each.p10 for each in (step_s, time_s, seen)]
    assert flops.p90 == pytest.approx(seen.p90 * made.flops_per_token)
    if budget == "budget.time=30s":
        assert made.fixed == {"train_time_s", "money"}
        assert ratios == pytest.approx([ratios[0], 1.1**2, ratios[0]])
        assert seen.p10 == pytest.approx(seen.p50 * step_s.p50 / step_s.p90)
    else:
        assert made.fixed == {"tokens", "flops"}
        assert 1 < ratios[2] < 1.03 < ratios[1] <= ratios[0]
        assert seen.source == "measured"


@pytest.mark.parametrize("budget", ["budget.time=1h", "budget.flops=1e14"])
def test_what_a_table_has_to_teach_ends_the_run_before_the_budget_does(tmp_path, budget):
    words = [
        "task=classify_table",
        "model.dim=32",
        "model.num_encoder_layers=1",
        "train.threads=1",
        "train.probes=false",
    ]
    words += contract_data.write("classify_table", tmp_path)
    made, prepared = plan(load_run(None, [*words, budget]).run)
    assert made.is_sated and made.fixed == {"tokens", "flops"}
    tokens = made.training.steps * made.tokens_per_step
    assert prepared.facts.most_tokens == LEAST_SEEN <= tokens < LEAST_SEEN + made.tokens_per_step
    assert made.predicted["tokens"].p50 == pytest.approx(tokens)
    assert made.predicted["train_time_s"].p50 < 600
    (line,) = [line for line in made.decisions if line.name == "steps"]
    assert line.reason == "more passes over the data did harm in trials; the budget would hold more"
    case = one([*words, budget])
    assert case.training.steps * case.training.batch_tokens == pytest.approx(tokens, rel=0.1)
    assert case.predicted["time_s"].p90 < 600
    # Steps that are asked for are taken.
    fixed = one([*words, budget, f"train.steps={2 * made.training.steps}"])
    assert fixed.training.steps == 2 * made.training.steps


def test_energy_at_a_power_is_the_time_it_lasts(words, tmp_path):
    run = load_run(None, [*words, "budget.energy=1Wh", cluster(tmp_path, "watts = 120")]).run
    made, (told,) = timed(run)
    assert made.budget.time == pytest.approx(30)
    assert told.reason == "budget.energy: 3.6 kJ at 120 W (datasheet): 30s"
    assert timed(made) == (made, ())


def test_equal_budgets_in_time_money_and_energy_are_one_case(words):
    prices = ["machine.price_per_hour=2", "machine.watts=100"]
    budgets = ("budget.time=30m", "budget.money=1", "budget.energy=50Wh")
    time, money, energy = (one([*words, *SHAPE, *prices, budget]) for budget in budgets)
    assert time.training is not None
    assert money.training == energy.training == time.training
    assert time.predicted["money"].p50 == pytest.approx(1)
    assert time.predicted["energy_j"].p50 == pytest.approx(180_000)


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["budget.money=5"], USAGE, ["budget.money", "machine.price_per_hour"]),
        (["budget.money=5", "machine.price_per_hour=0"], USAGE, ["costs 0", "budget.time"]),
        (["budget.money=1e12", "machine.price_per_hour=1"], USAGE, ["century"]),
        (["budget.energy=2kWh"], USAGE, ["budget.energy", "machine.watts"]),
        (["budget.money=5", "budget.time=1h"], USAGE, ["exactly one of time", "money", "energy"]),
        (["budget.flops=1e40"], USAGE, ["budget.flops", "1,000 times more"]),
        (["budget.time=3652500d"], USAGE, ["budget.time", "century"]),
        (["budget.time=1e-9"], BUDGET, ["budget", "raise"]),
        (["budget.flops=1000"], BUDGET, ["budget.flops", "smallest model", "raise"]),
        (["budget.money=1e-9", "machine.price_per_hour=1"], BUDGET, ["budget", "raise"]),
    ],
)
def test_a_budget_that_means_nothing_is_refused(settings, code, told, words, chinchilla):
    found, out, err = chinchilla("plan", *words, *settings)
    assert (found, out) == (code, "")
    for word in told:
        assert word in err
    assert "Traceback" not in err


def test_of_several_nodes_none_gives_the_price(words, tmp_path):
    two = cluster(tmp_path, "price_per_hour = 3", "[[node]]", 'name = "b"', 'flops_per_s = { fp32 = "1T" }',
                  'memory_bytes = "64GB"', 'bytes_per_s = "10GB/s"', "[[link]]", 'between = ["here", "b"]',
                  'bytes_per_s = "1GB/s"', 'latency_s = "1ms"')  # fmt: skip
    run = load_run(None, [*words, "budget.money=5", two]).run
    with pytest.raises(UsageError, match="only node in the cluster file"):
        timed(run)


def test_a_latency_out_of_reach_names_the_nearest_that_can_be_met_and_then_it_is(words, chinchilla):
    code, _, err = chinchilla("plan", *words, "budget.time=60", "limits.latency=1us")
    assert code == BUDGET
    found = re.search(
        r"fastest model that may be built \(2\+2 layers of 128, vocabulary 300\) takes about (\S+) s", err
    )
    assert found, err
    assert "evaluate.beam_size=1" in err
    case = one([*words, "budget.time=60", f"limits.latency={found[1]}s"])
    assert case.shape is not None
    assert (case.shape.dim, case.shape.num_decoder_layers) == (128, 2)


def test_a_latency_keeps_the_models_small(words, monkeypatch):
    # As if the few sentences were worth more than the smallest model.
    monkeypatch.setattr("chinchilla.planning.search.MOST_EPOCHS", 10**6)
    free = one([*words, "budget.time=20h"])
    held = one([*words, "budget.time=20h", f"limits.latency={free.predicted['latency_s'].p50 / 2}"])
    assert free.shape is not None
    assert held.shape is not None
    assert held.predicted["latency_s"].p50 <= free.predicted["latency_s"].p50 / 2
    assert num_params(held.shape) < num_params(free.shape)


def test_the_time_of_an_answer_and_the_money_are_compared_after_training(train_tiny):
    """Energy is not: nothing counts it."""
    prices = ("machine.price_per_hour=36", "machine.watts=50")
    trained = train_tiny("budget.time=60", "train.steps=5", "train.probes=false", *prices)
    folder = RunFolder.open(Path(trained["run"]))
    lines = {line["name"]: line for line in journal.read(folder.ledger)}
    assert lines["latency_s"]["measured"] == trained["measured"]["latency_s"] > 0
    spent_s = json.loads(folder.plan_json.read_text())["planning_time_s"] + trained["measured"]["train_time_s"]
    assert lines["money"]["measured"] == pytest.approx(spent_s / 100)
    assert set(trained["predicted"]) - set(lines) == {"energy_j"}
