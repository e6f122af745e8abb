"""The objective of approach 3 and its minimiser, for many fits at once.

A fit is theta = (e, a, b, alpha, beta) over centred logs n = log N - mean, d = log D - mean:

    log L = log(exp(e) + exp(a - alpha·n) + exp(b - beta·d))

so E = exp(e), and exp(a), exp(b) are the two other terms at the geometric centre of the runs. Centring takes away most
of the correlation between a scale and its exponent. The objective is the sum over runs of weight · Huber(log L - log
loss) (Hoffmann 2022, eq. 3). Gradient and Hessian are analytic. Newton steps do not depend on the objective's scale,
which is what stops a quasi-Newton method early here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DELTA = 1e-3
"""Where Huber's loss turns from square to straight (Hoffmann 2022, appendix D.3)."""

MAX_STEPS = 200
MAX_MOVE = 1.0
"""No component of theta moves further in one step."""
TOLERANCE = 1e-9
"""A fit is done when its next step would move theta by less."""

ALL_FREE = (True, True, True, True, True)


@dataclass(frozen=True, eq=False)
class Points:
    """Centred logs of parameters and tokens, each (runs,), and what was taken off."""

    log_params: Array
    log_tokens: Array
    centre: tuple[float, float]

    @classmethod
    def of(cls, num_params: Array, tokens: Array) -> "Points":
        """Points of runs with these parameters and tokens, each (runs,)."""
        log_params, log_tokens = np.log(num_params), np.log(tokens)
        centre = float(log_params.mean()), float(log_tokens.mean())
        return cls(log_params - centre[0], log_tokens - centre[1], centre)

    def at(self, num_params: float, tokens: float) -> "Points":
        """One other run, on the same centre."""
        logs = np.log([num_params]) - self.centre[0], np.log([tokens]) - self.centre[1]
        return Points(*logs, self.centre)


@dataclass(frozen=True, eq=False)
class Minimum:
    """Minimisers theta (fits, 5), their objectives (fits,) and the largest component of each gradient (fits,)."""

    theta: Array
    objective: Array
    gradient: Array


def log_loss(theta: Array, points: Points) -> Array:
    """The law's log loss of every fit at every point, (fits, runs)."""
    return _model(theta, points)[0]


def jacobian(theta: Array, points: Points) -> Array:
    """Derivatives of `log_loss` by theta, (fits, runs, 5)."""
    return _jacobian(_model(theta, points)[1], points)


def huber(residual: Array) -> Array:
    """Huber's loss, elementwise: r²/2 up to `DELTA`, straight beyond."""
    size = np.abs(residual)
    return np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))


def minimise(start: Array, points: Points, target: Array, weights: Array, free: tuple[bool, ...] = ALL_FREE) -> Minimum:
    """Damped Newton (Levenberg 1944, Marquardt 1963) for every fit at once, each until it stands still.

    `start` is (fits, 5); `target`, the log losses, and `weights` are (fits, runs) or (1, runs); components of theta
    that are not `free` keep their start.
    """
    theta = start.copy()
    target, weights = (np.broadcast_to(each, (len(theta), len(points.log_params))) for each in (target, weights))
    residual, shares = _residual(theta, points, target)
    objective = (weights * huber(residual)).sum(-1)
    damping = np.full(len(theta), 1e-3)
    steepest = np.zeros(len(theta))
    live = np.arange(len(theta))
    held = ~np.array(free)
    for _ in range(MAX_STEPS):
        if not len(live):
            break
        gradient, hessian, scale = _derivatives(residual[live], shares[live], weights[live], points)
        gradient[:, held], hessian[:, held], hessian[:, :, held] = 0.0, 0.0, 0.0
        step = _step(gradient, hessian, scale * damping[live, None], held)
        moved = theta[live] + step
        new_residual, new_shares = _residual(moved, points, target[live])
        value = (weights[live] * huber(new_residual)).sum(-1)
        better = value < objective[live]
        damping[live] = np.clip(damping[live] * np.where(better, 0.2, 5.0), 1e-12, 1e15)
        taken = live[better]
        theta[taken], objective[taken] = moved[better], value[better]
        residual[taken], shares[taken] = new_residual[better], new_shares[better]
        steepest[live] = np.abs(gradient).max(-1)
        live = live[np.abs(step).max(-1) > TOLERANCE]
    return Minimum(theta, objective, steepest)


def _model(theta: Array, points: Points) -> tuple[Array, Array]:
    """Log losses (fits, runs), and the share of each of the three terms in the loss (fits, runs, 3)."""
    e, a, b, alpha, beta = (column[:, None] for column in theta.T)
    by_size, by_tokens = a - alpha * points.log_params, b - beta * points.log_tokens
    terms = np.stack([np.broadcast_to(e, by_size.shape), by_size, by_tokens], -1)
    top = terms.max(-1, keepdims=True)
    shares = np.exp(terms - top)
    total = shares.sum(-1, keepdims=True)
    return (top + np.log(total))[..., 0], shares / total


def _residual(theta: Array, points: Points, target: Array) -> tuple[Array, Array]:
    found, shares = _model(theta, points)
    return found - target, shares


def _jacobian(shares: Array, points: Points) -> Array:
    e, a, b = (shares[..., index] for index in range(3))
    return np.stack([e, a, b, -a * points.log_params, -b * points.log_tokens], -1)


def _derivatives(residual: Array, shares: Array, weights: Array, points: Points) -> tuple[Array, Array, Array]:
    """Gradient (fits, 5), Hessian (fits, 5, 5) and, for the damping, the always positive diagonal (fits, 5)."""
    slopes = _jacobian(shares, points)
    pull = weights * np.clip(residual, -DELTA, DELTA)
    gradient = (pull[..., None] * slopes).sum(1)
    # Second derivatives of a log-sum-exp over terms linear in theta: the shares' covariance of the terms' slopes.
    bend = weights * (np.abs(residual) <= DELTA) - pull
    hessian = np.swapaxes(slopes * bend[..., None], 1, 2) @ slopes
    _add_squares(hessian, 1, 3, pull * shares[..., 1], points.log_params)
    _add_squares(hessian, 2, 4, pull * shares[..., 2], points.log_tokens)
    hessian[:, 0, 0] += (pull * shares[..., 0]).sum(-1)
    majorant = weights * np.minimum(1.0, DELTA / np.maximum(np.abs(residual), DELTA))
    scale = (majorant[..., None] * slopes**2).sum(1)
    return gradient, hessian, scale + 1e-12


def _add_squares(hessian: Array, scale: int, exponent: int, pull: Array, log_size: Array) -> None:
    """Add Σ pull · s sᵀ, s = (1, -log_size) in the places of a term's scale and exponent."""
    hessian[:, scale, scale] += pull.sum(-1)
    hessian[:, scale, exponent] -= pull @ log_size
    hessian[:, exponent, scale] -= pull @ log_size
    hessian[:, exponent, exponent] += pull @ log_size**2


def _step(gradient: Array, hessian: Array, damping: Array, held: NDArray[np.bool_]) -> Array:
    """The damped Newton step of each fit, (fits, 5)."""
    damped = hessian + np.einsum("fk,kl->fkl", damping, np.eye(5)) + np.diag(held.astype(float))
    step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
    return np.clip(step, -MAX_MOVE, MAX_MOVE)
