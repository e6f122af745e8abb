"""`chinchilla plan`: what to train for the budget, what it will cost, how good it will get, and why."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Decision, Pauses, Plan, Training
from chinchilla.config.run import Run
from chinchilla.config.units import show_time
from chinchilla.data.sources import default_cache
from chinchilla.parallel.measure import cached_measure
from chinchilla.planning import audit, cost, count, search
from chinchilla.planning.adapter_flops import trained_flops_per_token
from chinchilla.planning.adapters import kept_params, trained_params
from chinchilla.planning.interval import Interval, checkpoint_interval
from chinchilla.planning.machine import step_time
from chinchilla.planning.own_law import OwnLaw, read_law
from chinchilla.planning.pauses import fitting_steps, num_steps, paused_time, steps_between
from chinchilla.planning.rows import rows_of
from chinchilla.training.allocator import keep_freed_memory, release_freed_memory, used_bytes
from chinchilla.training.schedule import LEAST_SETTLING, reviews_to_come
from chinchilla.training.trainer import VALID_BATCHES
from chinchilla.verbs import layouts
from chinchilla.verbs.choice import CHECKPOINT_SHARE, EVAL_SHARE, PEAK_SHARE, Choice, most_tokens
from chinchilla.verbs.choose import choose, room_for
from chinchilla.verbs.decisions import decisions
from chinchilla.verbs.draft import draft_training
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.transfer import check_start
from chinchilla.verbs.weighed import with_choice

log = logging.getLogger("chinchilla")

Tell = Callable[[str], None]


MEMORY_SPREAD = 0.05
"""Of a peak that a probe has shown: of 60 runs eight in ten lay within 4 % (docs/planning-audit.md)."""

NEW_PLAN_ABOVE = 0.1
"""Share of the time left that the rest of the steps may leave over before they are planned anew during training."""

COUNTED_SPREAD = 0.01
"""Relative spread of what a number of steps sees: batches are filled a little unevenly."""

WRITE_BYTES_PER_S = 2e8
"""What a checkpoint's writing, hashing and reading back run at: done aside, but on the processors that train."""


def plan(run: Run, tell: Tell = lambda text: None, law: Path | None = None) -> tuple[Plan, Prepared]:
    """Plan a run, and give the prepared data with it. `law` is one of the same data, of a sweep or a fit.

    Raises:
        DataError: data that cannot be used, or that the law is not of.
        UsageError: money or energy without a price or power to reckon with, or a wrong cluster file.
        BudgetError: not even one step fits the budget, or no model fits the limits.
        FaultError: what past runs taught is kept in a damaged file.
    """
    begun = time.perf_counter()
    cluster = layouts.read(run)
    own = None if law is None else known_law(run, law)
    check_start(run)
    run, reckoned = timed(run, tell)
    prepared = prepare(run, tell)
    if law is not None and own is not None:
        own = own.for_data(prepared.facts, law)
    machine = measured_machine(run, tell)
    learnt = audit.load(default_cache(), machine)
    keep_freed_memory()
    time_s = _time_budget(run, machine, begun)
    draft = draft_training(run, machine, prepared, time_s)
    draft = draft if own is None else own.over(draft, run.train)
    layouts.require_rates(cluster, draft.precision)
    _refuse_tiny(time_s, prepared, machine, draft)
    process_bytes = used_bytes(torch.device(machine.device))
    choice = choose(run, prepared, machine, draft, time_s, process_bytes, tell, own)
    release_freed_memory()
    made = assemble(run, prepared, machine, draft, choice, begun)
    made = made.model_copy(update={"decisions": (*reckoned, *made.decisions)})
    made = audit.recalibrated(made, learnt)
    return with_choice(made, choice, prepared.facts, room_for(run, prepared, machine, draft, process_bytes)), prepared


def known_law(run: Run, path: Path) -> OwnLaw:
    """The user's own law for a run.

    Raises:
        DataError: the file has none.
        UsageError: the run leaves a law nothing to decide.
    """
    if run.model.start is not None:
        raise UsageError(f"--law: decides the size, which model.start {run.model.start} fixes: leave one of them out")
    return read_law(path)


def timed(run: Run, tell: Tell = lambda text: None) -> tuple[Run, tuple[Decision, ...]]:
    """The run with money or energy turned into time, and how that was reckoned.

    Raises:
        UsageError: the price or the power of this machine is not known.
    """
    machine = measured_machine(run, tell) if run.budget.energy is not None else None
    budget, reckoned = cost.in_time(run.budget, known_tariff(run, machine))
    if not reckoned:
        return run, ()
    assert budget.time is not None
    told = Decision(name="budget", value=show_time(budget.time), reason=reckoned)
    return run.model_copy(update={"budget": budget}), (told,)


def known_tariff(run: Run, machine: Machine | None) -> cost.Tariff:
    """What this machine costs, draws and emits, as far as recipe, measurement and cluster file tell."""
    power = machine.power if machine is not None else None
    return cost.tariff(run.machine, layouts.read(run), power.watts if power is not None else None)


def measured_machine(run: Run, tell: Tell) -> Machine:
    """This machine as measured, with torch set to the run's number of threads."""
    threads = run.train.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    tell("measuring the machine (kept for the next time)")
    return cached_measure(default_cache(), device="cuda" if torch.cuda.is_available() else "cpu", threads=threads)


def _time_budget(run: Run, machine: Machine, begun: float) -> float:
    """Seconds that may still be spent, more than 0; for a FLOP budget those it is thought to take."""
    if run.budget.time is not None:
        spent_s = time.perf_counter() - begun
        if run.budget.time <= spent_s:
            raise BudgetError(f"budget: reading and encoding the data alone took {show_time(spent_s)}: raise it")
        return run.budget.time - spent_s
    assert run.budget.flops is not None
    return run.budget.flops / (PEAK_SHARE * machine.flops_per_s(machine.fastest_precision()))


def _refuse_tiny(time_s: float, prepared: Prepared, machine: Machine, draft: Training) -> None:
    """Refuse a budget that even a hopeful estimate of the smallest model's step does not fit, before any training."""
    facts = prepared.facts
    if prepared.start is not None:
        return  # a shape that is given has no smaller one to fall back on: its probe tells
    layers = search.depth(facts.family, prepared.run.model, search.LAYERS[0])
    smallest = search.build(facts, prepared.run.model, search.widths(facts)[0], *layers)
    batch = facts.batch(draft.batch_tokens / draft.accumulation)
    step_s = step_time(smallest, batch, machine, draft.precision, draft.optimizer, draft.accumulation).estimate()
    if time_s < step_s.p10:
        fits = f"budget: {show_time(max(time_s, 0))} are left once the data is read"
        if (flops := prepared.run.budget.flops) is not None:
            fits = f"budget.flops: {flops:.3g} FLOP take about {time_s:.2g} s here"
        raise BudgetError(
            f"{fits}, and one step of the smallest model takes about {show_time(step_s.p50)}: raise the budget"
        )


def assemble(run: Run, prepared: Prepared, machine: Machine, draft: Training, choice: Choice, begun: float) -> Plan:
    """The plan of a chosen shape; `begun` is when planning began, by `time.perf_counter`.

    Raises:
        BudgetError: not even one step fits the budget.
    """
    facts, shape = prepared.facts, choice.shape
    batches = prepared.batches(draft)
    tokens_per_step = batches.unique_tokens / batches.num_batches(0) * draft.accumulation
    batch = facts.batch(draft.batch_tokens / draft.accumulation)
    flops_per_token = trained_flops_per_token(shape, prepared.adapter_on(shape), batch)
    elapsed_s = time.perf_counter() - begun
    pauses = _pauses(prepared, draft, choice)
    step_s, step_flops = choice.step_time, tokens_per_step * flops_per_token
    run_s = _run_time(run, step_s.p50, step_flops, elapsed_s)
    saving = checkpoint_interval(pauses.checkpoint_s, run_s, CHECKPOINT_SHARE)
    most = most_tokens(run, facts)
    most_steps = None if math.isinf(most) else math.ceil(most / tokens_per_step)
    training = _scheduled(run, draft, choice, pauses, saving, step_flops, elapsed_s, most_steps)
    tokens = training.steps * tokens_per_step
    clock_s = None if run.train.steps else run.budget.time
    saves = 1 if clock_s is None else 1 + reviews_to_come(0, 0, training)
    sated = training.steps == most_steps
    open_end_s = None if sated else clock_s
    train_time_s = _train_time(training, step_s, paused_time(training, pauses, saves))
    seen, train_time_s = _course(tokens, train_time_s, step_s, facts.labels, open_end_s)
    memory_bytes = _memory(choice, machine)
    num_params = count.num_params(shape) + kept_params(shape, run.adapter)
    return Plan(
        task=run.task,
        shape=shape,
        training=training,
        num_params=num_params,
        flops_per_token=flops_per_token,
        unique_tokens=facts.unique_tokens,
        tokens_per_step=tokens_per_step,
        bytes_per_token=facts.bytes_per_token,
        machine=machine,
        predicted={
            "step_time_s": step_s,
            "train_time_s": train_time_s,
            "tokens": seen,
            "loss": choice.predict_loss(tokens),
            "memory_bytes": memory_bytes,
            "size_bytes": Estimate.around(4 * num_params, 0.01, "bytes", "measured"),
            "flops": seen.scaled(flops_per_token, "FLOP"),
            "latency_s": choice.answer_on(machine, facts.request).estimate(),
            **cost.costs(cost.later(train_time_s, elapsed_s), known_tariff(run, machine)),
        },
        decisions=tuple(decisions(run, prepared, machine, training, choice, saving, tokens, sated, memory_bytes)),
        probes=choice.probes,
        rows=rows_of(facts),
        pauses=pauses,
        planning_time_s=elapsed_s,
        budget_time_s=clock_s,
        budget_flops=run.budget.flops,
        most_steps=most_steps,
    )


def _memory(choice: Choice, machine: Machine) -> Estimate:
    """What the process holds now, and what training takes beside it."""
    needs = used_bytes(torch.device(machine.device)) + choice.needs_bytes
    if choice.probes:
        return Estimate.around(needs, MEMORY_SPREAD, "bytes", "measured")
    return Estimate.around(needs, 0.3, "bytes", "guess")


def _pauses(prepared: Prepared, draft: Training, choice: Choice) -> Pauses:
    """As measured where there was a probe; else a validation's batches take a third of a training step's time."""
    valid_batches = min(VALID_BATCHES, prepared.valid_batches(draft).num_batches(0))
    thought_s = valid_batches * choice.step_time.p50 / draft.accumulation / 3
    adapter = prepared.adapter_on(choice.shape)
    saved = count.num_params(choice.shape) if adapter is None else trained_params(choice.shape, adapter)
    return Pauses(
        eval_s=thought_s if choice.eval_time_s is None else choice.eval_time_s,
        checkpoint_s=5 * 4 * saved / WRITE_BYTES_PER_S,
    )


def _train_time(training: Training, step_time_s: Estimate, paused_s: float) -> Estimate:
    """Steps, and the pauses for validations and checkpoints."""
    low, middle, high = (
        paused_s + training.steps * value for value in (step_time_s.p10, step_time_s.p50, step_time_s.p90)
    )
    return Estimate(p10=low, p50=middle, p90=high, unit="s", source=step_time_s.source)


def _course(
    tokens: float, train_time_s: Estimate, step_s: Estimate, unit: str, clock_s: float | None
) -> tuple[Estimate, Estimate]:
    """What is seen, and how long it takes. A clock that is set leaves the tokens open; else it is the other way round.

    A run that the clock bounds plans its steps anew where they would exceed it, or fall short by `NEW_PLAN_ABOVE`.
    """
    if clock_s is None:
        return Estimate.around(tokens, COUNTED_SPREAD, unit, "measured"), train_time_s
    slowest, fastest = step_s.p50 / step_s.p90, step_s.p50 / step_s.p10
    seen = Estimate(p10=tokens * slowest, p50=tokens, p90=tokens * fastest, unit=unit, source=step_s.source)
    return seen, Estimate.around(train_time_s.p50, NEW_PLAN_ABOVE, "s", step_s.source)


def _run_time(run: Run, step_s: float, step_flops: float, elapsed_s: float) -> float:
    """Seconds that training is going to take, at least one step's."""
    if run.train.steps:
        return run.train.steps * step_s
    if run.budget.time is not None:
        return max(step_s, run.budget.time - elapsed_s)
    return max(1.0, (run.budget.flops or 0) / step_flops) * step_s


def _scheduled(
    run: Run,
    draft: Training,
    choice: Choice,
    pauses: Pauses,
    saving: Interval,
    step_flops: float,
    elapsed_s: float,
    most_steps: int | None,
) -> Training:
    """The draft with the steps that fit the budget, and the intervals between validations and checkpoints."""
    step_s = choice.step_time.p50
    eval_every = run.train.eval_every or steps_between(pauses.eval_s, step_s, EVAL_SHARE)
    checkpoint_every = run.train.checkpoint_every or max(1, math.ceil(saving.time_s / step_s))
    if run.train.steps:
        steps = run.train.steps
    elif run.budget.time is not None:
        steps = _filling(run.budget.time - elapsed_s, step_s, pauses, draft, eval_every, checkpoint_every)
    else:
        steps = int((run.budget.flops or 0) / step_flops)
        if steps < 1:
            raise BudgetError(f"budget.flops: one step takes {step_flops:.3g} FLOP: raise it or fix a smaller model")
    steps = min(steps, most_steps or steps)
    return draft.model_copy(
        update={
            "compile": choice.compile,
            "recompute": choice.recompute,
            "steps": steps,
            "warmup_steps": min(draft.warmup_steps, max(1, steps // 10)),
            "eval_every": run.train.eval_every or min(steps, max(eval_every, steps // 10)),
            "checkpoint_every": run.train.checkpoint_every or min(steps, checkpoint_every),
            "log_every": max(1, steps // 200),
        }
    )


def _filling(
    time_s: float, step_s: float, pauses: Pauses, draft: Training, eval_every: int, checkpoint_every: int
) -> int:
    """Steps that fill the time: they also wait for the checkpoints of the moments when the plan meets the clock.

    So few that it never does may still fit where more would not.
    """
    every = {"eval_every": eval_every, "checkpoint_every": checkpoint_every}
    alone = num_steps(time_s, step_s, pauses, **every)
    reviews = reviews_to_come(0, 0, draft.model_copy(update={"steps": alone}))
    return max(fitting_steps(time_s, step_s, pauses, **every, saves=1 + reviews), min(alone, LEAST_SETTLING))
