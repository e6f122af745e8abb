"""`chinchilla whatif`: budgets or machines side by side, from laws and rules of thumb alone. Nothing is trained."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from chinchilla.config.errors import BudgetError, UsageError
from chinchilla.config.estimate import Estimate
from chinchilla.config.load import load_run
from chinchilla.config.machine import Machine
from chinchilla.config.plan import FAMILIES, Family, TaskName, Training
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.planning import search
from chinchilla.planning.bounds import bounds
from chinchilla.planning.by_law import law_holds, law_plan
from chinchilla.planning.cost import Tariff, costs, in_time
from chinchilla.planning.count import flops_per_token, num_params
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.latency import answer_time
from chinchilla.planning.laws import BESIROGLU, effective_tokens
from chinchilla.planning.machine import step_time
from chinchilla.planning.pauses import num_steps
from chinchilla.planning.repeat import law_loss
from chinchilla.planning.room import Room
from chinchilla.training.allocator import used_bytes
from chinchilla.training.workers import worker_count
from chinchilla.verbs import layouts
from chinchilla.verbs.choice import CHECKPOINT_SHARE, EVAL_SHARE, GAPS, PEAK_SHARE, most_tokens
from chinchilla.verbs.choose import deadline_for, probe_time
from chinchilla.verbs.draft import draft_training
from chinchilla.verbs.plan import known_tariff, measured_machine
from chinchilla.verbs.prepare import prepare
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.transfer import Start, check_start

Tell = Callable[[str], None]

HERE = "here"
"""The name of this machine among those compared."""

FIRST_TOKENS, FIRST_SHARE = 1e5, 0.69
"""After so many tokens small models of either task stood at this share of chance's loss, log(outputs)."""

FALL: dict[Family, float] = {"encoder-decoder": 0.30, "decoder": 0.105, "encoder": 0.2}
"""Exponent by which it falls with the labels that count from there on: seen with translations and running text
(docs/planning-audit.md), guessed for classes."""

LOSS_SPREAD, SPREAD_A_DECADE, LAST_TOKENS = 0.35, 0.15, 1e7
"""Relative spread of that loss, and what each decade beyond the runs behind it adds."""

MEMORY_SPREAD = 0.3
"""Relative spread of the memory of a run that nothing was probed for."""


@dataclass(frozen=True)
class Case:
    """One column: what sets it apart, what would be trained, and predictions by name; `basis` says what they rest on.

    Where the budget or the limits cannot be met there is no shape and nothing is predicted: `basis` has the reason.
    """

    name: str
    basis: str
    shape: Shape | None
    training: Training | None
    predicted: dict[str, Estimate]


def whatif(
    recipe: Path | None,
    overrides: Sequence[str],
    against: Sequence[str],
    machines: Sequence[str],
    prices: Sequence[float] = (),
    tell: Tell = lambda text: None,
) -> list[Case]:
    """The recipe, and the recipe with each of `against` (settings, several in one text), on each of `machines`.

    A machine is `here` or a file that `chinchilla measure --json` printed; `prices` are money an hour of each.

    Raises:
        UsageError, DataError: settings, files or data that cannot be used.
    """
    if (prices and len(prices) != len(machines)) or any(not (math.isfinite(p) and p >= 0) for p in prices):
        raise UsageError(f"--price: give one for each of {len(machines)} machines, each 0 or more")
    runs = list(_runs(recipe, overrides, against))
    for _, run in runs:
        layouts.read(run)
        _refuse_adapter(run)
        check_start(run)
    others = {text: _read_machine(Path(text)) for text in machines if text != HERE}
    known: dict[Any, Prepared] = {}
    cases = []
    for settings, run in runs:
        # A tokenizer takes longer than everything else here: data are read once for all cases that share them.
        key = _data_of(run)
        known[key] = prepared = known[key] if key in known else prepare(run, tell)
        for number, text in enumerate(machines):
            machine = others[text] if text in others else measured_machine(run, tell)
            name = ", ".join([settings] + ([text] if len(machines) > 1 else []))
            tariff = known_tariff(run, machine) if text == HERE else Tariff(watts=_watts(machine))
            tariff = replace(tariff, price_per_hour=prices[number]) if prices else tariff
            cases.append(_case(name, run, prepared, machine, tariff))
    return cases


def _refuse_adapter(run: Run) -> None:
    if run.adapter is not None:
        raise UsageError(
            "adapter: whatif reckons steps that train every weight, which an adapter's do not: leave [adapter] out, or "
            "let `chinchilla plan` time such steps"
        )


def facts(case: Case) -> dict[str, str]:
    """What is decided, in words: shape, parameters, batch, steps."""
    shape, training = case.shape, case.training
    if shape is None or training is None:
        return {}
    layers = "+".join(str(number) for number in (shape.num_encoder_layers, shape.num_decoder_layers) if number)
    return {
        "model": f"{layers} layers of {shape.dim}",
        "parameters": show_count(num_params(shape)),
        "batch": f"{training.batch_tokens:,} tokens",
        "steps": f"{training.steps:,}",
        "precision": training.precision,
    }


def as_json(case: Case) -> dict[str, Any]:
    """One case as a JSON object."""
    return {
        "name": case.name,
        "basis": case.basis,
        "shape": case.shape and case.shape.model_dump(),
        "num_params": case.shape and num_params(case.shape),
        "training": case.training and case.training.model_dump(),
        "predicted": {name: estimate.model_dump() for name, estimate in case.predicted.items()},
    }


def small_loss(task: TaskName, num_outputs: int, tokens: float, unique: float) -> Estimate:
    """The validation loss of a small model after `tokens` of `unique` different ones, in nats a token: a rule of thumb.

    A power of the tokens that count, from 69 % of chance at 1e5 tokens; the size does not enter.
    """
    worth = max(FIRST_TOKENS, effective_tokens(unique, tokens))
    beyond = max(0.0, math.log10(worth / LAST_TOKENS))
    loss = FIRST_SHARE * math.log(num_outputs) * (worth / FIRST_TOKENS) ** -FALL[FAMILIES[task]]
    return Estimate.around(loss, LOSS_SPREAD + SPREAD_A_DECADE * beyond, "nats/token", "guess")


def _runs(recipe: Path | None, overrides: Sequence[str], against: Sequence[str]) -> Iterator[tuple[str, Run]]:
    yield "as given", load_run(recipe, overrides).run
    for text in against:
        words = _split(text)
        changes_budget = any(word.startswith("budget.") for word in words)
        kept = [word for word in overrides if not (changes_budget and word.startswith("budget."))]
        yield text, load_run(recipe, [*kept, *words]).run


def _data_of(run: Run) -> tuple[Any, ...]:
    """All that encoded data, and what the planner asks of them, depend on."""
    model = run.model.start, run.model.max_len, run.model.attention
    read = run.data, run.tokenizer, run.images, run.noise, run.attack
    return run.task, run.seed, *read, run.adapter, run.evaluate, *model


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--against {text!r}: {error}") from None


def _read_machine(path: Path) -> Machine:
    try:
        return Machine.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--machine: {path}: {error.strerror}; give `{HERE}` or a machine.json") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"--machine: {path}: {place}: {first['msg']}; make it there with `chinchilla measure --json`"
        ) from None


def _watts(machine: Machine) -> Estimate | None:
    return machine.power.watts if machine.power is not None else None


def _case(name: str, run: Run, prepared: Prepared, machine: Machine, tariff: Tariff) -> Case:
    timed = run.model_copy(update={"budget": in_time(run.budget, tariff)[0]})
    try:
        return _predicted(name, timed, prepared, machine, tariff)
    except BudgetError as error:
        return Case(name, f"cannot be met: {error}", None, None, {})


def _predicted(name: str, run: Run, prepared: Prepared, machine: Machine, tariff: Tariff) -> Case:
    peak = PEAK_SHARE * machine.flops_per_s(machine.fastest_precision())
    time_s = run.budget.time or (run.budget.flops or 0) / peak
    flops = run.budget.flops or time_s * peak
    start = prepared.start
    by_law = start is None and law_holds(flops, prepared.facts.unique_tokens)
    useful = _useful(time_s, by_law)
    draft = draft_training(run, machine, prepared, time_s)
    room = _room(run, prepared, machine, draft)
    deadline = deadline_for(run, room, machine, time_s * useful)
    if start is not None:
        shape = _by_start(start, run, prepared, machine, room, deadline)
    elif by_law:
        shape = _by_law(flops, run, prepared, machine, room, deadline)
    else:
        shape = _by_rule(flops, time_s, run, prepared, machine, room, deadline)
    timed_step = step_time(shape, room.batch, machine, draft.precision, draft.optimizer, draft.accumulation)
    step_s = timed_step.estimate()
    step_tokens = room.batch.loss_rows * draft.accumulation
    token_flops = flops_per_token(shape, room.batch)
    most_steps = most_tokens(run, prepared.facts) / step_tokens
    fitting = _steps(run, step_s.p50, step_tokens * token_flops, useful)
    clock_s = None if run.train.steps or fitting > most_steps else run.budget.time
    training = draft.model_copy(update={"steps": math.ceil(min(fitting, most_steps))})
    predicted = {
        **_course(clock_s, training.steps, step_s, step_tokens, token_flops, useful),
        **_loss(shape, training.steps * step_tokens, prepared, by_law),
        "memory_bytes": _memory(shape, room, machine),
        "size_bytes": Estimate.around(4 * num_params(shape), 0.01, "bytes", "measured"),
        "latency_s": answer_time(shape, prepared.facts.request, machine).estimate(),
    }
    predicted |= costs(predicted["time_s"], tariff)
    basis = f"{BESIROGLU.name} law" if by_law else "rules of thumb for small runs and little data"
    if start is not None:
        basis = f"the shape of {start.path}; nothing here says what loss its weights come to"
    timing = "steps measured on" if step_s.source == "measured" else "roofline of"
    fits = "" if room.way(shape) is not None else "; does not fit its memory"
    return Case(name, f"{basis}; {timing} {machine.name}, {machine.threads} threads{fits}", shape, training, predicted)


def _course(
    clock_s: float | None, steps: int, step_s: Estimate, step_tokens: int, token_flops: float, useful: float
) -> dict[str, Estimate]:
    """Time, tokens and FLOPs. A clock that is set leaves the tokens open, and the other way round."""
    tokens = steps * step_tokens
    if clock_s is None:
        time_s, slowest, fastest = _scaled(step_s, steps / useful, "s"), 1.0, 1.0
    else:
        time_s = Estimate.around(clock_s, 0.0, "s", step_s.source)
        slowest, fastest = step_s.p50 / step_s.p90, step_s.p50 / step_s.p10
    seen = Estimate(p10=tokens * slowest, p50=tokens, p90=tokens * fastest, unit="tokens", source=step_s.source)
    return {"step_time_s": step_s, "time_s": time_s, "tokens": seen, "flops": _scaled(seen, token_flops, "FLOP")}


def _scaled(estimate: Estimate, factor: float, unit: str) -> Estimate:
    low, middle, high = (factor * value for value in (estimate.p10, estimate.p50, estimate.p90))
    return Estimate(p10=low, p50=middle, p90=high, unit=unit, source=estimate.source)


def _loss(shape: Shape, tokens: float, prepared: Prepared, by_law: bool) -> dict[str, Estimate]:
    """The loss of a run from nothing. Weights that were taken over have seen other data, of which no law knows."""
    unique = prepared.facts.unique_tokens
    if prepared.start is not None:
        return {}
    if by_law:
        return {"loss": law_loss(BESIROGLU, num_params(shape), tokens, unique)}
    return {"loss": small_loss(prepared.facts.task, shape.num_outputs, tokens, unique)}


def _useful(time_s: float, by_law: bool) -> float:
    """Share of the time that steps take: validations, checkpoints and probes take the rest."""
    return 1 - EVAL_SHARE - CHECKPOINT_SHARE - (0.0 if by_law else probe_time(time_s) / time_s)


def _steps(run: Run, step_s: float, step_flops: float, useful: float) -> int:
    if run.train.steps:
        return run.train.steps
    if run.budget.time is not None:
        return num_steps(run.budget.time * useful, step_s)
    steps = int((run.budget.flops or 0) / step_flops)
    if steps < 1:
        raise BudgetError(f"budget.flops: one step takes {step_flops:.3g} FLOP: raise it or fix a smaller model")
    return steps


def _by_start(
    start: Start, run: Run, prepared: Prepared, machine: Machine, room: Room, deadline: Deadline | None
) -> Shape:
    """The shape of the model to start from; it has no other."""
    shape = start.shape_for(prepared.facts, run.model)
    start.require_within(shape, bounds(prepared.facts.request, machine, run.limits, room, deadline))
    return shape


def _by_law(
    flops: float, run: Run, prepared: Prepared, machine: Machine, room: Room, deadline: Deadline | None
) -> Shape:
    """The law's shape; one too large for the machine stands, unless the recipe limits the memory."""
    shape = law_plan(flops, prepared.facts, run.model, run.limits, machine=machine, deadline=deadline).shape
    if run.limits.memory is not None and room.way(shape) is None:
        raise search.too_little(shape, run.limits, room)
    return shape


def _by_rule(
    flops: float,
    time_s: float,
    run: Run,
    prepared: Prepared,
    machine: Machine,
    room: Room,
    deadline: Deadline | None,
) -> Shape:
    """The shape nearest to the rule of thumb's size, among those that fit."""
    shapes = search.candidates(prepared.facts, machine, run.limits, run.model, time_s, room, deadline)
    facts = prepared.facts
    return search.near(shapes, facts.typical_params(flops), 1)[0]


def _room(run: Run, prepared: Prepared, machine: Machine, draft: Training) -> Room:
    return Room(
        size_bytes=min(run.limits.memory or machine.memory_bytes, machine.memory_bytes) - _process_bytes(machine),
        batch=prepared.facts.batch(draft.batch_tokens / draft.accumulation),
        precision=draft.precision,
        optimizer=draft.optimizer,
        accumulation=draft.accumulation,
        workers=worker_count(draft, torch.device(machine.device)),
        dropout=draft.dropout > 0,
        drop_path=draft.drop_path > 0,
        ema=draft.ema_decay > 0,
        recompute=run.train.recompute,
    )


def _process_bytes(machine: Machine) -> int:
    """What a process like this one, with the data read, holds beside the tensors; nothing of it lies on a GPU."""
    return used_bytes(torch.device("cpu")) if machine.device == "cpu" else 0


def _memory(shape: Shape, room: Room, machine: Machine) -> Estimate:
    tensors = room.peak(shape, room.way(shape) is not False)
    gaps = GAPS if machine.device == "cpu" else 1.0
    return Estimate.around(_process_bytes(machine) + gaps * tensors, MEMORY_SPREAD, "bytes", "guess")
