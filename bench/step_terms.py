"""Would another kind of work mend the step-time model? From the tables of `bench/step_time.py`; nothing is measured.

    python bench/step_terms.py        seconds of CPU

Each line is one change to the kinds of work. For each table: the error (median, largest) of whole steps of models left
out one at a time, both precisions together, of all eighteen; and of the held-out ones from the calibration's alone, as
`step_time.py` has it. The last line is no model: each table's held-out steps as the table before measured them (the
first's: the last), times the median ratio of their calibration rows. What two measurements of one step differ by, no
count of work can foretell.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from step_time import every, read

from chinchilla.parallel.calibrate import PRECISIONS, Case, Timed, cases
from chinchilla.planning.count import parameters, products
from chinchilla.planning.memory import muon_matrices
from chinchilla.planning.step_model import gradient_work, nnls, update_work

TABLES = ("step_time", "step_time_again", "step_time_third", "step_time_fourth")
CACHE_BYTES = 2 * 2**20
Floats = NDArray[np.float64]
Work = Mapping[str, float]
Change = Callable[[Case, Work], Work]


def _same(case: Case, work: Work) -> Work:
    return work


def without(kind: str) -> Change:
    """Without one kind."""
    return lambda case, work: {name: amount for name, amount in work.items() if name != kind}


def beside(kind: str, amount: Callable[[Case, Work], float]) -> Change:
    """With one kind more, or another count of one."""
    return lambda case, work: {**work, kind: amount(case, work)}


def _padded(case: Case, size: int) -> float:
    plain = [p for p in products(case.shape, case.batch) if not p.name.endswith(("scores", "values"))]
    return sum(6 * p.count * prod(-(-number // size) * size for number in (p.m, p.k, p.n)) for p in plain)


def _beyond_cache(sizes: Sequence[tuple[int, ...]]) -> float:
    return sum(max(0, 4 * prod(size) - CACHE_BYTES) for size in sizes)


def _matrices(case: Case) -> list[tuple[int, ...]]:
    return [size for size in parameters(case.shape).values() if len(size) == 2]


def _muon(case: Case) -> list[tuple[int, int]]:
    return muon_matrices(parameters(case.shape)) if case.optimizer == "muon" else []


# Name: gradients' change, updates' change, kinds that have one rate in both precisions.
VARIANTS: dict[str, tuple[Change, Change, tuple[str, ...]]] = {
    "as it is": (_same, _same, ()),
    "weights beyond a 2 MB cache": (beside("big", lambda c, w: _beyond_cache(_matrices(c))), _same, ()),
    "products padded to 32": (beside("products", lambda c, w: _padded(c, 32)), _same, ()),
    "products padded to 64": (beside("products", lambda c, w: _padded(c, 64)), _same, ()),
    "calls that grow with the width": (beside("wide", lambda c, w: w["operators"] * c.shape.dim), _same, ()),
    "a cost of a pass": (beside("passes", lambda c, w: 1.0), _same, ()),
    "no cost of an operator": (without("operators"), _same, ()),
    "Muon's numbers beyond a 2 MB cache": (_same, beside("big", lambda c, w: _beyond_cache(_muon(c))), ()),
    "Muon's short sides squared": (
        _same,
        beside("squares", lambda c, w: float(sum(min(size) ** 2 for size in _muon(c)))),
        (),
    ),
    "optimizer beyond 32 MB": (
        _same,
        beside("big", lambda c, w: max(0.0, 16 * w["adamw"] - 32e6) if c.optimizer == "adamw" else 0.0),
        (),
    ),
    "one rate in both precisions but for products": (
        _same,
        _same,
        ("attention", "elementwise", "cross-entropy", "matrices", "operators"),
    ),
}


def rows(works: Sequence[Work], precisions: Sequence[str], shared: Sequence[str]) -> Floats:
    """(cases, rates): kinds in `shared` have one rate, the others one for each precision."""
    columns = [(kind, p) for kind in works[0] for p in (("",) if kind in shared else PRECISIONS)]
    made = zip(works, precisions, strict=True)
    return np.array([[work[kind] if p in ("", own) else 0.0 for kind, p in columns] for work, own in made])


def rates(matrix: Floats, times: Floats) -> Floats:
    """Non-negative least squares on relative errors."""
    relative = matrix / times[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1
    return nnls(relative / scale, np.ones(len(times))) / scale


def errors(timed: Sequence[Timed], variant: tuple[Change, Change, tuple[str, ...]]) -> tuple[Floats, Floats]:
    """Of models left out one at a time, and of the held-out ones, as shares of whole steps."""
    change, change_update, shared = variant
    found = [each.case for each in timed]
    precisions = [case.precision for case in found]
    gradients = [change(c, gradient_work(c.shape, c.batch, c.precision)) for c in found]
    updates = [change_update(c, update_work(c.shape, c.optimizer, c.precision)) for c in found]
    parts = (
        (rows(gradients, precisions, shared), np.array([each.gradients_s for each in timed])),
        (rows(updates, precisions, list(updates[0])), np.array([each.update_s for each in timed])),
    )
    whole = sum(times for _, times in parts)

    def error(kept: Sequence[int]) -> Floats:
        predicted = sum(matrix @ rates(matrix[kept], times[kept]) for matrix, times in parts)
        return np.abs(np.asarray(predicted) / whole - 1)

    everything = range(len(found))
    models = range(0, len(found), len(PRECISIONS))
    left_out = [error([i for i in everything if i not in (m, m + 1)])[[m, m + 1]] for m in models]
    return np.concatenate(left_out), error(range(len(cases())))[len(cases()) :]


def repeated(mine: Sequence[Timed], other: Sequence[Timed]) -> Floats:
    """How far off the other table's held-out steps are, brought to this one's speed by the calibration's."""
    mine_s, other_s = (np.array([each.gradients_s + each.update_s for each in timed]) for timed in (mine, other))
    ratio = mine_s / other_s
    return np.abs(np.median(ratio[: len(cases())]) / ratio[len(cases()) :] - 1)


def shown(found: Floats) -> str:
    """Median and largest."""
    return f"{np.median(found):6.1%} {found.max():6.1%}"


def main() -> None:
    """Print the table."""
    tables: list[Any] = [read(Path(__file__).parent / "results" / f"{name}.csv") for name in TABLES]
    assert [each.case for each in tables[0]] == every()
    print(f"{'':54}" + "".join(f"{name}: left out, held-out".rjust(42) for name in TABLES))
    for name, variant in VARIANTS.items():
        found = [errors(timed, variant) for timed in tables]
        print(f"{name:54}" + "".join(f"{shown(left)}   {shown(held)}".rjust(42) for left, held in found))
    found = [repeated(each, before) for each, before in zip(tables, (tables[-1], *tables), strict=False)]
    print(f"{'the same steps, as the table before has them':54}" + "".join(shown(each).rjust(42) for each in found))


if __name__ == "__main__":
    main()
