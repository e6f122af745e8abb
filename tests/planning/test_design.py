"""The posterior against other ways to it, the design against random ones, and what a law of one's own says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla.config.errors import DataError
from chinchilla.config.plan import Training
from chinchilla.config.run import Model
from chinchilla.planning import design as designing
from chinchilla.planning import posterior as sampling
from chinchilla.planning.count import num_params
from chinchilla.planning.design import Small, best_shape, design, ladder, lengths, likely_best
from chinchilla.planning.halving import PRIORS
from chinchilla.planning.huber import Points, log_loss
from chinchilla.planning.laws import effective_tokens
from chinchilla.planning.own_law import MISFIT, own_law, read_law
from chinchilla.planning.posterior import belief, natural, no_points, posterior, width_90
from chinchilla.planning.search import Facts

FACTS = Facts(
    task="generate", vocab_size=4000, unique_tokens=5_000_000, num_examples=1000, mean_source_len=0,
    mean_target_len=256, max_len=256, bytes_per_token=4.0,
)  # fmt: skip
TRAINING = Training(
    steps=100, batch_tokens=2048, accumulation=1, optimizer="muon", learning_rate=5e-3, embedding_learning_rate=5e-3,
    weight_decay=0.05, schedule="wsd", warmup_steps=10, decay_fraction=0.4, clip_norm=1.0, label_smoothing=0.0,
    dropout=0.0, ema_decay=0.0, reconstruct_weight=0.0, mask_rate=0.15, precision="fp32", compile=False, threads=1,
    eval_every=100, checkpoint_every=100, keep_checkpoints=2, log_every=10, seed=0,
)  # fmt: skip
SIZES = np.array([5e5, 5e5, 1e6, 1e6, 2e6, 2e6, 4e6, 4e6, 8e6, 1e6])
TOKENS = np.array([2e5, 8e5, 4e5, 1.6e6, 2e5, 8e5, 4e5, 1.2e6, 5e5, 8e5])
BIG = 8e6, 2.5e6


def drawn_law(rng):
    """A law like those of small text models, and its loss as a function."""
    e, alpha, beta = rng.uniform(1.5, 3), rng.uniform(0.25, 0.6), rng.uniform(0.2, 0.5)
    a, b = rng.uniform(0.3, 1.5) * 2e6**alpha, rng.uniform(0.8, 3) * 5e5**beta
    return lambda n, d: e + a / n**alpha + b / d**beta


def shape(dim):
    return next(each for each in ladder(FACTS, Model()) if each.dim == dim)


def small(dim, steps, time_s=None):
    size, tokens = num_params(shape(dim)), 2048.0 * steps
    return Small(shape(dim), size, steps, tokens, effective_tokens(5_000_000, tokens), time_s or size * tokens / 1e11)


@pytest.fixture(scope="module")
def ten_runs():
    law = drawn_law(np.random.default_rng(3))
    return posterior(Points.of(SIZES, TOKENS), law(SIZES, TOKENS), PRIORS["generate"])


@pytest.mark.parametrize(("noise", "width"), [(sampling.NOISE, 0.05), (0.01, 0.08)])
def test_intervals_hold_the_loss_of_a_larger_run_as_often_as_they_say(noise, width):
    # Six laws: intervals that held 90 % hold three or fewer in one case of sixty.
    rng, held, widths = np.random.default_rng(1), 0, []
    for seed in range(6):
        law = drawn_law(rng)
        loss = law(SIZES, TOKENS) * np.exp(noise * rng.standard_normal(len(SIZES)))
        found = posterior(Points.of(SIZES, TOKENS), loss, PRIORS["generate"], seed).losses(*BIG)
        low, high = np.percentile(found, (5, 95))
        held += low <= law(*BIG) * np.exp(noise * rng.standard_normal()) <= high
        widths.append(width_90(found))
    assert held >= 4
    assert np.mean(widths) < width


def test_the_draws_agree_with_weighed_draws_of_the_prior(monkeypatch):
    # Much noise and few runs, where weighing draws of the prior still works.
    monkeypatch.setattr(sampling, "NOISE", 0.1)
    points, target = Points.of(SIZES[:4], TOKENS[:4]), np.log([5.0, 4.4, 4.5, 4.1])
    known = belief(PRIORS["generate"], float(target.mean()))
    rng = np.random.default_rng(0)
    theta = natural(known.mean + known.error * rng.standard_normal((300_000, 5)))
    scatter = sampling.NOISE_WEIGHT * 0.1**2 + ((log_loss(theta, points) - target) ** 2).sum(-1)
    weight = scatter ** (-0.5 * (sampling.NOISE_WEIGHT + 4))
    level = log_loss(theta, points.at(*BIG))[:, 0]
    order = np.argsort(level)
    share = np.cumsum(weight[order]) / weight.sum()
    expected = np.interp((0.1, 0.5, 0.9), share, level[order])
    found = posterior(points, np.exp(target), PRIORS["generate"]).levels(*BIG)
    assert np.percentile(found, (10, 50, 90)) == pytest.approx(expected, abs=0.12 * (expected[2] - expected[0]))


def test_a_chain_that_begins_at_the_draws_stays_where_they_are(monkeypatch):
    """On runs almost without noise, where the posterior is a thin bent ridge: a wrong sample would drift along it."""
    monkeypatch.setattr(sampling, "NOISE", 0.002)
    points, target = Points.of(SIZES, TOKENS), np.log(drawn_law(np.random.default_rng(3))(SIZES, TOKENS))
    known, rng = belief(PRIORS["generate"], float(target.mean())), np.random.default_rng(0)

    def density(phi):
        scatter = sampling.NOISE_WEIGHT * 0.002**2 + ((log_loss(natural(phi), points) - target) ** 2).sum(-1)
        away = (((phi - known.mean) / known.error) ** 2).sum(-1)
        return -0.5 * away - 0.5 * (sampling.NOISE_WEIGHT + len(target)) * np.log(scatter)

    found = posterior(points, np.exp(target), PRIORS["generate"])
    phi = np.column_stack([found.theta[:, :3], np.log(found.theta[:, 3:])])
    now = density(phi)
    for _ in range(1500):  # differential evolution (ter Braak 2006): every chain moves along the way between two others
        one, other = phi[rng.permutation(len(phi))], phi[rng.permutation(len(phi))]
        proposed = phi + 0.75 * (one - other) + 1e-4 * rng.standard_normal(phi.shape)
        then = density(proposed)
        taken = np.log(rng.random(len(phi))) < then - now
        phi, now = np.where(taken[:, None], proposed, phi), np.where(taken, then, now)
    before, after = (np.percentile(np.log(draws[:, 4]), (10, 50, 90)) for draws in (found.theta, natural(phi)))
    assert before == pytest.approx(after, abs=0.12 * (after[2] - after[0]))


def test_without_runs_the_draws_are_those_of_the_prior():
    found = posterior(no_points(14.0, 13.0), np.empty(0), PRIORS["translate"])
    known = belief(PRIORS["translate"], 0.0)
    assert np.log(found.theta[:, 3:]).mean(0) == pytest.approx(known.mean[3:], abs=0.15)
    assert np.log(found.theta[:, 3:]).std(0) == pytest.approx(known.error[3:], rel=0.25)
    assert np.exp(known.mean[:3]).sum() == pytest.approx(1)


def test_the_same_runs_give_the_same_draws(ten_runs):
    law = drawn_law(np.random.default_rng(3))
    again = posterior(Points.of(SIZES, TOKENS), law(SIZES, TOKENS), PRIORS["generate"])
    assert np.array_equal(again.theta, ten_runs.theta)
    assert np.array_equal(again.losses(*BIG), ten_runs.losses(*BIG))


def independent_width(runs, known, target):
    """The width a design promises, from numeric slopes and one matrix at a time."""
    theta = known.theta[:: len(known.theta) // 24][:24]
    variances = []
    for row in theta:
        phi = np.concatenate([row[:3], np.log(row[3:])])

        def slopes(place, phi=phi):
            points = Points(*(np.log([value]) - c for value, c in zip(place, known.centre, strict=True)), known.centre)
            at = [natural((phi + h)[None]) for step in np.eye(5) for h in (1e-5 * step, -1e-5 * step)]
            values = [float(log_loss(theta, points)[0, 0]) for theta in at]
            return (np.array(values[::2]) - values[1::2]) / 2e-5

        rows = [slopes((run.num_params, run.worth)) / sampling.NOISE for run in runs]
        precision = np.diag([1, 1, 1, 4, 4]) + sum(np.outer(each, each) for each in rows)
        for factor in (0.5, 1, 2):
            ahead = slopes((target[0] * factor, target[1] / factor))
            variances.append(ahead @ np.linalg.solve(precision, ahead))
    return 2 * 1.645 * np.sqrt(np.mean(variances) + sampling.NOISE**2 + MISFIT**2)


@pytest.fixture(scope="module")
def prior_draws():
    return posterior(no_points(14.0, 13.0), np.empty(0), PRIORS["generate"])


EVERYTHING = [small(dim, steps) for dim in (64, 96, 128, 192, 256, 384) for steps in (100, 200, 400, 800, 1600)]
NONE = no_points(14.0, 13.0)


def test_a_design_beats_random_ones_of_the_same_time_and_says_how_well(prior_draws):
    found = design(EVERYTHING, NONE, prior_draws, BIG, 600)
    assert found.width == pytest.approx(independent_width(found.runs, prior_draws, BIG), rel=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(6):
        others, spent = [], 0.0
        for index in rng.permutation(len(EVERYTHING)):
            if len(others) < designing.MOST_RUNS and spent + EVERYTHING[index].time_s <= 600:
                others.append(EVERYTHING[index])
                spent += EVERYTHING[index].time_s
        assert found.width < independent_width(others, prior_draws, BIG)


@settings(max_examples=8)
@given(time_s=st.floats(1, 2000), most=st.integers(1, 12), least=st.integers(0, 6))
def test_a_design_keeps_to_its_time_and_number(prior_draws, time_s, most, least):
    found = design(EVERYTHING, NONE, prior_draws, BIG, time_s, least, most)
    times = [run.time_s for run in found.runs]
    assert sum(times) <= time_s + 1e-6
    assert len(set(found.runs)) == len(times) <= most
    assert times == sorted(times)
    cheapest = np.cumsum(sorted(run.time_s for run in EVERYTHING))
    assert len(times) >= min(least, most, int((cheapest <= time_s).sum()))


def test_more_time_narrows_and_runs_done_count(prior_draws):
    short, long = (design(EVERYTHING, NONE, prior_draws, BIG, time_s) for time_s in (60, 2000))
    assert long.width < short.width
    sizes, worth = np.array([(run.num_params, run.worth) for run in long.runs]).T
    done = Points(np.log(sizes) - 14.0, np.log(worth) - 13.0, (14.0, 13.0))
    after = design(EVERYTHING, done, prior_draws, BIG, 60)
    assert after.width < long.width


def test_lengths_end_with_the_longest_that_fits():
    assert lengths(0.1, 19.9) == []
    assert lengths(0.1, 20.0) == [200]
    assert lengths(0.1, 170.0) == [200, 400, 800, 1600]
    assert lengths(0.1, 150.0) == [200, 400, 800, 1500]


def test_the_ladder_keeps_what_is_fixed_and_one_aspect():
    shapes = ladder(FACTS, Model(activation="swiglu"))
    sizes = [num_params(each) for each in shapes]
    assert sizes == sorted(set(sizes))
    assert {each.activation for each in shapes} == {"swiglu"}
    assert len(ladder(FACTS, Model(dim=128))) == 1
    assert all(each.num_encoder_layers == 0 for each in shapes)


@pytest.fixture(scope="module")
def law(ten_runs):
    return own_law(ten_runs, SIZES, TOKENS, FACTS, TRAINING, "ten runs")


def test_a_law_says_what_the_draws_say(law, ten_runs):
    assert law.losses(*BIG, noise=False) == pytest.approx(np.exp(ten_runs.levels(*BIG)))
    estimate = law.predict(*BIG)
    assert (estimate.p10, estimate.p90) == pytest.approx(tuple(np.percentile(law.losses(*BIG), (10, 90))))
    assert law.law.loss(1e6, 8e5) == pytest.approx(drawn_law(np.random.default_rng(3))(1e6, 8e5), rel=0.01)


def test_repeats_are_worth_less_and_far_runs_are_guesses(law):
    # What lies beyond the runs is less sure, by four times their compute as much as two such runs were off.
    compute = law.law.flops.high / 6
    spreads = [
        np.log(law.losses(1e6, c / 1e6) / law.losses(1e6, c / 1e6, noise=False)).std() for c in (compute, 4 * compute)
    ]
    assert np.sqrt(spreads[1] ** 2 - spreads[0] ** 2) == pytest.approx(MISFIT, rel=0.1)
    assert law.predict(2e6, 5e7).p50 > np.median(law.losses(2e6, 5e6)) * 0.5
    fresh = law.model_copy(update={"unique_tokens": 10**12})
    assert law.losses(2e6, 5e7, noise=False) == pytest.approx(
        fresh.losses(2e6, effective_tokens(5e6, 5e7), noise=False)
    )
    assert law.predict(8e6, 5e6).source == "law"
    assert law.predict(8e6, 5e7).source == "guess"
    assert law.predict(1e6, 2.1e7).source == "guess"


def test_the_best_shape_is_that_of_least_median_loss(law):
    options = [(each, 1e13 / num_params(each)) for each in ladder(FACTS, Model())]
    found = best_shape(law, options)
    medians = [np.median(law.losses(num_params(each), seen, noise=False)) for each, seen in options]
    assert found.shape == options[int(np.argmin(medians))][0]
    assert found.num_params.p10 <= num_params(found.shape) <= found.num_params.p90


def test_a_design_aims_at_the_least_expected_loss(ten_runs):
    options = [(n, 2e13 / n) for n in (1e6, 4e6, 1.6e7)]
    assert likely_best(ten_runs, options) == min(options, key=lambda pair: ten_runs.levels(*pair).mean())


def test_a_law_is_kept_whole_and_refused_for_other_data(law, tmp_path):
    path = tmp_path / "law.json"
    path.write_text(law.model_dump_json())
    assert read_law(path) == law
    assert law.for_data(FACTS, path) == law
    for change in ({"task": "translate"}, {"vocab_size": 8000}, {"unique_tokens": 10**7}, {"bytes_per_token": 3.0}):
        with pytest.raises(DataError, match="sweep again"):
            law.for_data(FACTS.model_copy(update=change), path)


@pytest.mark.parametrize("text", ["", "{}", '{"law": 1}', "[]"])
def test_a_file_that_is_no_law_is_named(text, tmp_path):
    path = tmp_path / "law.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"law.json.*chinchilla sweep"):
        read_law(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_law(tmp_path / "none.json")
