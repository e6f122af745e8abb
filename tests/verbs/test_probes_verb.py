"""What a plan says of the shape that it took."""

import json
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import contract_data
import pytest

from chinchilla.config.errors import BudgetError
from chinchilla.config.estimate import Estimate
from chinchilla.config.load import load_run
from chinchilla.planning.count import num_params
from chinchilla.planning.machine import step_time
from chinchilla.verbs import probes
from chinchilla.verbs.choice import Choice
from chinchilla.verbs.choose import LEAST_PROBE_S, MOST_CANDIDATES, MOST_PROBE_S, PROBE_SHARE, probe_time
from chinchilla.verbs.draft import LEARNING_RATE
from chinchilla.verbs.plan import plan
from chinchilla.verbs.whatif import HERE, whatif


@pytest.mark.parametrize(("block_s", "tried"), [(None, True), (30.0, True), (90.0, False)])
def test_compiling_is_tried_where_it_may_earn_back_what_a_block_took_here(monkeypatch, small_machine, block_s, tried):
    """An hour gains 327 s by 1.1 times; two kinds of blocks cost 60 s by the rule of thumb, or twice a block's time."""
    shape = SimpleNamespace(num_encoder_layers=2, num_decoder_layers=2)
    prepared = SimpleNamespace(run=SimpleNamespace(train=SimpleNamespace(compile=None)))
    machine = small_machine.model_copy(update={"has_compiler": True, "compile_time_s": block_s})

    class TriedError(Exception):
        pass

    def compiling(*given):
        raise TriedError

    monkeypatch.setattr(probes, "_candidate", compiling)
    monkeypatch.setattr(probes, "_name", lambda shape: "")
    best = SimpleNamespace(shape=shape, trainer=MagicMock())
    asked = probes.Question(prepared, machine, MagicMock(), 3600.0, None, None, lambda text: None)
    if tried:
        with pytest.raises(TriedError):
            probes._compiled(best, asked, 3600.0)
    else:
        told = "it gains about 327 s and costs about 180 s, a block's measured time"
        assert probes._compiled(best, asked, 3600.0) == (None, told)


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        (["model.dim=128"], r"^of \d+ shapes the nearest to the rule of thumb's size"),
        (["model.dim=128", "model.num_encoder_layers=2", "model.num_decoder_layers=2"], "the one shape that fits"),
    ],
    ids=["of several", "the only one"],
)
def test_a_shape_that_was_compared_with_none_is_told_so(chinchilla, numbers, fixed, said):
    words = ["task=translate", f"data.train={numbers / 'train.tsv'}", "budget.time=60", "train.threads=1"]
    words += ["tokenizer.vocab_size=300", "train.probes=false", "train.steps=5", "--json"]
    code, out, err = chinchilla("plan", *words, *fixed)
    assert code == 0, err
    (model,) = [line for line in json.loads(out.splitlines()[-1])["decisions"] if line["name"] == "model"]
    assert re.search(said, model["reason"])


def test_more_epochs_than_were_ever_measured_are_told(chinchilla, numbers):
    words = ["task=translate", f"data.train={numbers / 'train.tsv'}", "train.threads=1", "tokenizer.vocab_size=300"]
    words += ["model.dim=32", "model.num_encoder_layers=1", "model.num_decoder_layers=1", "train.batch_tokens=512"]
    words += ["train.compile=false"]  # so long a run is worth compiling on slow machines: not what is asked here
    code, out, err = chinchilla("plan", *words, "budget.flops=1e13", "train.steps=50000", "--json")
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    assert made["predicted"]["tokens"]["p50"] > 60 * made["unique_tokens"]
    (seen,) = [line["reason"] for line in made["decisions"] if line["name"] == "tokens"]
    assert re.match(r"[\d.]+k? epochs of .*; what repeats teach was measured up to 60, with texts", seen)


TEN_MINUTES = ["task=translate", "train.threads=1", "tokenizer.vocab_size=300", "budget.time=10m"]


@pytest.fixture
def measured(monkeypatch):
    """Steps that take `factor` of the model's seconds where they are probed; the shapes of each round, and the choice.

    Nothing is run, and the plan ends with the choice.
    """
    found = SimpleNamespace(factor=1.0, rounds=[], choice=None)

    def probing(question, shapes, probe_s):
        found.rounds.append(list(shapes))
        found.probe_s = probe_s
        shape, draft = shapes[-1], question.draft
        batch = question.prepared.facts.batch(draft.batch_tokens / draft.accumulation)
        model = step_time(shape, batch, question.machine, draft.precision, draft.optimizer, draft.accumulation).total_s
        return Choice(
            shape, False, False, Estimate.around(found.factor * model, 0.1, "s", "measured"), 10**6, (), "", "", "", (),
            None, None, 1, None,
        )  # fmt: skip

    def chosen(run, prepared, machine, draft, choice, begun):
        found.choice = choice
        raise BudgetError("far enough")

    # As if the few sentences were worth more than the smallest model.
    monkeypatch.setattr("chinchilla.planning.search.MOST_EPOCHS", 10**6)
    monkeypatch.setattr("chinchilla.verbs.choose.by_probes", probing)
    monkeypatch.setattr("chinchilla.verbs.plan.assemble", chosen)
    return found


def test_probes_take_no_longer_than_runs_that_the_data_ends(measured, tmp_path):
    """However large the budget: a shape that is tried needs no more than its whole run."""
    words = [*contract_data.write("classify_table", tmp_path), "task=classify_table", "train.threads=1"]
    with pytest.raises(BudgetError, match="far enough"):
        plan(load_run(None, [*words, "budget.time=12h", "model.dim=64", "model.num_encoder_layers=2"]).run)
    assert MOST_CANDIDATES * LEAST_PROBE_S <= measured.probe_s < MOST_PROBE_S < PROBE_SHARE * 12 * 3600
    assert probe_time(4 * 3600, run_s=10.0) == MOST_CANDIDATES * 10
    assert probe_time(3600) == PROBE_SHARE * 3600
    assert probe_time(24 * 3600) == probe_time(48 * 3600) == MOST_PROBE_S


def choose(measured, numbers, *settings):
    measured.rounds.clear()
    with pytest.raises(BudgetError, match="far enough"):
        plan(load_run(None, [*TEN_MINUTES, f"data.train={numbers / 'train.tsv'}", *settings]).run)
    return measured.choice


def test_text_shorter_than_any_behind_a_law_is_probed_whatever_the_budget(measured, numbers):
    """And takes the shape that whatif takes, at the rates of small runs."""
    words = ["task=translate", f"data.train={numbers / 'train.tsv'}", "train.threads=1", "tokenizer.vocab_size=300"]
    words += ["budget.flops=2e18", "train.probes=false"]
    with pytest.raises(BudgetError, match="far enough"):
        plan(load_run(None, words).run)
    assert [measured.choice.shape] == measured.rounds[0]
    assert measured.choice.law is None
    (case,) = whatif(None, words, [], [HERE])
    assert case.shape == measured.choice.shape
    assert case.training.learning_rate == LEARNING_RATE


def test_fixed_steps_choose_the_largest_model_that_gets_through_them(measured, numbers):
    free = choose(measured, numbers)
    step_s = free.step_time.p50
    assert choose(measured, numbers, f"train.steps={int(400 / step_s)}").shape == free.shape
    steps = int(1000 / step_s)
    held = choose(measured, numbers, f"train.steps={steps}")
    assert len(measured.rounds) == 1
    assert num_params(held.shape) < num_params(free.shape)
    assert steps * held.step_time.p50 <= 600
    # None that is larger would have been in time, but for the shares of validations, checkpoints and probes.
    larger = [shape for shape in measured.rounds[0] if num_params(shape) > num_params(held.shape)]
    assert not larger


def test_steps_that_turn_out_too_slow_are_planned_again_for_a_smaller_model(measured, numbers):
    steps = int(500 / choose(measured, numbers).step_time.p50)
    quick = choose(measured, numbers, f"train.steps={steps}")
    measured.factor = 2.0
    slow = choose(measured, numbers, f"train.steps={steps}")
    assert len(measured.rounds) > 1 and all(len(shapes) == 1 for shapes in measured.rounds[1:])
    assert num_params(slow.shape) < num_params(quick.shape)
    assert steps * slow.step_time.p50 <= 600


def test_fixed_steps_that_no_model_gets_through_are_refused_with_those_that_one_does(measured, numbers):
    measured.factor = 2.0
    words = [*TEN_MINUTES, f"data.train={numbers / 'train.tsv'}", "model.dim=128", "train.steps=100000"]
    with pytest.raises(
        BudgetError, match=r"and 100,000 \(train\.steps\) of the quickest model .* set train\.steps=\d+ "
    ):
        plan(load_run(None, words).run)
    assert measured.rounds == []


def test_of_probed_shapes_only_those_whose_steps_fit_the_time_go_on():
    """However good the others look; and where none is quick enough the quickest is looked at again."""
    alive = [SimpleNamespace(roofline_s=seconds) for seconds in (1.0, 2.0, 3.0)]
    deadline = SimpleNamespace(missed=lambda step_s: step_s > 4.0)
    assert probes._timely(alive, ["a", "b", "c"], 2.0, deadline) == ["a", "b"]
    assert probes._timely(alive, ["a", "b", "c"], 5.0, deadline) == ["a"]
    assert probes._timely(alive, ["a", "b", "c"], 5.0, None) == ["a", "b", "c"]
