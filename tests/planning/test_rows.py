"""What a plan keeps of the facts that it was made from, and plans that kept nothing."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from chinchilla.config.plan import Plan
from chinchilla.planning.rows import facts_of, rows_of
from chinchilla.planning.search import Facts

FIRST = Path(__file__).with_name("first_plan.json")
"""A plan of 22 November 2026, before plans kept their rows, with fewer rates and decisions."""


def first_plan() -> Plan:
    return Plan.model_validate_json(FIRST.read_text("utf-8"))


def test_a_plan_from_before_rows_were_kept_still_loads() -> None:
    plan = first_plan()
    assert plan.rows is None
    assert facts_of(plan) is None
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


COUNTS, SHARES = st.integers(1, 10**12), st.floats(0, 0.9)


@given(
    st.builds(
        Facts, task=st.just("translate"), vocab_size=st.just(4000), unique_tokens=COUNTS, num_examples=COUNTS,
        mean_source_len=st.floats(1, 1024), mean_target_len=st.floats(1, 1024), max_len=st.integers(1, 1024),
        bytes_per_token=st.floats(1, 10), padding=SHARES, beam_size=st.integers(1, 16),
    )
)  # fmt: skip
def test_what_a_plan_keeps_gives_the_facts_back(facts: Facts) -> None:
    changes = {"unique_tokens": facts.unique_tokens, "bytes_per_token": facts.bytes_per_token, "rows": rows_of(facts)}
    kept = first_plan().model_copy(update=changes).model_dump_json()
    assert facts_of(Plan.model_validate_json(kept)) == facts


def test_every_fact_is_kept() -> None:
    """A fact that is not in a plan could not be read back."""
    plan = {"task", "vocab_size", "unique_tokens", "bytes_per_token", "num_classes", "stem", "boxes"}
    rows = set(rows_of(Facts(**dict.fromkeys(Facts.model_fields, 1) | {"task": "generate", "stem": None})).model_dump())
    assert set(Facts.model_fields) == plan | rows
