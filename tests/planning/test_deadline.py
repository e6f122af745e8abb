"""Fixed steps that must fit a time: which shapes are quick enough, and what is told where none is."""

import re

import pytest

from chinchilla.config.errors import BudgetError
from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.config.run import Limits, Model
from chinchilla.config.shape import Shape
from chinchilla.planning.by_law import law_plan, sizes_beside
from chinchilla.planning.count import num_params
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.room import Room
from chinchilla.planning.search import Facts, candidates

MACHINE = Machine(
    name="a processor", device="cpu", threads=2, memory_bytes=8 * 10**9, torch_version="2",
    measured_at="2026-01-01T00:00:00+00:00", noise=0.1, bytes_per_s=1e10, op_overhead_s=5e-6, has_compiler=True,
    matmul=(MatmulRate(m=2048, k=256, n=1024, precision="fp32", flops_per_s=1e11),),
)  # fmt: skip
HELP = Facts(
    task="translate", vocab_size=8000, unique_tokens=900_000, num_examples=32_000, mean_source_len=128,
    mean_target_len=128, max_len=128, bytes_per_token=3.5,
)  # fmt: skip
ROOM = Room(8 * 10**9, HELP.batch(2048), "fp32", "adamw", accumulation=2)
TIME_S = 600.0


def left(deadline: Deadline | None, facts: Facts = HELP, fixed: Model | None = None) -> list[Shape]:
    return candidates(facts, MACHINE, Limits(), fixed or Model(), TIME_S, ROOM, deadline)


def within(steps: int) -> Deadline:
    return Deadline(steps, TIME_S, MACHINE, ROOM)


def test_only_shapes_whose_steps_fit_are_left() -> None:
    free, needed = left(None), sorted(within(1).needs(shape) for shape in left(None))
    half = int(TIME_S / needed[len(needed) // 2])
    held = left(within(half))
    assert 0 < len(held) < len(free)
    assert held == [shape for shape in free if half * within(1).needs(shape) <= TIME_S]


def test_few_steps_leave_all() -> None:
    assert left(within(1)) == left(None)
    assert within(1).tokens == 2 * ROOM.batch.loss_rows


def test_the_nearest_number_of_steps_that_is_named_can_be_met() -> None:
    with pytest.raises(BudgetError, match=r"leaves 10m00s for steps, and 1,000,000 \(train\.steps\)") as error:
        left(within(10**6))
    named = re.search(r"set train\.steps=(\d+) or less", str(error.value))
    assert named is not None
    assert left(within(int(named[1]))) and "layers of 128" in str(error.value)
    with pytest.raises(BudgetError):
        left(within(int(named[1]) + 1))


def test_what_not_even_one_step_fits_asks_for_more_time() -> None:
    with pytest.raises(BudgetError, match=r"take about .*: raise it$"):
        candidates(HELP, MACHINE, Limits(), Model(), 600, ROOM, Deadline(5, 1e-6, MACHINE, ROOM))


def test_a_slower_pace_leaves_out_what_missed_the_time() -> None:
    steps = int(TIME_S / within(1).needs(left(None)[-1]))
    shape = left(within(steps))[-1]
    step_s = 1.1 * within(1).needs(shape)
    assert not within(steps).missed(within(1).needs(shape)) and within(steps).missed(step_s)
    slower = within(steps).at(shape, step_s)
    assert slower.needs(shape) == pytest.approx(steps * step_s)
    again = left(slower)
    assert shape not in again and again and all(slower.needs(each) <= TIME_S for each in again)


def test_a_law_keeps_to_shapes_whose_steps_fit() -> None:
    web = Facts(
        task="generate", vocab_size=32_000, unique_tokens=10**12, num_examples=10**9, mean_source_len=0,
        mean_target_len=1024, max_len=1024, bytes_per_token=4.2,
    )  # fmt: skip
    free = law_plan(1e20, web, Model(), Limits()).shape
    room = Room(10**12, web.batch(8192), "fp32", "adamw")
    needs_s = Deadline(1000, 1.0, MACHINE, room).needs(free)
    deadline = Deadline(1000, needs_s / 3, MACHINE, room)
    held = law_plan(1e20, web, Model(), Limits(), machine=MACHINE, deadline=deadline)
    assert num_params(free) / 6 < num_params(held.shape) < num_params(free)
    assert deadline.needs(held.shape) <= needs_s / 3
    assert "within budget.time for train.steps=1000" in held.decisions[0].reason
    beside = sizes_beside(held.shape, web, Model(), Limits(), MACHINE)
    in_time = sizes_beside(held.shape, web, Model(), Limits(), MACHINE, deadline)
    assert in_time and all(deadline.needs(shape) <= needs_s / 3 for shape in in_time)
    assert num_params(beside[-1]) > num_params(held.shape) > num_params(in_time[-1])
