"""Published iterations and memory of GPT models of 22 to 1,000 billion parameters on A100s, against our counts.

    python bench/published_gpu_steps.py     writes bench/results/published_gpu_steps.csv; takes a second

The measured figures are those of Korthikanti 2022 (arXiv 2205.05198, table 5, figure 1). `untuned` is the datasheet's
rates alone, `tuned` divides by one efficiency fitted on the two 22B rows; the other six are predicted. `flops_only`
is the same fit with FLOPs and bubble alone. Memory needs no fit: figure 1 turns out to be the paper's own formula.
"""

import csv
from dataclasses import replace
from pathlib import Path

from chinchilla.planning.megatron import (
    A100,
    PUBLISHED,
    Published,
    Recompute,
    activation_bytes,
    fit_efficiency,
    flops_only,
    state_bytes,
    step_time,
)

GIB = 2.0**30
MODES: tuple[tuple[Recompute, bool], ...] = (("full", False), ("selective", True))
Key = tuple[str, Recompute]


def measured() -> dict[Key, float]:
    """Published seconds by model and recomputation."""
    return {
        (row.model.name, mode): row.full_s if mode == "full" else row.selective_s
        for row in PUBLISHED
        for mode, _ in MODES
    }


def untuned() -> dict[Key, float]:
    """Seconds at the datasheet's rates."""
    return {
        (row.model.name, mode): step_time(row.model, mode, sequence).total_s
        for row in PUBLISHED
        for mode, sequence in MODES
    }


def by_flops() -> dict[Key, float]:
    """Seconds by FLOPs and bubble alone."""
    return {(row.model.name, mode): flops_only(row.model, mode) for row in PUBLISHED for mode, _ in MODES}


def without_waves() -> dict[Key, float]:
    """Seconds at the datasheet's rates where no product waits for its last wave: tiles on one processor have none."""
    gpu = replace(A100, processors=1)
    return {
        (row.model.name, mode): step_time(row.model, mode, sequence, gpu).total_s
        for row in PUBLISHED
        for mode, sequence in MODES
    }


def two_efficiencies() -> tuple[dict[Key, float], float, float]:
    """Products and all else with an efficiency each, which the two 22B rows determine exactly."""
    steps = {(row.model.name, mode): step_time(row.model, mode, seq) for row in PUBLISHED for mode, seq in MODES}
    truth = measured()
    (p, r, m), (q, s, n) = (
        (steps[key].products_s, steps[key].total_s - steps[key].products_s, truth[key])
        for key in steps
        if key[0] == "22B"
    )
    products, rest = (m * s - n * r) / (p * s - q * r), (p * n - q * m) / (p * s - q * r)
    times = {key: products * step.products_s + rest * (step.total_s - step.products_s) for key, step in steps.items()}
    return times, 1 / products, 1 / rest


def tuned(times: dict[Key, float]) -> tuple[dict[Key, float], float]:
    """The times over an efficiency fitted on the 22B rows, and the efficiency."""
    truth = measured()
    seen = [key for key in truth if key[0] == "22B"]
    efficiency = fit_efficiency([times[key] for key in seen], [truth[key] for key in seen])
    return {key: time / efficiency for key, time in times.items()}, efficiency


def errors(times: dict[Key, float], held_out: bool = True) -> list[float]:
    """Relative errors, of the six rows that nothing was fitted on, or of all eight."""
    truth = measured()
    return [abs(times[key] / truth[key] - 1) for key in truth if key[0] != "22B" or not held_out]


def memory_rows(row: Published) -> list[dict[str, object]]:
    """Published and counted GiB of one model."""
    pairs = (
        ("activations, none", row.none_gib, activation_bytes(row.model, "none", False)),
        ("activations, selective + sequence", row.selective_gib, activation_bytes(row.model, "selective", True)),
        ("weights and optimizer", row.state_gib, state_bytes(row.model)),
    )
    return [
        {"model": row.model.name, "quantity": name, "unit": "GiB", "published": known, "untuned": found / GIB,
         "untuned_error": f"{found / GIB / known - 1:+.4%}"}
        for name, known, found in pairs
    ]  # fmt: skip


def time_rows() -> list[dict[str, object]]:
    """Published and predicted seconds."""
    raw, flops = untuned(), by_flops()
    (fitted, efficiency), (simple, mfu) = tuned(raw), tuned(flops)
    print(f"efficiency fitted on 22B: {efficiency:.4f} of the datasheet; by FLOPs alone {mfu:.4f}")
    (waveless, without), (double, products, rest) = tuned(without_waves()), two_efficiencies()
    print(f"not used: without waves {without:.4f}; two efficiencies, products {products:.4f}, all else {rest:.4f}")
    tried = {"untuned": raw, "tuned": fitted, "flops_only": simple, "no waves": waveless, "two": double}
    for name, times in tried.items():
        held, every = errors(times), errors(times, held_out=False)
        print(f"{name:11s} mean of six {sum(held) / 6:.2%}, most {max(held):.2%}; mean of eight {sum(every) / 8:.2%}")
    return [
        {"model": key[0], "quantity": f"iteration, {key[1]}", "unit": "s", "published": known,
         "untuned": round(raw[key], 4), "untuned_error": f"{raw[key] / known - 1:+.2%}",
         "tuned": round(fitted[key], 4), "tuned_error": f"{fitted[key] / known - 1:+.2%}",
         "flops_only": round(simple[key], 4), "flops_only_error": f"{simple[key] / known - 1:+.2%}"}
        for key, known in measured().items()
    ]  # fmt: skip


def main() -> None:
    """Print and keep."""
    rows = time_rows() + [line for row in PUBLISHED for line in memory_rows(row)]
    path = Path(__file__).parent / "results" / "published_gpu_steps.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            row["model"],
            row["quantity"],
            row["published"],
            row["untuned"],
            row.get("tuned", ""),
            row.get("tuned_error", row["untuned_error"]),
        )


if __name__ == "__main__":
    main()
