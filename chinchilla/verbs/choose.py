"""Choose a shape: by a published law where one holds, by one of the user's own, by short probe runs below."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from chinchilla.config.machine import Machine
from chinchilla.config.plan import Training
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.planning import front, halving, search
from chinchilla.planning.bounds import bounds
from chinchilla.planning.by_law import law_holds, law_plan, sizes_beside
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.design import Big, best_shape
from chinchilla.planning.hparams import Advice
from chinchilla.planning.laws import BESIROGLU
from chinchilla.planning.machine import step_time
from chinchilla.planning.own_law import OwnLaw
from chinchilla.planning.room import Room
from chinchilla.training.workers import worker_count
from chinchilla.verbs.choice import CHECKPOINT_SHARE, EVAL_SHARE, GAPS, PEAK_SHARE, Choice, most_tokens, prior_for
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.probes import LEAST_PROBE_S, Question, by_probes
from chinchilla.verbs.transfer import Start, told

log = logging.getLogger("chinchilla")

PROBE_SHARE = 0.08
"""Share of a time budget that probe runs may take."""

MOST_CANDIDATES = 5
MOST_PROBE_S = 1200.0


def choose(
    run: Run,
    prepared: Prepared,
    machine: Machine,
    draft: Training,
    time_s: float,
    process_bytes: int,
    tell: Callable[[str], None],
    own: OwnLaw | None = None,
) -> Choice:
    """The shape to train for `time_s` seconds; `process_bytes` is what the process holds before.

    A law of the user's own decides at any budget; its choice is only timed. Where fixed steps of what was chosen turn
    out not to fit the time, what is left is chosen among at the pace that was measured.

    Raises:
        BudgetError: no shape fits the limits, or the fixed steps of none fit the time.
    """
    room = room_for(run, prepared, machine, draft, process_bytes)
    steps_s = time_s * (1 - EVAL_SHARE - CHECKPOINT_SHARE) - probe_time(time_s)
    deadline = deadline_for(run, room, machine, steps_s)
    question = Question(prepared, machine, draft, time_s, room, deadline, tell)
    choice = _chosen(question, own)
    while question.deadline is not None and question.deadline.missed(choice.step_time.p50):
        question = replace(question, deadline=question.deadline.at(choice.shape, choice.step_time.p50))
        choice = _chosen(question, own)
    return choice


def probe_time(time_s: float, run_s: float = math.inf) -> float:
    """Seconds of a time budget that probe runs may take, for a run of `run_s`: none need be longer than that."""
    return min(PROBE_SHARE * time_s, MOST_PROBE_S, MOST_CANDIDATES * max(LEAST_PROBE_S, run_s))


def filled_time(shape: Shape, prepared: Prepared, machine: Machine, draft: Training) -> float:
    """Seconds, by the model of a step's time, until the data has been seen as often as it is worth."""
    step_s, step_tokens = _thought_step(shape, prepared, machine, draft)
    return step_s * most_tokens(prepared.run, prepared.facts) / step_tokens


def deadline_for(run: Run, room: Room, machine: Machine, time_s: float) -> Deadline | None:
    """The `time_s` seconds that steps may take, where the recipe fixes both steps and time."""
    if run.train.steps is None or run.budget.time is None:
        return None
    return Deadline(run.train.steps, time_s, machine, room)


def _chosen(question: Question, own: OwnLaw | None) -> Choice:
    """The shape to train; of several in reach one is timed only, where a `deadline` has been missed before."""
    prepared, machine, draft, time_s = question.prepared, question.machine, question.draft, question.time_s
    run, deadline = prepared.run, question.deadline
    if prepared.start is not None:
        return _by_start(prepared.start, question)
    flops = run.budget.flops or time_s * PEAK_SHARE * machine.flops_per_s(draft.precision)
    if own is None and law_holds(flops, prepared.facts.unique_tokens):
        return _by_law(flops, question)
    shapes = search.candidates(prepared.facts, machine, run.limits, run.model, time_s, question.room, deadline)
    shapes = [shape.model_copy(update={"reconstruct": draft.reconstruct_weight > 0}) for shape in shapes]
    wanted = prepared.facts.typical_params(flops)
    (typical,) = search.near(shapes, wanted, 1)
    probe_s = probe_time(time_s, filled_time(typical, prepared, machine, draft))
    first = deadline is None or deadline.pace == 1
    most = _affordable(probe_s) if run.train.probes and first else 1
    bought = within_reach(shapes, prepared, machine, draft, time_s)
    if deadline is not None:
        bought = [(shape, deadline.tokens) for shape in shapes]
    advised = None if own is None else best_shape(own, bought)
    fitting = len(shapes)
    shapes = [advised.shape] if advised else search.near(shapes, wanted, most)
    choice = by_probes(question, shapes, probe_s)
    if advised is None and len(shapes) == 1 < fitting:
        reason = (
            f"of {fitting} shapes the nearest to the rule of thumb's size, compared with none; timed in a short probe"
        )
        held = f"; each gets through {deadline.steps:,} steps in time" if deadline is not None else ""
        return replace(choice, reason=reason + held)
    if own is None or advised is None:
        return choice
    sizes = f"{show_count(advised.num_params.p10)} to {show_count(advised.num_params.p90)}"
    assumed = f"; {own.assumed}" if own.assumed else ""
    reason = f"best by your own law ({sizes} parameters do about as well){assumed}; timed in a short probe"
    return replace(choice, own=own, reason=reason, rivals=front.by_own_law(own, bought, advised.shape))


def _by_start(start: Start, question: Question) -> Choice:
    """The shape of the model to start from, which is only timed.

    Raises:
        BudgetError: it does not fit the limits or the memory, or its fixed steps the time.
    """
    prepared, machine, draft, room = question.prepared, question.machine, question.draft, question.room
    run = prepared.run
    shape = start.shape_for(prepared.facts, run.model)
    shape = shape.model_copy(update={"reconstruct": draft.reconstruct_weight > 0})
    start.require_within(shape, bounds(prepared.facts.request, machine, run.limits, room, question.deadline))
    probe_s = probe_time(question.time_s, filled_time(shape, prepared, machine, draft))
    choice = by_probes(question, [shape], probe_s)
    reason = f"as {start.path}, of which it takes {told(start, shape)}; timed in a short probe"
    return replace(choice, reason=reason, rate_reason=_gentle(start, run))


def _gentle(start: Start, run: Run) -> str:
    """Why a start is trained at its rate."""
    if run.adapter is not None:
        return "an adapter's, whatever it stands beside; tried on small talk (docs/adapters.md)"
    if start.is_own:
        return "a guess, a tenth of what trains such models from nothing: to forget little"
    return "as models from elsewhere are usually tuned (Devlin 2018, A.3), at few labels a step: to forget little"


def big_run(
    own: OwnLaw,
    shapes: list[Shape],
    prepared: Prepared,
    machine: Machine,
    draft: Training,
    time_s: float,
    pace: float = 1.0,
) -> Big:
    """What an own law advises among `shapes` for `time_s` of training, at `pace` seconds for each of the model's."""
    return best_shape(own, within_reach(shapes, prepared, machine, draft, time_s / pace))


def within_reach(
    shapes: list[Shape], prepared: Prepared, machine: Machine, draft: Training, time_s: float
) -> list[tuple[Shape, float]]:
    """Each shape with the labelled tokens that it gets through in `time_s` seconds, by the model of a step's time."""
    most, options = most_tokens(prepared.run, prepared.facts), []
    for shape in shapes:
        step_s, step_tokens = _thought_step(shape, prepared, machine, draft)
        options.append((shape, min(time_s / step_s * step_tokens, most)))
    return options


def _thought_step(shape: Shape, prepared: Prepared, machine: Machine, draft: Training) -> tuple[float, int]:
    """Seconds of a step by the model of its time, and its labelled tokens."""
    batch = prepared.facts.batch(draft.batch_tokens / draft.accumulation)
    timed = step_time(shape, batch, machine, draft.precision, draft.optimizer, draft.accumulation)
    return timed.total_s, batch.loss_rows * draft.accumulation


def room_for(run: Run, prepared: Prepared, machine: Machine, draft: Training, process_bytes: int) -> Room:
    """The memory there is for training as the draft says."""
    device = torch.device(machine.device)
    return Room(
        size_bytes=min(run.limits.memory or machine.memory_bytes, machine.memory_bytes) - process_bytes,
        batch=prepared.facts.batch(draft.batch_tokens / draft.accumulation),
        precision=draft.precision,
        optimizer=draft.optimizer,
        accumulation=draft.accumulation,
        workers=worker_count(draft, device),
        dropout=draft.dropout > 0,
        drop_path=draft.drop_path > 0,
        ema=draft.ema_decay > 0,
        recompute=run.train.recompute,
        adapter=run.adapter,
    )


def law_advice(run: Run, prepared: Prepared, machine: Machine, flops: float) -> Advice | None:
    """Learning rate and batch by the Step Law, where budget and data are such that a law holds."""
    if not law_holds(flops, prepared.facts.unique_tokens):
        return None
    return law_plan(flops, prepared.facts, run.model, run.limits, machine=machine).advice


def _by_law(flops: float, question: Question) -> Choice:
    prepared, machine, draft, room = question.prepared, question.machine, question.draft, question.room
    run = prepared.run
    found = law_plan(flops, prepared.facts, run.model, run.limits, machine=machine, deadline=question.deadline)
    batch = prepared.facts.batch(draft.batch_tokens / draft.accumulation)
    way = room.way(found.shape)
    if way is None:
        error = search.too_little(found.shape, run.limits, room)
        if run.limits.memory is not None:
            raise error
        # A budget may be planned here for a larger machine.
        log.warning("%s", error)
        way = True
    estimate = step_time(found.shape, batch, machine, draft.precision, draft.optimizer, draft.accumulation).estimate()
    return Choice(
        shape=found.shape,
        compile=draft.compile,
        recompute=way,
        step_time=estimate,
        needs_bytes=round(GAPS * room.peak(found.shape, way)),
        probes=(),
        reason="; ".join(f"{line.name} {line.value}: {line.reason}" for line in found.decisions[:2]),
        compile_reason="off unless the recipe says so",
        rate_reason=f"{found.advice.reason} (Muon's updates are scaled to AdamW's size)",
        curve=(),
        valid_loss=None,
        eval_time_s=None,
        unique_tokens=prepared.facts.unique_tokens,
        prior=prior_for(found.shape, prepared, draft),
        law=BESIROGLU,
        rivals=front.by_published_law(
            BESIROGLU,
            flops,
            prepared.facts.unique_tokens,
            sizes_beside(found.shape, prepared.facts, run.model, run.limits, machine, question.deadline),
            found.shape,
            known=run.task == "generate",
        ),
    )


def _affordable(probe_s: float) -> int:
    """How many shapes can each have a first probe worth the name."""
    affordable = (n for n in range(MOST_CANDIDATES, 1, -1) if halving.rounds(n, probe_s)[0].time_s >= LEAST_PROBE_S)
    return next(affordable, 1)
