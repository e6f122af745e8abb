"""The efficient frontier of the law that a plan was made by, as the plan keeps it."""

import math

import numpy as np

from chinchilla.config.considered import Frontier
from chinchilla.planning.huber import Array
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, ChinchillaLaw
from chinchilla.planning.own_law import OwnLaw

NUM_BUDGETS = 24

AROUND = 4.0
"""The frontier is kept to this factor below and above the plan's compute, and over the law's own runs."""


def frontier(law: ChinchillaLaw | OwnLaw, flops: float) -> Frontier:
    """Best sizes, p10 to p90, of a published law or of one's own, about a plan of 6·N·D = `flops`."""
    fitted = law.law if isinstance(law, OwnLaw) else law
    ends = min(fitted.flops.low, flops / AROUND), max(fitted.flops.high, flops * AROUND)
    budgets = np.geomspace(*ends, NUM_BUDGETS)
    best = np.array([fitted.optimum(budget)[0] for budget in budgets.tolist()])
    low, high = drawn_optima(law, budgets, best) if isinstance(law, OwnLaw) else _published(law, budgets)
    return Frontier(
        name=fitted.name,
        irreducible=fitted.irreducible.value,
        param_scale=fitted.param_scale.value,
        token_scale=fitted.token_scale.value,
        param_exponent=fitted.param_exponent.value,
        token_exponent=fitted.token_exponent.value,
        fitted=(fitted.flops.low, fitted.flops.high),
        flops=tuple(budgets.tolist()),
        low=tuple(low.tolist()),
        best=tuple(best.tolist()),
        high=tuple(high.tolist()),
    )


def _published(law: ChinchillaLaw, budgets: Array) -> tuple[Array, Array]:
    sizes = [law.allocation(budget)[0] for budget in budgets.tolist()]
    return np.array([size.p10 for size in sizes]), np.array([size.p90 for size in sizes])


def drawn_optima(law: OwnLaw, budgets: Array, best: Array) -> tuple[Array, Array]:
    """p10 and p90 of the draws' own optima, the law's own between them.

    Where both terms gain as much: alpha·A/N^alpha = beta·B/D^beta with N·D = C/6.
    """
    _, a, b, alpha, beta, _ = np.array(law.draws).T[:, None]
    budget = np.log(budgets / FLOPS_PER_PARAM_TOKEN)[:, None]
    log_sizes = (np.log(alpha / beta) + a - b + beta * budget) / (alpha + beta)
    low, high = np.exp(np.clip(np.percentile(log_sizes, (10, 90), axis=1), 0, math.log(1e15)))
    return np.minimum(low, best), np.maximum(high, best)
