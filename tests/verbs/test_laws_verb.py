"""`chinchilla laws`: what is listed, what one law says, and what is refused."""

import json

import pytest

from chinchilla.planning.catalogue import DEFAULTS, entries
from chinchilla.planning.forms import FORMS
from chinchilla.planning.laws import BESIROGLU
from chinchilla.verbs.laws import BUDGETS, laws


@pytest.mark.parametrize("entry", entries().values(), ids=list(entries()))
def test_every_constant_has_source_tag_and_uncertainty_where_one_is_known(entry):
    if entry.name in FORMS:
        assert not entry.constants
        return
    for constant in entry.constants.values():
        assert constant.tag in ("verified", "paper", "memory")
        assert "20" in constant.source
        if constant.interval is not None and None not in constant.interval:
            assert constant.interval[0] < constant.value < constant.interval[1]


def test_no_default_rests_on_memory_and_every_default_has_a_range():
    for name in DEFAULTS:
        entry = entries()[name]
        assert {constant.tag for constant in entry.constants.values()} == {"verified"}
        assert entry.ranges


def test_the_list_shows_every_law_and_no_half_life_without_its_interval(chinchilla):
    code, out, _ = chinchilla("laws")
    assert code == 0
    for name in entries():
        assert name in out, name
    lines = [line for line in out.splitlines() if "15.3878" in line]
    assert lines and all("5.1 - unbounded" in line for line in lines)


@pytest.mark.parametrize("name", [name for name in entries() if name not in FORMS])
def test_a_law_says_something_for_each_budget_as_estimates(name):
    found = laws(name)
    assert [entry.name for entry in found.entries] == [name]
    assert len(found.sayings) == len(BUDGETS)
    for saying in found.sayings:
        assert saying.predictions
        for estimate in saying.predictions.values():
            assert estimate.p10 <= estimate.p50 <= estimate.p90
            assert estimate.unit or "rate" in "".join(saying.predictions)


def test_json_is_one_object_with_the_optimum(chinchilla):
    code, out, _ = chinchilla("laws", "besiroglu", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["laws"][0]["constants"]["alpha"]["tag"] == "verified"
    assert told["laws"][0]["default"] is True
    said = dict(zip(BUDGETS, told["says"], strict=True))[1e21]
    assert said["predicted"]["parameters"]["p50"] == pytest.approx(BESIROGLU.optimum(1e21)[0])
    assert said["predicted"]["parameters"]["source"] == "law"
    assert "hoffmann-rounded" in told["refused"]


@pytest.mark.parametrize("name", FORMS)
def test_a_form_asks_for_runs_and_says_no_number(chinchilla, name):
    code, out, _ = chinchilla("laws", name, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["says"] == []
    assert "of your own" in told["asks"]


@pytest.mark.parametrize(
    ("name", "told"),
    [("hoffmann-rounded", "59 to 93"), ("kaplan", "memory"), ("besirogl", "did you mean 'besiroglu'"), ("x", "no law")],
)
def test_what_there_is_not_is_refused_with_the_reason(chinchilla, name, told):
    code, out, err = chinchilla("laws", name)
    assert code == 2
    assert out == ""
    assert told in err
