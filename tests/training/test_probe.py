"""Probe runs: a trainer that takes some steps and leaves no trace."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from training_fakes import digest, make_trainer, weights

from chinchilla.store.run_folder import RunFolder
from chinchilla.training.probe import LEAST_STEPS, POINTS, SETTLING_STEPS, probe
from chinchilla.training.trainer import Step


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A probe's trainer: its folder is never made. It logs at every step, to see that nothing comes of it."""
    trainer = make_trainer(tmp_path, steps=10**9, log_every=1)
    monkeypatch.chdir(tmp_path)
    trainer.folder = RunFolder(tmp_path / "probe")
    return trainer


def test_nothing_is_written(bare, tmp_path):
    probe(bare, 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_short_probe_takes_the_least_steps(bare):
    result = probe(bare, 0.0)
    assert result.steps == LEAST_STEPS == len(result.curve)
    assert result.tokens == bare.progress.tokens == result.curve[-1][0]
    assert 0 < result.step_time_s < result.time_s


def test_the_curve_goes_on_where_the_last_probe_stopped(bare):
    parts = [probe(bare, 0.0) for _ in range(3)]
    curve = [point for part in parts for point in part.curve]
    assert bare.progress.step == 3 * LEAST_STEPS
    for (tokens, _), (more, _) in itertools.pairwise(curve):
        assert tokens < more


def test_a_probe_is_a_run_cut_short(bare, tmp_path):
    probe(bare, 0.0)
    probe(bare, 0.0)
    run = make_trainer(tmp_path / "run", steps=10**9)
    for _ in itertools.islice(run.steps(), 2 * LEAST_STEPS):
        pass
    assert digest(weights(bare.model)) == digest(weights(run.model))


def test_a_long_probe_gives_means_over_neighbouring_steps(bare, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("chinchilla.training.probe.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    seen, take, steps = [], bare.steps, 3 * POINTS

    def watched() -> Iterator[Step]:
        for step in take():
            seen.append((bare.progress.tokens, step.loss))
            yield step

    monkeypatch.setattr(bare, "steps", watched)
    result = probe(bare, steps)
    assert result.steps == steps == len(seen)
    expected = [seen[start : start + 3] for start in range(0, steps, 3)]
    assert len(result.curve) == POINTS
    for (tokens, loss), group in zip(result.curve, expected, strict=True):
        assert tokens == pytest.approx(sum(each for each, _ in group) / 3)
        assert loss == pytest.approx(sum(each for _, each in group) / 3)
    assert result.step_time_s == 1.0


def test_the_parts_tell_how_uneven_the_speed_was(bare, monkeypatch):
    """Five times four steps of 1 to 5 seconds, after two that set things up."""
    ticks = iter(itertools.accumulate([0.0, 7.0, 2.0, *(float(s) for s in range(1, 6) for _ in range(4))]))
    monkeypatch.setattr("chinchilla.training.probe.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    result = probe(bare, 69.0)
    assert result.step_time_s == pytest.approx(3.0)
    assert result.parts == tuple((4, pytest.approx(4.0 * seconds)) for seconds in range(1, 6))


def test_a_few_steps_are_one_part(bare):
    result = probe(bare, 0.0)
    assert [steps for steps, _ in result.parts] == [LEAST_STEPS - SETTLING_STEPS]
