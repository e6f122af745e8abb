"""Over-training: models smaller than the budget's best, trained for longer because they are cheaper to serve.

Gadre 2024 (arXiv 2403.08540), eq. 4, with C = 6·N·D FLOPs and M = D/N tokens a parameter:

    L(C, M) = E + (a·M^eta + b·M^-eta)·C^-eta

Over-trained runs lie on parallel lines in log (L - E): the price of a ratio M is the same factor at every budget. It is
a law of Hoffmann's form with one exponent, A = a·6^-eta, B = b·6^-eta, alpha = beta = 2·eta.
"""

from functools import partial

from chinchilla.config.frozen import Frozen
from chinchilla.planning.constants import Constant, Span
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN, ChinchillaLaw


class OverTrainLaw(Frozen):
    """E, a, b and eta for one training set; `ratios` are the tokens a parameter that were tried."""

    name: str
    irreducible: Constant
    param_scale: Constant
    token_scale: Constant
    exponent: Constant
    ratios: Span
    params: Span
    tokens: Span
    flops: Span

    def loss(self, flops: float, ratio: float) -> float:
        """L(C, M) in nats a token, for `flops` spent at `ratio` tokens a parameter; both > 0."""
        return self.irreducible.value + self._bend(ratio) * flops**-self.exponent.value

    @property
    def best_ratio(self) -> float:
        """M* = (b/a)^(1/(2·eta)), the tokens a parameter of least loss, at every budget."""
        return (self.token_scale.value / self.param_scale.value) ** (0.5 / self.exponent.value)

    def price(self, ratio: float) -> float:
        """How many times the compute a model at `ratio` needs for the loss of the best ratio."""
        return (self._bend(ratio) / self._bend(self.best_ratio)) ** (1 / self.exponent.value)

    def chinchilla(self) -> ChinchillaLaw:
        """The same law as L(N, D)."""
        shrink, exponent = FLOPS_PER_PARAM_TOKEN**-self.exponent.value, _times(self.exponent, 2)
        return ChinchillaLaw(
            name=self.name,
            irreducible=self.irreducible,
            param_scale=_times(self.param_scale, shrink),
            token_scale=_times(self.token_scale, shrink),
            param_exponent=exponent,
            token_exponent=exponent,
            params=self.params,
            tokens=self.tokens,
            flops=self.flops,
        )

    def _bend(self, ratio: float) -> float:
        eta = self.exponent.value
        return self.param_scale.value * ratio**eta + self.token_scale.value * ratio**-eta


def _times(constant: Constant, factor: float) -> Constant:
    error = None if constant.error is None else constant.error * factor
    return constant.model_copy(update={"value": constant.value * factor, "error": error})


_GADRE = partial(
    Constant,
    source="Gadre 2024 (arXiv 2403.08540), refit of its repository's 5 runs a set; errors on one degree of freedom",
    tag="verified",
)
_RANGES = {
    "ratios": Span(low=5, high=640),
    "params": Span(low=1.05e7, high=6.9e9),
    "tokens": Span(low=5.2e7, high=9.3e11),
    "flops": Span(low=3.3e15, high=8.0e21),
}
"""All 104 runs. Each set was fitted to four models of 11M to 412M at M = 20 and one at 320: the rest is foretold."""

GADRE_C4 = OverTrainLaw(
    name="gadre-c4",
    irreducible=_GADRE(value=1.50826, error=0.269),
    param_scale=_GADRE(value=141.277, error=53.0),
    token_scale=_GADRE(value=189.516, error=87.0),
    exponent=_GADRE(value=0.121236, error=0.0131),
    **_RANGES,
)
"""Trained on C4. Median error over its 34 runs 0.8 %, 4.3 % at 6.9G parameters, 14 % at M = 5."""

GADRE_REDPAJAMA = OverTrainLaw(
    name="gadre-redpajama",
    irreducible=_GADRE(value=1.83665, error=0.220),
    param_scale=_GADRE(value=212.236, error=83.0),
    token_scale=_GADRE(value=366.687, error=173.9),
    exponent=_GADRE(value=0.136425, error=0.0132),
    **_RANGES,
)
"""Trained on RedPajama. Its two dearest runs (1.4G at M = 640, 6.9G at 20) are foretold to 0.71 % and 0.73 %."""

GADRE_REFINEDWEB = OverTrainLaw(
    name="gadre-refinedweb",
    irreducible=_GADRE(value=1.73446, error=0.110),
    param_scale=_GADRE(value=157.116, error=27.4),
    token_scale=_GADRE(value=246.207, error=52.3),
    exponent=_GADRE(value=0.127197, error=0.0060),
    **_RANGES,
)
"""Trained on RefinedWeb. Median error over its 35 runs 0.9 %, 1.6 % at 6.9G parameters, 12 % at M = 5."""

OVERTRAIN_LAWS = {law.name: law for law in (GADRE_C4, GADRE_REDPAJAMA, GADRE_REFINEDWEB)}
"""All three give the loss on C4's validation text."""
