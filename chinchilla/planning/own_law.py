"""A user's own law as `chinchilla sweep` and `chinchilla fit --out` keep it: draws, and which data they are of."""

import math
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, ValidationError

from chinchilla.config.errors import DataError
from chinchilla.config.estimate import Estimate, Source
from chinchilla.config.frozen import Frozen
from chinchilla.config.plan import OptimizerKind, TaskName, Training
from chinchilla.config.run import Train
from chinchilla.planning.constants import Constant, Span
from chinchilla.planning.fit import CONSTANTS, FARTHEST, Fit
from chinchilla.planning.huber import Array
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, FRESH_EPOCHS, ChinchillaLaw, effective_tokens
from chinchilla.planning.posterior import Posterior, percentile_80
from chinchilla.planning.search import Facts

Draw = tuple[float, float, float, float, float, float]

_MEND = "name the law.json of a `chinchilla sweep`, or what `chinchilla fit --out` wrote"

ALIKE = 0.02
"""Relative difference in bytes a token, or in the number of tokens, up to which two texts count as the same."""


MISFIT = 0.015
"""Relative deviation, of a run of four times the compute of the dearest, from the law that fits all smaller ones best;
it grows with the logarithm of the compute. Two held-out runs lay 1.2 % below and 1.7 % above it
(docs/planning-sweep.md)."""


class Settings(Frozen):
    """The settings of every run behind the law: it holds for runs that are trained in the same way."""

    optimizer: OptimizerKind
    batch_tokens: int
    learning_rate: float
    embedding_learning_rate: float
    weight_decay: float
    decay_fraction: float
    label_smoothing: float
    dropout: float
    drop_path: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    ema_decay: float

    @classmethod
    def of(cls, training: Training) -> Self:
        """Those of a run's training."""
        return cls(**{name: getattr(training, name) for name in cls.model_fields})

    def over(self, draft: Training, fixed: Train) -> Training:
        """The draft with these settings, where the recipe does not fix others."""
        said = set(fixed.model_dump(exclude_none=True))
        # These two exclude each other (`config.run`).
        said |= {"label_smoothing"} if fixed.focal_gamma else set()
        said |= {"focal_gamma"} if fixed.label_smoothing else set()
        return draft.model_copy(update={name: value for name, value in self if name not in said})


class OwnLaw(Frozen):
    """A law of one's own text. `law` is the most probable one; `draws` say how far others may lie from it.

    A draw is (log E, log A, log B, alpha, beta, relative noise of a run). Tokens of the law are effective ones:
    `unique_tokens` and Muennighoff's half-life say what repeats are worth. What the runs behind a fit do not tell is
    None: of a file all of it, of run folders the number of tokens, and settings that differ.
    """

    law: ChinchillaLaw
    draws: tuple[Draw, ...] = Field(min_length=100)
    task: TaskName | None = None
    vocab_size: int | None = None
    bytes_per_token: float | None = None
    unique_tokens: int | None = None
    settings: Settings | None = None

    @property
    def assumed(self) -> str:
        """What a plan takes for granted since the law's runs do not tell it, in words; "" where they tell all."""
        told = {"task, vocabulary and text": self.task, "training settings": self.settings}
        open_ = [what for what, known in told.items() if known is None]
        return f"its runs do not tell their {' and '.join(open_)}: assumed to be this plan's" if open_ else ""

    @property
    def constants(self) -> dict[str, Constant]:
        """E, A, B, alpha and beta of `law` by name."""
        law = self.law
        values = (law.irreducible, law.param_scale, law.token_scale, law.param_exponent, law.token_exponent)
        return dict(zip(CONSTANTS, values, strict=True))

    def losses(self, num_params: float, tokens: float, noise: bool = True) -> Array:
        """What a run may come to in nats a token, a value a draw; `noise` adds the run's own, and `MISFIT`."""
        log_e, log_a, log_b, alpha, beta, deviation = np.array(self.draws).T
        worth = math.log(effective_tokens(self.unique_tokens or tokens, tokens))
        found = np.exp(log_e) + np.exp(log_a - alpha * math.log(num_params)) + np.exp(log_b - beta * worth)
        normal = np.random.default_rng(0).standard_normal(len(found)) if noise else 0.0
        beyond = max(1.0, FLOPS_PER_PARAM_TOKEN * num_params * tokens / self.law.flops.high)
        return np.asarray(found * np.exp(np.hypot(deviation, MISFIT * math.log(beyond, 4)) * normal))

    def predict(self, num_params: float, tokens: float) -> Estimate:
        """The validation loss of a run that sees `tokens`, repeats counted, in nats a token."""
        low, middle, high = percentile_80(self.losses(num_params, tokens))
        return Estimate(p10=low, p50=middle, p90=high, unit="nats/token", source=self._source(num_params, tokens))

    def over(self, draft: Training, fixed: Train) -> Training:
        """The draft with the settings that the law holds for, as far as it knows them and the recipe leaves them."""
        return draft if self.settings is None else self.settings.over(draft, fixed)

    def for_data(self, facts: Facts, path: Path) -> Self:
        """The law for these data, whose repeats it discounts where its own amount of text is not known.

        Raises:
            DataError: it is of another task, vocabulary, text or amount of it.
        """
        numbers = (self.bytes_per_token, facts.bytes_per_token), (self.unique_tokens, facts.unique_tokens)
        alike = all(mine is None or abs(mine / other - 1) <= ALIKE for mine, other in numbers)
        if self.task is not None and ((self.task, self.vocab_size) != (facts.task, facts.vocab_size) or not alike):
            mine = _text(self.task, self.vocab_size, self.bytes_per_token, self.unique_tokens)
            theirs = _text(facts.task, facts.vocab_size, facts.bytes_per_token, facts.unique_tokens)
            raise DataError(
                f"{path}: a law of {mine}; the recipe's data are {theirs}: sweep again with this recipe, or fit runs "
                "of such data"
            )
        known = self.unique_tokens or facts.unique_tokens
        return self.model_copy(update={"unique_tokens": known})

    def _source(self, num_params: float, tokens: float) -> Source:
        near = FLOPS_PER_PARAM_TOKEN * num_params * tokens <= FARTHEST * self.law.flops.high
        return "law" if near and tokens <= FRESH_EPOCHS * (self.unique_tokens or tokens) else "guess"


def own_law(
    found: Posterior, num_params: Array, tokens: Array, facts: Facts, training: Training, source: str
) -> OwnLaw:
    """The law that a posterior over runs of `num_params` and seen `tokens` (runs,) amounts to."""
    logs = uncentred(found.theta, found.centre)
    draws = np.column_stack([logs, found.noise])
    return OwnLaw(
        law=_law(uncentred(found.best[None], found.centre)[0], logs, num_params, tokens, source),
        draws=tuple(tuple(row) for row in draws.tolist()),
        task=facts.task,
        vocab_size=facts.vocab_size,
        bytes_per_token=facts.bytes_per_token,
        unique_tokens=facts.unique_tokens,
        settings=Settings.of(training),
    )


def fitted_law(found: Fit) -> OwnLaw:
    """A fit as a law to plan with: its bootstraps as draws, the noise of a run from its residuals.

    Runs of a folder tell their task, vocabulary and bytes a token, and their settings where those are alike.
    """
    freedom = max(1, len(found.runs) - len(CONSTANTS))
    noise = math.sqrt(float((found.residuals**2).sum()) / freedom)
    draws = np.column_stack([uncentred(found.draws, found.points.centre), np.full(len(found.draws), noise)])
    told = OwnLaw(law=found.law, draws=tuple(tuple(row) for row in draws.tolist()))
    if not found.runs.plans:
        return told
    first, *others = found.runs.plans
    settings = Settings.of(first.training)
    return told.model_copy(
        update={
            "task": first.task,
            "vocab_size": first.shape.vocab_size,
            "bytes_per_token": first.bytes_per_token,
            "settings": settings if all(Settings.of(each.training) == settings for each in others) else None,
        }
    )


def read_law(path: Path) -> OwnLaw:
    """Read what `chinchilla sweep` or `chinchilla fit --out` wrote.

    Raises:
        DataError: missing, or not such a file.
    """
    try:
        return OwnLaw.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_MEND}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: {place}: {first['msg']}; {_MEND}") from None


def _text(task: TaskName, vocab_size: int | None, bytes_per_token: float | None, tokens: int | None) -> str:
    amount = "" if tokens is None else f", {tokens:,} tokens"
    return f"{task}, a vocabulary of {vocab_size}, {bytes_per_token or 0:.3g} bytes a token{amount}"


def uncentred(theta: Array, centre: tuple[float, float]) -> Array:
    """(log E, log A, log B, alpha, beta) of each draw, (draws, 5)."""
    e, a, b, alpha, beta = theta.T
    return np.column_stack([e, a + alpha * centre[0], b + beta * centre[1], alpha, beta])


def _law(best: Array, logs: Array, num_params: Array, tokens: Array, source: str) -> ChinchillaLaw:
    made = {}
    for index, name in enumerate(CONSTANTS):
        values, value = logs[:, index], float(best[index])
        if index < 3:
            # Of an exponent that the runs leave open, the scale is open over hundreds of powers.
            values, value = np.exp(np.clip(values, -600, 600)), math.exp(min(600.0, max(-600.0, value)))
        low, lower, upper, high = np.percentile(values, (2.5, 16, 84, 97.5)).tolist()
        made[name] = Constant(value=value, error=(upper - lower) / 2, interval=(low, high), source=source)
    flops = FLOPS_PER_PARAM_TOKEN * num_params * tokens
    return ChinchillaLaw(
        name="own",
        irreducible=made["E"],
        param_scale=made["A"],
        token_scale=made["B"],
        param_exponent=made["alpha"],
        token_exponent=made["beta"],
        params=_span(num_params),
        tokens=_span(tokens),
        flops=_span(flops),
    )


def _span(values: Array) -> Span:
    return Span(low=float(values.min()), high=float(values.max()))
