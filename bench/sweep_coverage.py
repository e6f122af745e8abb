"""How often the intervals of a law from ten small runs hold a larger run's loss, on exact laws with 0.4 and 1 % noise.

    python bench/sweep_coverage.py --laws 60

Laws are drawn over twice what small text models show; the ten runs have 0.5 to 8 million parameters and 0.2 to 1.6
million tokens, the larger run 8 and 2.5 million: four times the compute of the dearest. Writes
bench/results/sweep_coverage.csv.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from chinchilla.planning.halving import PRIORS
from chinchilla.planning.huber import Array, Points
from chinchilla.planning.posterior import posterior, width_90

RESULTS = Path(__file__).parent / "results" / "sweep_coverage.csv"

SIZES = np.array([5e5, 5e5, 1e6, 1e6, 2e6, 2e6, 4e6, 4e6, 8e6, 1e6])
TOKENS = np.array([2e5, 8e5, 4e5, 1.6e6, 2e5, 8e5, 4e5, 1.2e6, 5e5, 8e5])
BIG = 8e6, 2.5e6
NOISES = (0.004, 0.01)


def main() -> int:
    """Fit, foretell, count; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", type=int, default=60)
    laws = parser.parse_args().laws
    rows = [_counted(noise, laws) for noise in NOISES]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return 0


def _counted(noise: float, laws: int) -> dict[str, object]:
    rng, begun = np.random.default_rng(1), time.process_time()
    found = np.array([_foretold(seed, noise, rng) for seed in range(laws)])
    row = {
        "noise": noise,
        "laws": laws,
        "held_90": f"{found[:, 0].mean():.3f}",
        "held_80": f"{found[:, 1].mean():.3f}",
        "mean_error": f"{np.abs(found[:, 2]).mean():.4f}",
        "most_error": f"{np.abs(found[:, 2]).max():.4f}",
        "mean_width_90": f"{found[:, 3].mean():.4f}",
        "cpu_s_a_law": f"{(time.process_time() - begun) / laws:.2f}",
    }
    for name, value in row.items():
        print(f"{name:>14}  {value}")
    return row


def _foretold(seed: int, noise: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Whether the 90 % and the 80 % interval hold the larger run, the median's error, and the 90 % interval's width."""
    law = _drawn(rng)
    loss = law(SIZES, TOKENS) * np.exp(noise * rng.standard_normal(len(SIZES)))
    draws = posterior(Points.of(SIZES, TOKENS), loss, PRIORS["generate"], seed).losses(*BIG)
    true = float(law(np.array(BIG[0]), np.array(BIG[1])) * np.exp(noise * rng.standard_normal()))
    p5, p10, p50, p90, p95 = np.percentile(draws, (5, 10, 50, 90, 95)).tolist()
    return float(p5 <= true <= p95), float(p10 <= true <= p90), p50 / true - 1, width_90(draws)


def _drawn(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    e, alpha, beta = rng.uniform(1.5, 3), rng.uniform(0.25, 0.6), rng.uniform(0.2, 0.5)
    a, b = rng.uniform(0.3, 1.5) * 2e6**alpha, rng.uniform(0.8, 3) * 5e5**beta
    return lambda num_params, tokens: e + a / num_params**alpha + b / tokens**beta


if __name__ == "__main__":
    sys.exit(main())
