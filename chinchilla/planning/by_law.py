"""What a published law recommends for a budget: of the shapes that it can buy the one of least loss, data weighed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine
from chinchilla.config.plan import Decision
from chinchilla.config.run import Limits, Model
from chinchilla.config.shape import Shape
from chinchilla.config.units import show_count
from chinchilla.planning.bounds import Bound, bounds, unfit
from chinchilla.planning.count import flops_per_token, matrix_params, num_params
from chinchilla.planning.deadline import Deadline
from chinchilla.planning.hparams import Advice, advise
from chinchilla.planning.laws import BESIROGLU, FLOPS_PER_PARAM_TOKEN, ChinchillaLaw
from chinchilla.planning.overtrain import OVERTRAIN_LAWS
from chinchilla.planning.repeat import MUENNIGHOFF, NEARLY, SAME_LOSS, RepeatLaw, law_loss, repeated
from chinchilla.planning.search import PROBE_BATCH_TOKENS, Facts, of_depth

DIMS = tuple(range(256, 16_384 + 1, 128))
ASPECT = (64, 128)
"""Widths that are weighed, and channels a layer of a stack."""

BESIDE = (1 / 8, 1 / 4, 1 / 2, 2)
"""Multiples of a law's size that are weighed against it."""

LEAST_TOKENS = MUENNIGHOFF.base.tokens.low
"""Unique tokens of the shortest text behind the discounts of repeats: by them five million tokens would come to a loss
near chance, and such runs end at half of that (docs/planning.md)."""

APART = 1.5
"""Factor that sizes lie apart to be told from each other: nearer, a law's valley is flat."""


@dataclass(frozen=True)
class LawPlan:
    """What a published law recommends for a budget; `size` is its best number of parameters, limits aside."""

    shape: Shape
    tokens: float
    epochs: float
    advice: Advice
    loss: Estimate
    size: Estimate
    decisions: tuple[Decision, ...]


class _Option(NamedTuple):
    """A shape that may be built, not built yet. Options sort by size."""

    num_params: int
    dim: int
    layers: int


def law_holds(flops: float, unique: float, law: ChinchillaLaw = BESIROGLU) -> bool:
    """Whether a law may decide; else only probes tell.

    A budget has to lie in or above the range that it was fitted on, and `unique` tokens to be as many as repeats and
    excess parameters were measured with.
    """
    return flops >= law.flops.low and unique >= LEAST_TOKENS


def law_plan(
    flops: float,
    facts: Facts,
    fixed: Model,
    limits: Limits,
    law: ChinchillaLaw = BESIROGLU,
    machine: Machine | None = None,
    deadline: Deadline | None = None,
) -> LawPlan:
    """The shape of least loss by a law for a budget, with learning rate and batch for it.

    Losses are compared at D = C / 6N, the law's own count; repeats beyond the data, and parameters beyond what those
    can use, are discounted (`planning.repeat`). Where losses are the same (`SAME_LOSS`) the smallest shape is taken, of
    these the narrowest. Tokens are what the budget buys at that shape, counted by the `matmul` convention. Limits below
    the optimum give the largest shape within them, trained for longer, as does a `deadline` of fixed steps; one on
    latency needs the `machine` that answers.
    The laws know decoder-only language models: for another task they are taken outside their range.

    Raises:
        BudgetError: the budget is not positive, or no shape fits the limits.
        UsageError: a limit on latency without a machine.
    """
    rule, unique = repeated(law), facts.unique_tokens
    size = rule.best_size(flops, unique)
    held_to = bounds(facts.request, machine, limits, deadline=deadline)
    found = _of_least_loss(_options(facts, fixed, held_to), lambda count: _level(rule, flops, count, unique))
    shape = of_depth(found.dim, found.layers, facts, fixed)
    tokens = flops / flops_per_token(shape, facts.batch(PROBE_BATCH_TOKENS))
    advice = advise(matrix_params(shape), tokens)
    rate, batch = f"{advice.learning_rate:.2g}", f"{show_count(advice.batch_tokens)} tokens"
    return LawPlan(
        shape=shape,
        tokens=tokens,
        epochs=tokens / unique,
        advice=advice,
        loss=law_loss(law, found.num_params, tokens, unique),
        size=size,
        decisions=(
            _told_size(found.num_params, size, tokens, flops, facts, rule, held_to),
            _told_tokens(found.num_params, tokens, flops, facts, rule),
            Decision(name="learning rate", value=rate, reason=advice.reason),
            Decision(name="batch", value=batch, reason=advice.reason),
        ),
    )


def sizes_beside(
    shape: Shape,
    facts: Facts,
    fixed: Model,
    limits: Limits,
    machine: Machine | None = None,
    deadline: Deadline | None = None,
) -> list[Shape]:
    """Shapes of about an eighth to twice the parameters of a law's (`BESIDE`), smallest first.

    All are within the limits, and where there is a deadline in time for it.

    Raises:
        UsageError: a limit on latency without a machine.
    """
    count = num_params(shape)
    options = _options(facts, fixed, bounds(facts.request, machine, limits, deadline=deadline))
    found = dict.fromkeys(_nearest(options, factor * count) for factor in BESIDE)
    apart = [each for each in found if abs(math.log(each.num_params / count)) >= math.log(APART)]
    return [of_depth(each.dim, each.layers, facts, fixed) for each in apart]


def _level(rule: RepeatLaw, flops: float, count: int, unique: float) -> float:
    return rule.loss(count, flops / FLOPS_PER_PARAM_TOKEN / count, unique)


def _told_size(
    count: int, size: Estimate, tokens: float, flops: float, facts: Facts, rule: RepeatLaw, held_to: Sequence[Bound]
) -> Decision:
    """The parameters, and why not those that the budget would take with unlimited text."""
    law, unique = rule.base, facts.unique_tokens
    fresh = law.optimum(flops)
    apart = rule.discounts(count, tokens, unique) or facts.task != "generate"
    where = "inside" if law.covers(flops, count, tokens) and not apart else "outside"
    held = f" within {' and '.join(bound.key for bound in held_to)}" if held_to else ""
    reason = (
        f"least loss of all shapes{held} by the {law.name} law ({where} its range); best size {show_count(size.p50)}, "
        f"p10 to p90 {show_count(size.p10)} to {show_count(size.p90)}"
    )
    if fresh[1] > unique:
        reason += (
            f"; fresh text would take {show_count(fresh[0])} for this budget, but {show_count(unique)} unique "
            f"{facts.labels} cannot use so many: parameters in excess and repeats are discounted (Muennighoff 2023; a "
            "guess, as two fits are mixed)"
        )
        if unique < law.tokens.low:
            reason += f"; the law was fitted to no text below {show_count(law.tokens.low)} tokens"
    elif held_to and count < fresh[0] / APART:
        reason += f"; {_told_price(flops / FLOPS_PER_PARAM_TOKEN / count**2)}"
    return Decision(name="parameters", value=show_count(count), reason=reason)


def _told_price(ratio: float) -> str:
    """What it costs to train a model smaller than the best on `ratio` tokens a parameter, by all of Gadre's laws."""
    prices = [law.price(ratio) for law in OVERTRAIN_LAWS.values()]
    where = "inside" if all(law.ratios.holds(ratio) for law in OVERTRAIN_LAWS.values()) else "outside"
    return (
        f"over-trained at {show_count(ratio)} tokens a parameter: {min(prices):.2g} to {max(prices):.2g} times the "
        f"compute that its loss takes at the best size (Gadre 2024, {where} its ratios)"
    )


def _told_tokens(count: int, tokens: float, flops: float, facts: Facts, rule: RepeatLaw) -> Decision:
    """The tokens, and how much of the budget is worth spending on so little text."""
    unique = facts.unique_tokens
    epochs = tokens / unique
    reason = f"{flops:.3g} FLOPs at this shape: {show_count(epochs)} epochs, {show_count(tokens / count)} a parameter"
    if epochs > rule.epochs.high:
        reason += (
            f"; repeats were measured up to {rule.epochs.high:g} epochs, and "
            f"{show_count(rule.enough(count, tokens, unique) / unique)} come within {NEARLY:.0%} of its loss by the law"
        )
    return Decision(name="tokens", value=show_count(tokens), reason=reason)


def _of_least_loss(options: Sequence[_Option], loss: Callable[[int], float]) -> _Option:
    """The smallest of those whose loss is the least, or the same as it."""
    losses = [loss(option.num_params) for option in options]
    most = min(losses) * (1 + SAME_LOSS)
    return min(option for option, each in zip(options, losses, strict=True) if each <= most)


def _nearest(options: Sequence[_Option], target: float) -> _Option:
    """The one whose number of parameters is nearest to `target`."""
    return min(options, key=lambda option: abs(math.log(option.num_params / target)))


def _options(facts: Facts, fixed: Model, held_to: Sequence[Bound]) -> list[_Option]:
    """Every width and depth that the fixed settings leave open, within the bounds.

    Raises:
        BudgetError: none is within them.
    """
    dims = [fixed.dim] if fixed.dim else DIMS
    found = [option for dim in dims for option in _of_width(dim, facts, fixed, held_to)]
    if not found:
        raise unfit([of_depth(dim, _fewest(dim), facts, fixed) for dim in dims], held_to)
    return found


def _of_width(dim: int, facts: Facts, fixed: Model, held_to: Sequence[Bound]) -> list[_Option]:
    """The depths of a width, up to the deepest within the bounds: what a shape needs only grows with depth."""
    one, two = (of_depth(dim, layers, facts, fixed) for layers in (1, 2))
    first, layer = num_params(one), num_params(two) - num_params(one)
    fewest, most = _fewest(dim), max(1, dim // ASPECT[0])
    deepest = min([most, *(_deepest(bound, one, two, most) for bound in held_to)])
    while deepest >= fewest and not _holds(of_depth(dim, deepest, facts, fixed), held_to):
        deepest -= 1
    return [_Option(first + (layers - 1) * layer, dim, layers) for layers in range(fewest, deepest + 1)]


def _holds(shape: Shape, held_to: Sequence[Bound]) -> bool:
    return all(bound.holds(shape) for bound in held_to)


def _fewest(dim: int) -> int:
    return max(1, dim // ASPECT[1])


def _deepest(bound: Bound, one: Shape, two: Shape, most: int) -> int:
    """Layers beyond which a bound cannot hold, at most `most`: what is needed grows evenly with depth, or faster."""
    first, layer = bound.needs(one), bound.needs(two) - bound.needs(one)
    return most if layer <= 0 else min(most, 1 + math.floor((bound.most - first) / layer))
