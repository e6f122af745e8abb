"""The tables of fits and sweeps count what the task counts: a classifier's runs saw examples, not tokens."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from reporting_fakes import make_plan, make_shape

from chinchilla.config.errors import DataError
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import LABELS, TaskName
from chinchilla.planning.design import Big, Design, Small
from chinchilla.planning.fit import fit
from chinchilla.planning.identify import require_design, study
from chinchilla.planning.isoflop import envelope
from chinchilla.planning.own_law import OwnLaw, fitted_law
from chinchilla.planning.runs import Runs, make_runs
from chinchilla.reporting.fit_tables import fit_tables
from chinchilla.reporting.sweep_tables import design_table, sweep_tables
from chinchilla.reporting.tables import plain

SMALL = Small(make_shape(128), 1_000_000, 200, 3e6, 3e6, 20.0)


def runs(task: TaskName | None) -> Runs:
    """Runs of a file, or as those of a folder of run folders of a task."""
    n, d = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 3e7, 4), np.geomspace(2e7, 6e8, 4)))
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(16))
    found = make_runs(n, d, (1.7 + 400 / n**0.35 + 1500 / d**0.37) * noise)
    return found if task is None else replace(found, plans=(make_plan().model_copy(update={"task": task}),) * 16)


@pytest.mark.parametrize(
    ("task", "one", "many"),
    [(None, "a token", "tokens"), ("classify_table", "an example", "examples"), ("recommend", "an item", "items")],
)
def test_a_fit_counts_what_its_runs_count(task: TaskName | None, one: str, many: str):
    law = plain(fit_tables(study(runs(task), 60)))
    assert f"nats {one} " in law
    assert many in law
    growth = plain(fit_tables(envelope(runs(task), 60)))
    assert f"of {many}" in growth
    assert ("token" in law + growth) is (one == "a token")


def test_runs_that_would_settle_a_law_are_told_in_what_is_counted():
    few = runs("classify_image")
    few = replace(few.pick(np.arange(16) < 5), plans=few.plans[:5])
    with pytest.raises(DataError, match=r"2 example counts .* × [\d.]+[kM] examples") as caught:
        require_design(few)
    assert "token" not in str(caught.value)


@dataclass(frozen=True)
class Done:
    shape: object
    num_params: int
    steps: int
    tokens: float
    time_s: float
    loss: float


@dataclass(frozen=True)
class Swept:
    runs: tuple[Done, ...]
    law: OwnLaw
    big: Big
    epochs: float = 2.0
    width: float = 0.03
    target_s: float = 60.0


@pytest.mark.parametrize(("task", "counted"), [("translate", "tokens"), ("detect", "boxes")])
def test_a_sweep_counts_what_its_task_counts(task: TaskName, counted: str):
    done = Done(SMALL.shape, 1_000_000, 200, 3e6, 20.0, 3.1)
    size = Estimate.around(2e6, 0.1, "params", "law")
    swept = Swept(
        (done,), fitted_law(fit(runs(None), 120)), Big(SMALL.shape, 6e6, Estimate.around(3, 0.1, "", "law"), size)
    )
    design = plain(design_table(Design((SMALL,), 0.1), LABELS[task]))
    told = plain(sweep_tables(swept, LABELS[task]))
    for text in (design, told):
        assert counted in text
        assert ("tokens" in text) is (counted == "tokens")
    assert told.count(counted) == 2  # the small runs' column and the big run's row
