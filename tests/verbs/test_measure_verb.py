"""`chinchilla measure`: real steps timed for the planner, and a table that says what rests on what."""

import time

import pytest

from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Calibration, Machine, Power, StepTerm
from chinchilla.parallel.calibrate import make_case
from chinchilla.reporting.machine_tables import machine_table
from chinchilla.reporting.tables import plain
from chinchilla.verbs.measure import make_step


@pytest.mark.parametrize(("layers", "precision", "optimizer"), [((0, 1), "fp32", "muon"), ((1, 1), "bf16", "adamw")])
def test_a_step_of_the_trainer_is_timed_in_two_parts(layers: tuple[int, int], precision: str, optimizer: str) -> None:
    step = make_step(make_case(32, layers, 128, (2, 16), precision, optimizer), 1, time.process_time)
    begun = time.process_time()
    taken = [step() for _ in range(2)]
    spent_s = time.process_time() - begun
    assert min(min(each) for each in taken) > 0
    assert sum(map(sum, taken)) <= spent_s


def test_the_table_says_that_step_times_are_a_guess(small_machine: Machine) -> None:
    assert "by the roofline, a guess" in plain(machine_table(small_machine))


def test_the_table_shows_the_fit_and_where_power_comes_from(small_machine: Machine) -> None:
    terms = (StepTerm(kind="products", unit="FLOP", unit_s=2e-11), StepTerm(kind="operators", unit="call", unit_s=0.0))
    known = Calibration(
        precision="fp32", gradients=terms, update=(), spread=0.07, update_spread=0.1, clock="cpu", waiting=2.5,
        noise=0.2, num_models=10, most_params=5_000_000, measured_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    power = Power(watts=Estimate.around(8.0, 1.0, "W", "guess"), how="declared")
    shown = plain(machine_table(small_machine.model_copy(update={"calibration": (known,), "power": power})))
    assert "5e+10" in shown
    assert "free" in shown
    assert "declared, a guess" in shown
    assert "fitted to 10 models' steps" in shown
    assert "roofline" not in shown
