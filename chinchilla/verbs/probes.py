"""Short probe runs: how fast a shape is, how fast it learns, and which of several promises most."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from chinchilla.config.adapter import Adapter
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Probe, Training
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.models.transformer import Transformer
from chinchilla.planning import count, front, halving
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.machine import compile_time, step_time
from chinchilla.planning.memory import State, state
from chinchilla.planning.pace import Window, pace, spread
from chinchilla.planning.room import Room
from chinchilla.store.run_folder import RunFolder
from chinchilla.training.monitor import Silent
from chinchilla.training.probe import probe
from chinchilla.training.trainer import Trainer
from chinchilla.verbs.answer_probe import timed_answer
from chinchilla.verbs.choice import Choice, most_tokens, prior_for
from chinchilla.verbs.prepared import Prepared

LEAST_PROBE_S = 6.0
"""A shorter first probe does not get past the warm-up: fewer candidates are tried instead."""

COMPILE_SPEEDUP = 1.1
"""What compiling small models gained on CPUs when it was measured (docs/training.md)."""


@dataclass(frozen=True)
class Question:
    """What a shape is to be chosen for: `time_s` seconds of training as the draft says, in the room there is.

    There is a `deadline` where the recipe fixes both steps and time; `tell` hears how far it is.
    """

    prepared: Prepared
    machine: Machine
    draft: Training
    time_s: float
    room: Room
    deadline: Deadline | None
    tell: Callable[[str], None]


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


def by_probes(question: Question, shapes: Sequence[Shape], probe_s: float) -> Choice:
    """Successive halving over the shapes, as far as their fixed steps fit the time; a single shape is only timed."""
    prepared = question.prepared
    everyone = alive = [_candidate(shape, question) for shape in shapes]
    seen: list[Probe] = []
    rounds = halving.rounds(len(alive), probe_s) or (halving.Round(1, min(probe_s, LEAST_PROBE_S), 1),)
    for number, stage in enumerate(rounds, start=1):
        for candidate in alive:
            question.tell(f"probe {number}/{len(rounds)}: {_name(candidate.shape)} for {stage.time_s:.0f} s")
            _run_probe(candidate, stage.time_s)
        windows = [window for candidate in everyone for window in candidate.windows]
        results = [_record(candidate, question, pace(windows)) for candidate in alive]
        seen += results
        kept = halving.survivors(_timely(alive, results, pace(windows), question.deadline), stage.keep)
        alive = [candidate for result in kept for candidate in alive if candidate.shape == result.shape]
    best = alive[0]
    enough_s = pace(windows) * best.roofline_s * most_tokens(prepared.run, prepared.facts) / _step_tokens(best)
    compiled, compile_reason = _compiled(best, question, min(question.time_s, enough_s))
    timed = compiled.windows if compiled else windows
    begun = time.perf_counter()
    valid_loss = best.trainer.valid_loss()
    eval_time_s = time.perf_counter() - begun
    for candidate in everyone:
        candidate.trainer.workers.close()
    answering = Transformer(best.shape).to(torch.device(question.machine.device)).eval()
    return Choice(
        shape=best.shape,
        compile=compiled is not None or best.trainer.training.compile,
        recompute=best.trainer.training.recompute,
        step_time=Estimate.around(pace(timed) * best.roofline_s, spread(timed), "s", "measured"),
        needs_bytes=_needs(best),
        probes=tuple(seen),
        reason=_reason(seen, len(shapes)),
        compile_reason=compile_reason,
        rate_reason="rule of thumb for runs of minutes (docs/planning.md); the Step Law's range begins 100× above",
        curve=tuple(best.curve),
        valid_loss=valid_loss,
        eval_time_s=eval_time_s,
        unique_tokens=prepared.facts.unique_tokens,
        prior=prior_for(best.shape, prepared, best.trainer.training),
        answer=timed_answer(answering, prepared.facts.request),
        rivals=front.by_probes(seen, best.shape),
    )


def _timely(alive: list[_Candidate], results: list[Probe], pace_now: float, deadline: Deadline | None) -> list[Probe]:
    """The results of those whose fixed steps fit the time, else of the quickest alone."""
    if deadline is None:
        return results
    step_s = [pace_now * candidate.roofline_s for candidate in alive]
    fitting = [result for result, each_s in zip(results, step_s, strict=True) if not deadline.missed(each_s)]
    return fitting or [results[step_s.index(min(step_s))]]


def _compiled(best: _Candidate, question: Question, time_s: float) -> tuple[_Candidate | None, str]:
    """The winner compiled, where that was tried and is earned back, and the reason either way."""
    machine = question.machine
    if question.prepared.run.train.compile is not None:
        return None, "as the recipe says"
    if not machine.has_compiler:
        return None, "there is no working C++ compiler here"
    gain_s, thought = time_s * (1 - 1 / COMPILE_SPEEDUP), compile_time(best.shape, machine)
    if gain_s < 2 * thought.p50:
        told = f"it gains about {gain_s:.0f} s and costs about {thought.p50:.0f} s"
        return None, f"{told}, a block's measured time" if thought.source == "measured" else f"{told} at small sizes"
    question.tell(f"probe: {_name(best.shape)} compiled")
    begun = time.perf_counter()
    draft = question.draft.model_copy(update={"compile": True})
    candidate = _candidate(best.shape, replace(question, draft=draft))
    _run_probe(candidate, LEAST_PROBE_S)
    cost_s = time.perf_counter() - begun
    speedup = best.latest_step_s / candidate.latest_step_s
    told = f"measured {speedup:.2f}× faster for {cost_s:.0f} s of compiling"
    return (candidate if time_s * (1 - 1 / speedup) > cost_s else None), told


def _candidate(shape: Shape, question: Question) -> _Candidate:
    prepared, machine = question.prepared, question.machine
    draft = question.draft.model_copy(update={"recompute": bool(question.room.way(shape))})
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


def _record(candidate: _Candidate, question: Question, pace_now: float) -> Probe:
    """What a probe has shown. The tokens that it would reach are at the pace of all: slow moments are no one's own."""
    prepared = question.prepared
    unique = prepared.facts.unique_tokens
    tokens = candidate.curve[-1][0]
    ahead = prepared.run.train.steps or question.time_s / (pace_now * candidate.roofline_s)
    reach = min(_step_tokens(candidate) * ahead, most_tokens(prepared.run, prepared.facts))
    num_params = count.num_params(candidate.shape)
    prior = prior_for(candidate.shape, prepared, candidate.trainer.training)
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


def _name(shape: Shape) -> str:
    layers = "+".join(str(n) for n in (shape.num_encoder_layers, shape.num_decoder_layers) if n)
    return f"{layers} layers of {shape.dim} ({show_count(count.num_params(shape))})"


def _reason(probes: list[Probe], num_shapes: int) -> str:
    if num_shapes == 1:
        return "the one shape that fits and comes nearest to one token a parameter or one epoch; timed in a short probe"
    return f"best predicted loss of {num_shapes} shapes in {len(probes)} probe runs (no law holds at this scale)"
