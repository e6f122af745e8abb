"""What a plan keeps of its choice, by probes and by a law: the chosen shape stands on the front, and files hold it."""

import json

import pytest

from chinchilla.config.plan import Plan
from chinchilla.planning.constants import Constant
from chinchilla.planning.front import objectives, pareto
from chinchilla.planning.latency import answer_time
from chinchilla.planning.repeat import MUENNIGHOFF
from chinchilla.planning.rows import facts_of

SETTINGS = ("task=translate", "train.threads=1", "tokenizer.vocab_size=300", "train.batch_tokens=256", "--json")


@pytest.fixture
def planned(chinchilla, numbers):
    """Plan with settings; give the plan, and what was shown."""

    def run(*words):
        code, out, err = chinchilla("plan", *SETTINGS, f"data.train={numbers / 'train.tsv'}", *words)
        assert code == 0, err
        return Plan.model_validate(json.loads(out.splitlines()[-1])), err

    return run


@pytest.fixture
def lawful(monkeypatch):
    """As if a law held for so few sentences."""
    monkeypatch.setattr("chinchilla.planning.by_law.LEAST_TOKENS", 0)


def on_its_own_front(plan: Plan) -> None:
    found = plan.considered
    assert [each.on_front for each in found] == pareto([objectives(each) for each in found])
    (ours,) = (each for each in found if each.shape == plan.shape)
    assert ours.on_front
    assert (ours.loss, ours.latency_s) == (plan.predicted["loss"], plan.predicted["latency_s"])
    assert ours.memory_bytes == plan.predicted["memory_bytes"]
    for each in found:
        # Less to hold for a smaller one, and the time of an answer by the model for both.
        assert (each.memory_bytes.p50 < ours.memory_bytes.p50) is (each.num_params < ours.num_params)
        times = [answer_time(shape, facts_of(plan).request, plan.machine).total_s for shape in (each.shape, plan.shape)]
        assert each.latency_s.p50 / ours.latency_s.p50 == pytest.approx(times[0] / times[1])


def test_probed_shapes_are_kept_with_the_loss_that_they_were_foretold(planned, monkeypatch):
    # Several shapes for few sentences, in short probes.
    monkeypatch.setattr("chinchilla.verbs.choose.LEAST_PROBE_S", 0.5)
    monkeypatch.setattr("chinchilla.planning.search.MOST_EPOCHS", 10**6)
    monkeypatch.setattr("chinchilla.planning.search.FAR", 10.0)
    fixed = ("model.num_encoder_layers=1", "model.num_decoder_layers=1", "train.steps=20", "budget.time=60")
    plan, shown = planned(*fixed)
    assert {each.shape for each in plan.considered} == {probe.shape for probe in plan.probes}
    assert len(plan.considered) > 1
    on_its_own_front(plan)
    best = min(plan.considered, key=lambda each: each.loss.p50)
    assert best.shape == plan.shape
    assert {each.loss.source for each in plan.considered} == {plan.predicted["loss"].source}
    assert plan.frontier is None
    assert "Plans on the front" in shown
    assert f"Of {len(plan.considered)} shapes for the same budget" in " ".join(shown.split())


def test_a_law_weighs_sizes_beside_its_own(planned, lawful, monkeypatch):
    # As if repeats and excess parameters never wore out: else so few sentences leave nothing to weigh.
    endless = {name: Constant(value=1e9, source="none") for name in ("token_half_life", "param_half_life")}
    monkeypatch.setattr("chinchilla.planning.repeat.MUENNIGHOFF", MUENNIGHOFF.model_copy(update=endless))
    plan, shown = planned("budget.flops=2e18", "model.dim=512", "train.precision=fp32")
    assert len(plan.considered) > 1
    on_its_own_front(plan)
    assert plan.frontier.name == "besiroglu"
    assert plan.frontier.flops[0] < 6 * plan.num_params * plan.predicted["tokens"].p50 < plan.frontier.flops[-1]
    assert {each.loss.source for each in plan.considered} == {"guess"}  # a translation, and far too few sentences
    assert "smaller" in shown


def test_a_text_too_short_to_tell_sizes_apart_takes_the_smallest_as_whatif_does(planned, lawful, numbers, chinchilla):
    words = ("budget.flops=2e18", "model.dim=512", "train.precision=fp32")
    plan, _ = planned(*words)
    assert plan.shape.num_decoder_layers == 512 // 128
    assert plan.considered == ()
    (reason,) = (line.reason for line in plan.decisions if line.name == "model")
    assert "cannot use so many" in reason and "come within 1% of its loss by the law" in reason
    code, out, err = chinchilla("whatif", *SETTINGS, f"data.train={numbers / 'train.tsv'}", *words)
    assert code == 0, err
    (case,) = json.loads(out.splitlines()[-1])["cases"]
    assert case["num_params"] == plan.num_params
    for quantile in ("p10", "p50", "p90"):
        assert case["predicted"]["loss"][quantile] == pytest.approx(getattr(plan.predicted["loss"], quantile), rel=1e-4)


def test_a_shape_that_was_compared_with_none_has_no_front(planned):
    plan, shown = planned("model.dim=128", "train.probes=false", "train.steps=5", "budget.time=60")
    assert plan.considered == ()
    assert "front" not in shown
