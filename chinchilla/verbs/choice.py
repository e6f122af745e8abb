"""The shape to train, and what is known of it."""

import math
from dataclasses import dataclass

from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Probe, Training
from chinchilla.config.run import Run
from chinchilla.config.shape import Shape
from chinchilla.planning import count, front, halving
from chinchilla.planning.latency import AnswerTime, Request, answer_time
from chinchilla.planning.laws import BESIROGLU, ChinchillaLaw
from chinchilla.planning.own_law import OwnLaw
from chinchilla.planning.repeat import law_loss
from chinchilla.planning.search import Facts
from chinchilla.verbs.prepared import Prepared
from chinchilla.verbs.transfer import is_whole

PEAK_SHARE = 0.1
"""Share of the measured matrix-product peak that small models reach on CPUs, roughly."""

EVAL_SHARE = 0.03
CHECKPOINT_SHARE = 0.02
"""Shares of the time that validations and checkpoints may take."""

GAPS = 1.3
"""What the C library's allocator comes to hold for each byte of tensors, where no probe has shown it."""


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


def most_tokens(run: Run, facts: Facts) -> float:
    """Labelled tokens to see at most, unless steps are fixed; what is replayed counts as seen once."""
    replays = 1 if run.attack is None else run.attack.replays
    return math.inf if run.train.steps else facts.most_tokens * replays


def prior_for(shape: Shape, prepared: Prepared, training: Training) -> halving.Prior:
    """What is known of the curve before it begins."""
    tuned = prepared.start is not None and is_whole(prepared.start, shape)
    return halving.prior_of(prepared.facts.task, prepared.facts.num_classes, training.label_smoothing, tuned)
