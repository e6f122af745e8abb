"""`chinchilla laws`: every scaling law with its constants, and what one of them says for a few budgets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from chinchilla.config.estimate import Estimate
from chinchilla.planning.catalogue import Entry, entries
from chinchilla.planning.constants import log_normal
from chinchilla.planning.forms import FORMS
from chinchilla.planning.hparams import Advice, deepseek, power_lines, step_law
from chinchilla.planning.inference import Lifetime, chinchilla_lifetime, serving_optimum
from chinchilla.planning.laws import (
    ALLOCATION_SPREAD,
    BESIROGLU,
    LAWS,
    REFUSED,
    TRANSFER_SPREAD,
    ChinchillaLaw,
    require_offered,
)
from chinchilla.planning.overtrain import OVERTRAIN_LAWS, OverTrainLaw
from chinchilla.planning.repeat import MUENNIGHOFF, law_loss

BUDGETS = (1e17, 1e19, 1e21, 1e23)
"""FLOPs that a law is asked about: below, inside and above the published ranges."""

SHORTAGE = 10.0
"""How many times more tokens the best fresh run would see than there are, in the example of repeats."""

SERVED = 10.0
"""Tokens served for each one trained on, in the example of serving."""


@dataclass(frozen=True)
class Saying:
    """What a law says for a case: predictions by name, and a remark on where it holds."""

    case: str
    predictions: dict[str, Estimate]
    remark: str


@dataclass(frozen=True)
class Laws:
    """The laws asked for, in order; `sayings` of a single one, and `asks` where a form wants the user's runs."""

    entries: tuple[Entry, ...]
    sayings: tuple[Saying, ...] = ()
    asks: str = ""


def laws(name: str | None = None) -> Laws:
    """All laws, or one of them with what it says for `BUDGETS`.

    Raises:
        UsageError: no such law, with the nearest name; or one that is not offered, with the reason.
    """
    known = entries()
    if name is None:
        return Laws(tuple(known.values()))
    require_offered(name, known)
    if name in FORMS:
        return Laws((known[name],), asks=FORMS[name].refusal)
    return Laws((known[name],), tuple(map(_speaker(name), BUDGETS)))


def as_json(found: Laws) -> dict[str, Any]:
    """The result as what `--json` prints."""
    shown = [
        {
            "name": entry.name,
            "about": entry.about,
            "formula": entry.formula,
            "default": entry.default,
            "constants": {symbol: constant.model_dump() for symbol, constant in entry.constants.items()},
            "ranges": {quantity: [span.low, span.high] for quantity, span in entry.ranges.items()},
        }
        for entry in found.entries
    ]
    says = [
        {
            "case": said.case,
            "remark": said.remark,
            "predicted": {k: v.model_dump() for k, v in said.predictions.items()},
        }
        for said in found.sayings
    ]
    return {"laws": shown, "says": says, "asks": found.asks, "refused": REFUSED}


def _speaker(name: str) -> Callable[[float], Saying]:
    """What asks the law of that name about a budget."""
    if name in LAWS:
        return partial(_optimum, LAWS[name])
    if name in OVERTRAIN_LAWS:
        return partial(_overtrained, OVERTRAIN_LAWS[name])
    rules = {"step-law": step_law, "power-lines": power_lines, "deepseek": deepseek}
    if name in rules:
        return partial(_advised, rules[name])
    return {"muennighoff": _repeated, "sardana": _served}[name]


def _optimum(law: ChinchillaLaw, flops: float) -> Saying:
    num_params, tokens = law.allocation(flops)
    loss = law_loss(law, num_params.p50, tokens.p50, tokens.p50)
    # N·D is the budget's: the more parameters, the fewer tokens.
    ratio = Estimate(
        p10=tokens.p10 / num_params.p90,
        p50=tokens.p50 / num_params.p50,
        p90=tokens.p90 / num_params.p10,
        unit="tokens/parameter",
        source=tokens.source,
    )
    inside = law.covers(flops, num_params.p50, tokens.p50)
    return Saying(
        f"{flops:.0e} FLOPs",
        {"parameters": num_params, "tokens": tokens, "ratio": ratio, "loss": loss},
        f"{'inside' if inside else 'outside'} the fitted range",
    )


def _repeated(flops: float) -> Saying:
    unique = MUENNIGHOFF.base.optimum(flops)[1] / SHORTAGE
    num_params, tokens = MUENNIGHOFF.optimum(flops, unique)
    epochs = tokens / unique
    return Saying(
        f"{flops:.0e} FLOPs, {unique:.2e} unique tokens",
        {
            "parameters": log_normal(num_params, ALLOCATION_SPREAD, "parameters", "guess"),
            "tokens": log_normal(tokens, ALLOCATION_SPREAD, "tokens", "guess"),
            "epochs": log_normal(epochs, ALLOCATION_SPREAD, "epochs", "guess"),
            "worth": MUENNIGHOFF.worth(unique, tokens),
            "loss": MUENNIGHOFF.predict(num_params, tokens, unique),
        },
        "the worth of the tokens in fresh ones spans the 95 % interval of R_D",
    )


def _overtrained(law: OverTrainLaw, flops: float) -> Saying:
    ratio = 20.0 * 32
    num_params, tokens = (flops / 6 / ratio) ** 0.5, (flops / 6 * ratio) ** 0.5
    loss = Estimate.around(law.loss(flops, ratio), TRANSFER_SPREAD, "nats/token", "guess")
    price = log_normal(law.price(ratio), ALLOCATION_SPREAD, "times the compute", "guess")
    inside = law.chinchilla().covers(flops, num_params, tokens)
    remark = f"{num_params:.2e} parameters, {tokens:.2e} tokens; {'inside' if inside else 'outside'} the runs"
    return Saying(f"{flops:.0e} FLOPs at {ratio:.0f} tokens a parameter", {"loss": loss, "price": price}, remark)


def _served(flops: float) -> Saying:
    served = SERVED * BESIROGLU.optimum(flops)[1]
    pairs = [_lifetimes(law, flops, served) for law in (BESIROGLU, *LAWS.values())]
    return Saying(
        f"the loss of {flops:.0e} FLOPs, {served:.2e} tokens served",
        {
            "parameters": _across([best.num_params for _, best in pairs], "parameters"),
            "tokens": _across([best.tokens for _, best in pairs], "tokens"),
            "life_cost": _across([best.flops for _, best in pairs], "FLOPs"),
            "saved": _across([1 - best.flops / plain.flops for plain, best in pairs], "of the FLOPs"),
        },
        "p10 and p90 are the least and the most that any of the fitted constants says",
    )


def _lifetimes(law: ChinchillaLaw, flops: float, served: float) -> tuple[Lifetime, Lifetime]:
    """The model that serving does not weigh on, and the one that is cheapest with it, at the loss of a budget."""
    loss = law.loss(*law.optimum(flops))
    return chinchilla_lifetime(law, loss, served), serving_optimum(law, loss, served)


def _across(values: Sequence[float], unit: str) -> Estimate:
    """What laws say, the default's first."""
    return Estimate(p10=min(values), p50=values[0], p90=max(values), unit=unit, source="guess")


def _advised(rule: Callable[[int, float], Advice], flops: float) -> Saying:
    num_params, tokens = BESIROGLU.optimum(flops)
    advice = rule(round(num_params), tokens)
    return Saying(
        f"{num_params:.2e} parameters, {tokens:.2e} tokens",
        {"learning rate": advice.rate, "batch": advice.batch},
        f"{advice.reason}; {advice.parameterisation}; {advice.schedule}",
    )
