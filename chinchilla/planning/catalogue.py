"""Every law there is here, in one form to list: constants with their source, formula, and where it holds."""

from dataclasses import dataclass

from chinchilla.planning import hparams
from chinchilla.planning.constants import Constant, Span
from chinchilla.planning.forms import FORMS, Form
from chinchilla.planning.laws import BESIROGLU, LAWS, ChinchillaLaw
from chinchilla.planning.overtrain import OVERTRAIN_LAWS, OverTrainLaw
from chinchilla.planning.repeat import MUENNIGHOFF, RepeatLaw

DEFAULTS = (BESIROGLU.name, "step-law")
"""The laws that a plan takes unasked; none may rest on a constant quoted from memory."""


@dataclass(frozen=True)
class Entry:
    """A law: what it is for, its formula, constants by symbol, and the span of each quantity it was fitted on."""

    name: str
    about: str
    formula: str
    constants: dict[str, Constant]
    ranges: dict[str, Span]

    @property
    def default(self) -> bool:
        """Whether plans take it unasked."""
        return self.name in DEFAULTS


def entries() -> dict[str, Entry]:
    """All laws by name, in the order to list them."""
    found = [
        *map(_chinchilla, LAWS.values()),
        _repeat(MUENNIGHOFF),
        *map(_overtrain, OVERTRAIN_LAWS.values()),
        _SARDANA,
        _STEP_LAW,
        _POWER_LINES,
        _DEEPSEEK,
        *map(_form, FORMS.values()),
    ]
    return {entry.name: entry for entry in found}


def _chinchilla(law: ChinchillaLaw) -> Entry:
    return Entry(
        name=law.name,
        about="loss, and the best size and tokens for a budget",
        formula="L = E + A/N^alpha + B/D^beta, C = 6*N*D",
        constants={
            "E": law.irreducible,
            "A": law.param_scale,
            "B": law.token_scale,
            "alpha": law.param_exponent,
            "beta": law.token_exponent,
        },
        ranges={"parameters": law.params, "tokens": law.tokens, "FLOPs": law.flops},
    )


def _repeat(law: RepeatLaw) -> Entry:
    return Entry(
        name=law.name,
        about="repeated data: what later epochs are worth, and the best size when text is short",
        formula="L(N', D'), D' = U + U*R_D*(1 - e^(-(D/U - 1)/R_D)); N' likewise from min(N, N_opt(U)) and R_N",
        constants={
            "R_D": law.token_half_life,
            "R_N": law.param_half_life,
        }
        | _chinchilla(law.base).constants,
        ranges={"parameters": law.base.params, "tokens": law.base.tokens, "epochs": law.epochs},
    )


def _overtrain(law: OverTrainLaw) -> Entry:
    return Entry(
        name=law.name,
        about="over-training: the price of a model smaller than the budget's best",
        formula="L = E + (a*M^eta + b*M^-eta)*C^-eta, M = D/N, C = 6*N*D",
        constants={"E": law.irreducible, "a": law.param_scale, "b": law.token_scale, "eta": law.exponent},
        ranges={
            "tokens a parameter": law.ratios,
            "parameters": law.params,
            "tokens": law.tokens,
            "FLOPs": law.flops,
        },
    )


def _form(form: Form) -> Entry:
    return Entry(form.name, f"{form.about}; to fit yourself", form.formula, {}, {})


_SARDANA = Entry(
    name="sardana",
    about="serving counted in: the cheapest model of a given loss over its whole life; constants of the default law",
    formula="min 6*N*D + 2*N*D_inf where L(N, D) = loss",
    constants=_chinchilla(BESIROGLU).constants,
    ranges={"parameters": BESIROGLU.params, "tokens": BESIROGLU.tokens},
)
_STEP_LAW = Entry(
    name="step-law",
    about="peak learning rate and batch (tokens) for AdamW, cosine to 1e-5; N without the vocabulary",
    formula="rate = c*N^a*D^b, batch = k*D^m",
    constants={
        "c": hparams.RATE_SCALE,
        "a": hparams.RATE_PARAM_EXPONENT,
        "b": hparams.RATE_TOKEN_EXPONENT,
        "k": hparams.BATCH_SCALE,
        "m": hparams.BATCH_TOKEN_EXPONENT,
    },
    ranges={"parameters": hparams.PARAMS, "tokens": hparams.TOKENS},
)
_POWER_LINES = Entry(
    name="power-lines",
    about="a good batch carried over to other durations, to compare with",
    formula="batch ~ D^m, rate ~ sqrt(batch)",
    constants={"m": hparams.POWER_LINES_EXPONENT},
    ranges={},
)
_DEEPSEEK = Entry(
    name="deepseek",
    about="peak learning rate and batch by compute alone, to compare with",
    formula="rate = c*C^a, batch = k*C^m, C = 6*N*D",
    constants={
        "c": hparams.DEEPSEEK_RATE_SCALE,
        "a": hparams.DEEPSEEK_RATE_EXPONENT,
        "k": hparams.DEEPSEEK_BATCH_SCALE,
        "m": hparams.DEEPSEEK_BATCH_EXPONENT,
    },
    ranges={},
)
