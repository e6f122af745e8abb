"""Choose a shape: by a published law where one holds, by short probe runs below."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from chinchilla.config.adapter import Adapter
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Probe, Training
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.models.transformer import Transformer
from chinchilla.planning import count, front, halving, search
from chinchilla.planning.bounds import bounds
from chinchilla.planning.by_law import law_holds, law_plan, sizes_beside
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.design import Big, best_shape
from chinchilla.planning.hparams import Advice
from chinchilla.planning.latency import AnswerTime, Request, answer_time
from chinchilla.planning.laws import BESIROGLU, ChinchillaLaw
from chinchilla.planning.machine import compile_time, step_time
from chinchilla.planning.memory import State, state
from chinchilla.planning.own_law import OwnLaw
from chinchilla.planning.pace import Window, pace, spread
from chinchilla.planning.repeat import law_loss
from chinchilla.planning.room import Room
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.monitor import Silent
from chinchilla.training.probe import probe
from chinchilla.training.trainer import Trainer
from chinchilla.training.workers import worker_count
from chinchilla.verbs.answer_probe import timed_answer
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.transfer import Start, is_whole, told

log = logging.getLogger("chinchilla")

PEAK_SHARE = 0.1
"""Share of the measured matrix-product peak that small models reach on CPUs, roughly."""

PROBE_SHARE = 0.08
"""Share of a time budget that probe runs may take."""

EVAL_SHARE = 0.03
CHECKPOINT_SHARE = 0.02
"""Shares of the time that validations and checkpoints may take."""

LEAST_PROBE_S = 6.0
"""A shorter first probe does not get past the warm-up: fewer candidates are tried instead."""

MOST_CANDIDATES = 5
MOST_PROBE_S = 1200.0

GAPS = 1.3
"""What the C library's allocator comes to hold for each byte of tensors, where no probe has shown it."""

COMPILE_SPEEDUP = 1.1
"""What compiling small models gained on CPUs when it was measured (docs/training.md)."""


@dataclass(frozen=True)
class Choice:
    """The shape to train, and what is known of it.

    `needs_bytes` is the memory that training takes beside the process. `curve` is its probe's (tokens, loss);
    `valid_loss` what a validation found after it, in `eval_time_s`. `answer` is how long it took to answer, if timed.
    `own` or `law` chose it, where a law did; `rivals` are the shapes it was weighed against.
    """

    shape: Shape
    compile: bool
    recompute: bool
    step_time: Estimate
    needs_bytes: int
    probes: tuple[Probe, ...]
    reason: str
    compile_reason: str
    rate_reason: str
    curve: tuple[tuple[float, float], ...]
    valid_loss: float | None
    eval_time_s: float | None
    unique_tokens: int
    prior: halving.Prior
    own: OwnLaw | None = None
    answer: AnswerTime | None = None
    law: ChinchillaLaw | None = None
    rivals: tuple[front.Rival, ...] = ()

    def answer_on(self, machine: Machine, request: Request) -> AnswerTime:
        """Seconds of a typical answer: as timed, or by the model of `planning.latency`."""
        return self.answer or answer_time(self.shape, request, machine)

    def predict_loss(self, tokens: float) -> Estimate:
        """Validation loss after `tokens` tokens, in nats a token."""
        num_params = count.num_params(self.shape)
        if self.own is not None:
            return self.own.predict(num_params, tokens)
        if self.curve:
            return halving.predict_loss(self.curve, num_params, tokens, self.unique_tokens, self.prior, self.valid_loss)
        return law_loss(BESIROGLU, num_params, tokens, self.unique_tokens)


@dataclass
class _Candidate:
    """A shape under probing."""

    shape: Shape
    trainer: Trainer
    roofline_s: float
    adapter: Adapter | None
    curve: list[tuple[float, float]] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    latest_step_s: float = math.inf
    working_bytes: int = 0
    time_s: float = 0.0

    @property
    def state(self) -> State:
        """Its weights, their copies and the optimizer's state."""
        training = self.trainer.training
        return state(self.shape, training.optimizer, training.ema_decay > 0, self.adapter)


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
    choice = _chosen(prepared, machine, draft, time_s, room, deadline, tell, own)
    while deadline is not None and deadline.missed(choice.step_time.p50):
        deadline = deadline.at(choice.shape, choice.step_time.p50)
        choice = _chosen(prepared, machine, draft, time_s, room, deadline, tell, own)
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


def _chosen(
    prepared: Prepared,
    machine: Machine,
    draft: Training,
    time_s: float,
    room: Room,
    deadline: Deadline | None,
    tell: Callable[[str], None],
    own: OwnLaw | None,
) -> Choice:
    """The shape to train; of several in reach one is timed only, where a `deadline` has been missed before."""
    run = prepared.run
    if prepared.start is not None:
        return _by_start(prepared.start, prepared, machine, draft, time_s, room, deadline, tell)
    flops = run.budget.flops or time_s * PEAK_SHARE * machine.flops_per_s(draft.precision)
    if own is None and law_holds(flops, prepared.facts.unique_tokens):
        return _by_law(flops, prepared, machine, draft, room, deadline)
    shapes = search.candidates(prepared.facts, machine, run.limits, run.model, time_s, room, deadline)
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
    drafts = {shape: draft.model_copy(update={"recompute": bool(room.way(shape))}) for shape in shapes}
    choice = _by_probes(drafts, probe_s, prepared, machine, time_s, deadline, tell)
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


def _by_start(
    start: Start,
    prepared: Prepared,
    machine: Machine,
    draft: Training,
    time_s: float,
    room: Room,
    deadline: Deadline | None,
    tell: Callable[[str], None],
) -> Choice:
    """The shape of the model to start from, which is only timed.

    Raises:
        BudgetError: it does not fit the limits or the memory, or its fixed steps the time.
    """
    run = prepared.run
    shape = start.shape_for(prepared.facts, run.model)
    shape = shape.model_copy(update={"reconstruct": draft.reconstruct_weight > 0})
    start.require_within(shape, bounds(prepared.facts.request, machine, run.limits, room, deadline))
    drafts = {shape: draft.model_copy(update={"recompute": bool(room.way(shape))})}
    probe_s = probe_time(time_s, filled_time(shape, prepared, machine, draft))
    choice = _by_probes(drafts, probe_s, prepared, machine, time_s, deadline, tell)
    return replace(choice, reason=f"as {start.path}, of which it takes {told(start, shape)}; timed in a short probe")


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


def _by_law(
    flops: float, prepared: Prepared, machine: Machine, draft: Training, room: Room, deadline: Deadline | None
) -> Choice:
    run = prepared.run
    found = law_plan(flops, prepared.facts, run.model, run.limits, machine=machine, deadline=deadline)
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
        prior=_prior(found.shape, prepared, draft),
        law=BESIROGLU,
        rivals=front.by_published_law(
            BESIROGLU,
            flops,
            prepared.facts.unique_tokens,
            sizes_beside(found.shape, prepared.facts, run.model, run.limits, machine),
            found.shape,
            known=run.task == "generate",
        ),
    )


def _affordable(probe_s: float) -> int:
    """How many shapes can each have a first probe worth the name."""
    affordable = (n for n in range(MOST_CANDIDATES, 1, -1) if halving.rounds(n, probe_s)[0].time_s >= LEAST_PROBE_S)
    return next(affordable, 1)


def _by_probes(
    drafts: dict[Shape, Training],
    probe_s: float,
    prepared: Prepared,
    machine: Machine,
    time_s: float,
    deadline: Deadline | None,
    tell: Callable[[str], None],
) -> Choice:
    """Successive halving over the shapes, as far as their fixed steps fit the time; a single shape is only timed."""
    everyone = alive = [_candidate(shape, prepared, draft, machine) for shape, draft in drafts.items()]
    seen: list[Probe] = []
    rounds = halving.rounds(len(alive), probe_s) or (halving.Round(1, min(probe_s, LEAST_PROBE_S), 1),)
    for number, stage in enumerate(rounds, start=1):
        for candidate in alive:
            tell(f"probe {number}/{len(rounds)}: {_name(candidate.shape)} for {stage.time_s:.0f} s")
            _run_probe(candidate, stage.time_s)
        windows = [window for candidate in everyone for window in candidate.windows]
        results = [_record(candidate, prepared, time_s, pace(windows)) for candidate in alive]
        seen += results
        kept = halving.survivors(_timely(alive, results, pace(windows), deadline), stage.keep)
        alive = [candidate for result in kept for candidate in alive if candidate.shape == result.shape]
    best = alive[0]
    enough_s = pace(windows) * best.roofline_s * most_tokens(prepared.run, prepared.facts) / _step_tokens(best)
    compiled, compile_reason = _compiled(best, prepared, machine, min(time_s, enough_s), tell)
    timed = compiled.windows if compiled else windows
    begun = time.perf_counter()
    valid_loss = best.trainer.valid_loss()
    eval_time_s = time.perf_counter() - begun
    for candidate in everyone:
        candidate.trainer.workers.close()
    answer = timed_answer(Transformer(best.shape).to(torch.device(machine.device)).eval(), prepared.facts.request)
    return Choice(
        shape=best.shape,
        compile=compiled is not None or best.trainer.training.compile,
        recompute=best.trainer.training.recompute,
        step_time=Estimate.around(pace(timed) * best.roofline_s, spread(timed), "s", "measured"),
        needs_bytes=_needs(best),
        probes=tuple(seen),
        reason=_reason(seen, len(drafts)),
        compile_reason=compile_reason,
        rate_reason="rule of thumb for runs of minutes (docs/planning.md); the Step Law's range begins 100× above",
        curve=tuple(best.curve),
        valid_loss=valid_loss,
        eval_time_s=eval_time_s,
        unique_tokens=prepared.facts.unique_tokens,
        prior=_prior(best.shape, prepared, best.trainer.training),
        answer=answer,
        rivals=front.by_probes(seen, best.shape),
    )


def _timely(alive: list[_Candidate], results: list[Probe], pace_now: float, deadline: Deadline | None) -> list[Probe]:
    """The results of those whose fixed steps fit the time, else of the quickest alone."""
    if deadline is None:
        return results
    step_s = [pace_now * candidate.roofline_s for candidate in alive]
    fitting = [result for result, each_s in zip(results, step_s, strict=True) if not deadline.missed(each_s)]
    return fitting or [results[step_s.index(min(step_s))]]


def _compiled(
    best: _Candidate,
    prepared: Prepared,
    machine: Machine,
    time_s: float,
    tell: Callable[[str], None],
) -> tuple[_Candidate | None, str]:
    """The winner compiled, where that was tried and is earned back, and the reason either way."""
    if prepared.run.train.compile is not None:
        return None, "as the recipe says"
    if not machine.has_compiler:
        return None, "there is no working C++ compiler here"
    gain_s, thought = time_s * (1 - 1 / COMPILE_SPEEDUP), compile_time(best.shape, machine)
    if gain_s < 2 * thought.p50:
        told = f"it gains about {gain_s:.0f} s and costs about {thought.p50:.0f} s"
        return None, f"{told}, a block's measured time" if thought.source == "measured" else f"{told} at small sizes"
    tell(f"probe: {_name(best.shape)} compiled")
    begun = time.perf_counter()
    draft = best.trainer.training.model_copy(update={"compile": True})
    candidate = _candidate(best.shape, prepared, draft, machine)
    _run_probe(candidate, LEAST_PROBE_S)
    cost_s = time.perf_counter() - begun
    speedup = best.latest_step_s / candidate.latest_step_s
    told = f"measured {speedup:.2f}× faster for {cost_s:.0f} s of compiling"
    return (candidate if time_s * (1 - 1 / speedup) > cost_s else None), told


def _candidate(shape: Shape, prepared: Prepared, draft: Training, machine: Machine) -> _Candidate:
    batch = prepared.facts.batch(draft.batch_tokens / draft.accumulation)
    roofline = step_time(shape, batch, machine, draft.precision, draft.optimizer, draft.accumulation)
    torch.manual_seed(draft.seed)
    trainer = Trainer(
        model=prepared.new_model(shape, draft.dropout),
        task=prepared.task,
        training=draft,
        batches=prepared.batches(draft),
        valid=prepared.valid_batches(draft),
        folder=RunFolder(Path("probe")),  # never made: a probe writes nothing
        monitor=Silent(),
        flops_per_token=1.0,
        peak_flops_per_s=1.0,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    return _Candidate(shape, trainer, roofline.total_s, prepared.adapter_on(shape))


def _run_probe(candidate: _Candidate, time_s: float) -> None:
    result = probe(candidate.trainer, time_s)
    candidate.working_bytes = result.working_bytes
    candidate.curve += result.curve
    candidate.windows += [Window(steps, part_s, candidate.roofline_s) for steps, part_s in result.parts]
    candidate.latest_step_s = result.step_time_s
    candidate.time_s += result.time_s


def _needs(candidate: _Candidate) -> int:
    """Memory of a whole run: its state, what the steps of its last probe took beside it, and a checkpoint's copies."""
    held = candidate.state
    return 2 * (held.weights + held.optimizer) - held.frozen + held.copies + candidate.working_bytes


def _record(candidate: _Candidate, prepared: Prepared, time_s: float, pace_now: float) -> Probe:
    """What a probe has shown. The tokens that it would reach are at the pace of all: slow moments are no one's own."""
    unique = prepared.facts.unique_tokens
    tokens = candidate.curve[-1][0]
    ahead = prepared.run.train.steps or time_s / (pace_now * candidate.roofline_s)
    reach = min(_step_tokens(candidate) * ahead, most_tokens(prepared.run, prepared.facts))
    num_params = count.num_params(candidate.shape)
    prior = _prior(candidate.shape, prepared, candidate.trainer.training)
    predicted = halving.predict_loss(candidate.curve, num_params, max(reach, tokens), unique, prior)
    return Probe(
        shape=candidate.shape,
        precision=candidate.trainer.training.precision,
        compile=candidate.trainer.training.compile,
        num_params=num_params,
        tokens=candidate.trainer.progress.tokens,
        time_s=candidate.time_s,
        step_time_s=candidate.latest_step_s,
        loss=candidate.curve[-1][1],
        predicted_loss=predicted.p50,
    )


def _step_tokens(candidate: _Candidate) -> float:
    """Labelled tokens a step, of its probe."""
    return candidate.trainer.progress.tokens / candidate.trainer.progress.step


def most_tokens(run: Run, facts: search.Facts) -> float:
    """Labelled tokens to see at most, unless steps are fixed; what is replayed counts as seen once."""
    replays = 1 if run.attack is None else run.attack.replays
    return math.inf if run.train.steps else facts.most_tokens * replays


def _prior(shape: Shape, prepared: Prepared, training: Training) -> halving.Prior:
    """What is known of the curve before it begins."""
    tuned = prepared.start is not None and is_whole(prepared.start, shape)
    return halving.prior_of(prepared.facts.task, prepared.facts.num_classes, training.label_smoothing, tuned)


def _name(shape: Shape) -> str:
    layers = "+".join(str(n) for n in (shape.num_encoder_layers, shape.num_decoder_layers) if n)
    return f"{layers} layers of {shape.dim} ({show_count(count.num_params(shape))})"


def _reason(probes: list[Probe], num_shapes: int) -> str:
    if num_shapes == 1:
        return "the one shape that fits and comes nearest to one token a parameter or one epoch; timed in a short probe"
    return f"best predicted loss of {num_shapes} shapes in {len(probes)} probe runs (no law holds at this scale)"
