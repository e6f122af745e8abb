"""Calibration with steps of known cost: the rates come back, the clock is kept to, the machine's file holds them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.parallel import calibrate as room
from chinchilla.parallel.calibrate import Case, Step, Taken, calibrate, cases, clock_of, make_case, time_steps
from chinchilla.planning.count import num_params
from chinchilla.planning.machine import step_time
from chinchilla.planning.step_model import gradient_work, update_work

RATES = {"FLOP": 2e-11, "byte": 3e-10, "number": 2e-9, "logit": 4e-9, "call": 2e-5}
SLOWER = {"newton-schulz bf16": 20}
"""As on a processor that has no bf16 products of its own."""


def known_s(case: Case) -> Taken:
    """What a step of one micro-batch costs on a made-up machine."""
    gradients = gradient_work(case.shape, case.batch, case.precision)
    update = update_work(case.shape, case.optimizer, case.precision)
    return Taken(
        sum(RATES[room.GRADIENT_UNITS[kind]] * amount for kind, amount in gradients.items()),
        sum(RATES[room.UPDATE_UNITS[kind]] * SLOWER.get(kind, 1) * amount for kind, amount in update.items()),
    )


def known_step(case: Case, threads: int, clock: Callable[[], float]) -> Step:
    gradients_s, update_s = known_s(case)
    return lambda: Taken(threads * gradients_s, update_s)


def machine(**changes: object) -> Machine:
    rates = tuple(MatmulRate(m=64, k=64, n=64, precision=p, flops_per_s=1e10) for p in ("fp32", "bf16"))
    settings = {
        "name": "a processor", "device": "cpu", "threads": 1, "memory_bytes": 10**9, "torch_version": "2",
        "measured_at": "2026-01-01T00:00:00+00:00", "noise": 0.1, "matmul": rates, "bytes_per_s": 1e10,
        "op_overhead_s": 5e-6, "has_compiler": False,
    }  # fmt: skip
    return Machine(**settings | changes)


def test_the_models_are_small_and_of_every_kind() -> None:
    every = cases()
    assert {(c.precision, c.optimizer, c.shape.num_encoder_layers > 0) for c in every} == {
        (precision, optimizer, encodes)
        for precision in ("fp32", "bf16")
        for optimizer in ("adamw", "muon")
        for encodes in (False, True)
    }
    assert all(4e5 < num_params(c.shape) < 6e6 for c in every)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_calibrated_machine_foretells_larger_steps(threads: int, precision: str, optimizer: str) -> None:
    known = machine(threads=threads, calibration=calibrate(known_step, "cpu", threads))
    large = make_case(512, (2, 2), 8192, (8, 128), precision, optimizer)
    gradients_s, update_s = known_s(large)
    found = step_time(large.shape, large.batch, known, precision, optimizer, accumulation=3)
    assert found.total_s == pytest.approx(found.waiting * (3 * gradients_s + update_s), rel=1e-3)
    assert found.optimizer_s == pytest.approx(found.waiting * update_s, rel=1e-3)
    assert found.estimate().source == "measured"


def test_the_file_holds_it_and_old_files_are_read() -> None:
    known = machine(calibration=calibrate(known_step))
    told = json.loads(known.model_dump_json())
    assert Machine.model_validate(told) == known
    for new in ("calibration", "compile_time_s", "power"):
        del told[new]
    assert Machine.model_validate(told) == machine()


def test_rounds_end_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow_step(case: Case, threads: int, clock: Callable[[], float]) -> Step:
        def step() -> Taken:
            now[0] += 1.0
            return Taken(1.0, 0.1)

        return step

    monkeypatch.setitem(room.CLOCKS, "cpu", lambda: now[0])
    # One step to set up, then two a round; the third round would begin at 5 s and end at 7.
    for budget_s, rounds in ((100.0, 5), (6.0, 2), (0.0, 2)):
        (timed,) = time_steps(cases()[:1], slow_step, 1, "cpu", rounds=5, budget_s=budget_s)
        assert len(timed.taken) == rounds


def test_the_steps_fit_into_a_minute_where_they_were_recorded() -> None:
    """All that is taken, one step to set up and two a round, at the times of the bench's machine."""
    table = Path(__file__).parents[2] / "bench" / "results" / "step_time.csv"
    with table.open(encoding="utf-8", newline="") as file:
        recorded = [row for row in csv.DictReader(file) if row["set"] == "calibration"]
    told = [(int(row["params"]), row["precision"], row["optimizer"]) for row in recorded]
    assert told == [(num_params(case.shape), case.precision, case.optimizer) for case in cases()]
    once_s = sum(float(row["gradients_s"]) + float(row["update_s"]) for row in recorded)
    assert (1 + 2 * room.ROUNDS) * once_s < room.BUDGET_S < 60


def test_the_clock_is_the_processors_where_one_thread_works() -> None:
    assert clock_of("cpu", 1) == "cpu"
    assert clock_of("cpu", 2) == clock_of("cuda", 1) == "wall"


def test_repeats_count_by_their_median_and_tell_the_noise() -> None:
    turns = iter([9.0, 9.0, 1.0, 9.0, 2.0, 9.0, 1.5])
    (timed,) = time_steps(
        cases()[:1], lambda *_: lambda: Taken(next(turns), 0.0), 1, "cpu", rounds=3, budget_s=1e9
    )  # fmt: skip
    assert timed.gradients_s == 1.5
    assert timed.noise == pytest.approx(1.0)
