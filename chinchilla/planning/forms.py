"""Forms to fit yourself: what precision, a teacher, rare communication and sparsity do to the loss.

The forms are published; their constants were known here from memory only, so there are none to plan with. Fit them to
your own runs (`chinchilla fit --form`) or bring constants you trust. All are positive; signs stand in the formulas.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chinchilla.config.errors import UsageError

Values = Mapping[str, float]


@dataclass(frozen=True)
class Form:
    """A loss in nats a token as a function of `arguments` (columns of your runs) and `constants` (to be fitted)."""

    name: str
    about: str
    formula: str
    source: str
    arguments: tuple[str, ...]
    constants: tuple[str, ...]
    evaluate: Callable[[Values, Values], float]
    vary: str

    def loss(self, constants: Values | None, arguments: Values) -> float:
        """The loss of a run.

        Raises:
            UsageError: constants or arguments are missing, unknown, not finite or not positive; says what to bring.
        """
        if not constants:
            raise UsageError(self.refusal)
        _require(self.constants, constants, f"{self.name}: constant")
        _require(self.arguments, arguments, f"{self.name}: argument")
        return self.evaluate(constants, arguments)

    @property
    def least_runs(self) -> int:
        """The fewest runs to fit it to: two for each constant."""
        return 2 * len(self.constants)

    @property
    def refusal(self) -> str:
        """Why there is no answer without the user's own runs, and which would give one."""
        return (
            f"the {self.name} form has no constants here: those of {self.source} were quoted from memory, and a plan "
            f"must not rest on them. Fit {', '.join(self.constants)} to at least {self.least_runs} runs of your own "
            f"with columns {', '.join(self.arguments)} and loss, which vary {self.vary}: "
            f"chinchilla fit RUNS.csv --form {self.name}"
        )


def _require(names: tuple[str, ...], values: Values, what: str) -> None:
    for name in names:
        if name not in values:
            raise UsageError(f"{what} {name!r} is missing: there must be {', '.join(names)}")
        if not (math.isfinite(values[name]) and values[name] > 0):
            raise UsageError(f"{what} {name} is {values[name]}: give a positive, finite number")
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise UsageError(f"{what} {unknown[0]!r} is unknown: there are {', '.join(names)}")


def _power_law(c: Values, num_params: float, tokens: float) -> float:
    return c["E"] + c["A"] * num_params ** -c["alpha"] + c["B"] * tokens ** -c["beta"]


def _precision(c: Values, a: Values) -> float:
    kept = 1.0
    for part in ("weights", "activations", "cache"):
        kept *= -math.expm1(-a[f"{part}_bits"] / c[f"gamma_{part}"])
    return _power_law(c, a["params"] * kept, a["tokens"])


def _quantisation(c: Values, a: Values) -> float:
    worse = c["C"] * a["tokens"] ** c["gamma_D"] / a["params"] ** c["gamma_N"] * math.exp(-a["bits"] / c["gamma"])
    return a["loss_before"] + worse


def _distillation(c: Values, a: Values) -> float:
    teacher, alone = a["teacher_loss"], a["student_loss_alone"]
    gap = (1 + (teacher / (alone * c["d1"])) ** (1 / c["f1"])) ** (-c["c1"] * c["f1"])
    reach = (c["A"] * a["params"] ** -c["alpha"] + c["B"] * a["tokens"] ** -c["beta"]) ** c["gamma"]
    return teacher + teacher ** -c["c0"] * gap * reach


def _low_communication(c: Values, a: Values) -> float:
    return c["A"] * a["params"] ** -c["alpha"] * a["replicas"] ** c["beta"]


def _sparse(c: Values, a: Values) -> float:
    scale = c["a_S"] * a["density"] ** c["b_S"] + c["c_S"]
    return scale * a["params"] ** -c["b_N"] + (c["a_D"] / a["tokens"]) ** c["b_D"] + c["c"]


PRECISION = Form(
    name="precision",
    about="training in fewer bits: weights, activations and cache of few bits make a model count as a smaller one",
    formula="E + A*N_eff^-alpha + B*D^-beta, N_eff = N * prod(1 - e^(-bits/gamma))",
    source="Kumar 2024 (arXiv 2411.04330)",
    arguments=("params", "tokens", "weights_bits", "activations_bits", "cache_bits"),
    constants=("E", "A", "B", "alpha", "beta", "gamma_weights", "gamma_activations", "gamma_cache"),
    evaluate=_precision,
    vary="each of the three precisions from 3 to 16 bits at two sizes or more",
)
QUANTISATION = Form(
    name="quantisation",
    about="quantising after training: the longer a model was trained for its size, the more it loses",
    formula="loss_before + C * D^gamma_D / N^gamma_N * e^(-bits/gamma)",
    source="Kumar 2024 (arXiv 2411.04330)",
    arguments=("params", "tokens", "bits", "loss_before"),
    constants=("C", "gamma_D", "gamma_N", "gamma"),
    evaluate=_quantisation,
    vary="size, tokens and bits, quantised without further training",
)
DISTILLATION = Form(
    name="distillation",
    about="learning from a teacher: its loss, and what the student would reach alone",
    formula="L_T + L_T^-c0 * (1 + (L_T/(L_alone*d1))^(1/f1))^(-c1*f1) * (A*N^-alpha + B*D^-beta)^gamma",
    source="Busbridge 2025 (arXiv 2502.08606)",
    arguments=("params", "tokens", "teacher_loss", "student_loss_alone"),
    constants=("c0", "c1", "d1", "f1", "A", "alpha", "B", "beta", "gamma"),
    evaluate=_distillation,
    vary="teacher, student size and tokens, with teachers both weaker and stronger than the student alone",
)
LOW_COMMUNICATION = Form(
    name="low-communication",
    about="replicas that exchange rarely (DiLoCo), each run at its own best size of data",
    formula="A * N^-alpha * M^beta",
    source="Charles 2025 (arXiv 2503.09799)",
    arguments=("params", "replicas"),
    constants=("A", "alpha", "beta"),
    evaluate=_low_communication,
    vary="size over a decade and replicas from 1 to 8, tokens a parameter and steps between exchanges held",
)
SPARSE = Form(
    name="sparse",
    about="training with most weights at zero: density is the share that is not, and N counts those",
    formula="(a_S*density^b_S + c_S) * N^-b_N + (a_D/D)^b_D + c",
    source="Frantar 2023 (arXiv 2309.08520)",
    arguments=("params", "tokens", "density"),
    constants=("a_S", "b_S", "c_S", "b_N", "a_D", "b_D", "c"),
    evaluate=_sparse,
    vary="size, tokens and density, the last from 1 to 0.1 in four steps or more",
)

FORMS = {form.name: form for form in (PRECISION, QUANTISATION, DISTILLATION, LOW_COMMUNICATION, SPARSE)}


def form_of(name: str) -> Form:
    """The form of that name.

    Raises:
        UsageError: there is none; names those that there are.
    """
    if name not in FORMS:
        near = difflib.get_close_matches(name, FORMS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no form {name!r}; {hint}there are {', '.join(FORMS)}")
    return FORMS[name]
