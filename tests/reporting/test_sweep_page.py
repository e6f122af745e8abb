"""The report of a sweep: charts of its own law, and a page that tells what `sweep.json` and `law.json` hold."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.optimize import minimize

from chinchilla.config.errors import DataError, FaultError
from chinchilla.config.estimate import Estimate
from chinchilla.config.plan import LABELS
from chinchilla.config.shape import Shape
from chinchilla.planning.halving import prior_of
from chinchilla.planning.huber import Array, Points
from chinchilla.planning.own_law import OwnLaw, _law, uncentred
from chinchilla.planning.posterior import _log_density, belief, posterior, profile
from chinchilla.planning.runs import Runs
from chinchilla.reporting import sweep_plots
from chinchilla.reporting.sweep_page import render_sweep
from chinchilla.verbs.report import report

PRIOR = prior_of("generate")
BIG = 8e6, 9e7


@pytest.fixture(scope="module")
def runs() -> Runs:
    """Eight small runs of a law, with 1 % of noise."""
    rng = np.random.default_rng(1)
    sizes, tokens = np.geomspace(4e5, 4e6, 4).repeat(2), np.array([1e6, 8e6] * 4) * np.geomspace(1, 2, 4).repeat(2)
    loss = (1.6 + 400 / sizes**0.4 + 90 / tokens**0.28) * np.exp(0.01 * rng.standard_normal(8))
    return sweep_plots.swept_runs(list(zip(sizes, tokens, loss, strict=True)), "a-sweep")


@pytest.fixture(scope="module")
def law(runs: Runs) -> OwnLaw:
    found = posterior(Points.of(runs.num_params, runs.tokens), runs.loss, PRIOR)
    logs = uncentred(found.theta, found.centre)
    best = _law(uncentred(found.best[None], found.centre)[0], logs, runs.num_params, runs.tokens, "a test")
    return OwnLaw(
        law=best, draws=tuple(map(tuple, np.column_stack([logs, found.noise]).tolist())), task="generate",
        vocab_size=500, bytes_per_token=3.0, unique_tokens=10**9,
    )  # fmt: skip


def test_valleys_are_the_law_at_one_compute_and_hold_its_runs(law: OwnLaw, runs: Runs) -> None:
    valleys = sweep_plots.own_valleys(law, runs, BIG[0])
    assert len(valleys) >= 3
    for valley in valleys:
        tokens = valley.flops / 6 / valley.num_params
        assert valley.loss == pytest.approx(
            [law.law.loss(n, d) for n, d in zip(valley.num_params, tokens, strict=True)]
        )
        size, loss = valley.lowest
        assert valley.num_params[0] <= valley.low <= size <= valley.high <= valley.num_params[-1]
        assert loss <= valley.loss.min() * (1 + 1e-9)
        assert 6 * valley.runs.num_params * valley.runs.tokens == pytest.approx(valley.flops, rel=0.09)
        assert len(valley.runs)
    assert valleys[-1].num_params[-1] > BIG[0] > runs.num_params.max()


@pytest.mark.parametrize("index", [3, 4], ids=["alpha", "beta"])
def test_a_profile_is_what_another_minimiser_finds(index: int, law: OwnLaw, runs: Runs) -> None:
    points, target = Points.of(runs.num_params, runs.tokens), np.log(runs.loss)
    values = np.percentile(np.array(law.draws)[:, index], (2, 50, 98))
    lost, _ = profile(points, runs.loss, PRIOR, index, values)
    known, free = belief(PRIOR, float(target.mean())), np.arange(5) != index

    def cost(rest: Array, held: float) -> float:
        phi = np.full(5, held)
        phi[free] = rest
        return -float(_log_density(phi[None], known, points, target)[0])

    options = {"maxfev": 3000, "xatol": 1e-5, "fatol": 1e-5}
    found = [
        minimize(cost, known.mean[free], args=(held,), method="Nelder-Mead", options=options) for held in np.log(values)
    ]
    least = np.array([each.fun for each in found])
    assert lost == pytest.approx(least - least.min(), abs=1e-3)
    assert lost[1] == 0 and lost[0] > 0.3 and lost[2] > 0.3


def test_with_no_news_the_profile_is_the_priors(law: OwnLaw) -> None:
    """Two runs of one size say nothing of alpha."""
    points = Points.of(np.array([1e6, 1e6]), np.array([1e6, 4e6]))
    values = np.geomspace(0.15, 1.0, 9)
    lost, before = profile(points, np.array([4.0, 3.4]), PRIOR, 3, values)
    assert lost == pytest.approx(before - before.min(), abs=0.05)


def test_profiles_are_drawn_with_their_interval(law: OwnLaw, runs: Runs) -> None:
    axes = Figure().subplots()
    sweep_plots._profile(axes, "beta", law, runs, PRIOR)
    prior, lost = axes.lines[0].get_data(), axes.lines[1].get_data()
    draws = np.array(law.draws)[:, 4]
    assert lost[0][0] < np.percentile(draws, 1) and lost[0][-1] > np.percentile(draws, 99)
    assert (np.array(lost[1]) < np.array(prior[1])).sum() < len(prior[1])  # narrower than the prior somewhere


@pytest.fixture
def folder(tmp_path, law: OwnLaw, runs: Runs):
    shape = Shape(vocab_size=500, dim=128, num_heads=2, num_kv_heads=2, head_dim=64, ffn_dim=512, num_decoder_layers=4)
    small = [
        {"run": f"small-{number}", "params": n, "tokens": d, "steps": 100 * number, "loss": loss, "time_s": 60.0}
        for number, (n, d, loss) in enumerate(zip(runs.num_params, runs.tokens, runs.loss, strict=True), 1)
    ]
    size = Estimate(p10=4e6, p50=BIG[0], p90=1.6e7, unit="parameters", source="law")
    loss = law.predict(*BIG)
    big = {
        "shape": shape.model_dump(mode="json"), "params": size.model_dump(), "tokens": BIG[1], "epochs": 0.09,
        "loss": loss.model_dump(), "width_90": 0.07,
    }  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": small, "big": big, "target_s": 28_800.0}))
    (tmp_path / "law.json").write_text(law.model_dump_json())
    return tmp_path


def test_a_sweeps_page_has_runs_constants_and_three_charts(folder, law: OwnLaw, runs: Runs) -> None:
    text = report(folder).read_text("utf-8")
    assert text == render_sweep(folder.resolve())
    for title in ("Loss and the efficient frontier", "IsoFLOP valleys", "Profile of the exponents", "Small runs"):
        assert title in text, title
    assert text.count("<svg") == 3
    assert all(f"{loss:.3f}" in text for loss in runs.loss)
    assert "For 8h00m of training, by a law from 8 small runs" in text
    charts = sweep_plots.sweep_charts(law, runs, PRIOR, BIG, LABELS["generate"])
    assert all(svg in text for _, svg, _ in charts)


def test_a_damaged_sweep_is_told(folder) -> None:
    told = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(told | {"runs": []}))
    with pytest.raises(FaultError, match=r"sweep\.json: runs.*; do `chinchilla sweep` there again$"):
        report(folder)
    (folder / "sweep.json").write_text("[]")
    with pytest.raises(FaultError, match=r"sweep\.json: holds list, not an object; do `chinchilla sweep` there again$"):
        report(folder)
    (folder / "sweep.json").write_text(json.dumps(told))
    (folder / "law.json").unlink()
    with pytest.raises(DataError, match=r"law\.json: cannot be read"):
        report(folder)
