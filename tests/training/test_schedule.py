"""Schedules: warm-up, cosine and warm-up-stable-decay, as pure functions of the step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_fakes import make_training

from chinchilla.training.schedule import rate_scale, review_due, reviews_to_come


def course(**changes) -> list[float]:
    training = make_training(**changes)
    return [rate_scale(step, training) for step in range(training.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_warm_up_is_linear_and_reaches_the_peak_at_its_last_step(schedule):
    scales = course(schedule=schedule, steps=100, warmup_steps=4, decay_fraction=0.2)
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4] == 1.0


def test_without_warm_up_the_first_step_is_at_the_peak():
    assert course(schedule="cosine", steps=10, warmup_steps=0)[0] == 1.0


def test_cosine_is_half_a_cosine():
    scales = course(schedule="cosine", steps=110, warmup_steps=10)
    for step in range(10, 110):
        assert scales[step] == pytest.approx((1 + math.cos(math.pi * (step - 10) / 100)) / 2)
    assert scales[60] == pytest.approx(0.5)


def test_wsd_is_constant_and_then_falls_in_a_straight_line():
    scales = course(schedule="wsd", steps=100, warmup_steps=5, decay_fraction=0.4)
    assert scales[5:61] == [1.0] * 56
    assert scales[60:] == pytest.approx([1 - index / 40 for index in range(40)])


def test_wsd_without_decay_stays_at_the_peak():
    assert course(schedule="wsd", steps=20, warmup_steps=2, decay_fraction=0.0)[2:] == [1.0] * 18


SETTINGS = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 5000),
        "warmup_steps": st.integers(0, 300),
        "decay_fraction": st.floats(0, 1),
        "schedule": st.sampled_from(["cosine", "wsd"]),
    }
)


@given(SETTINGS, st.data())
def test_a_scale_is_a_share_of_the_peak_and_only_falls_after_the_warm_up(settings, data):
    training = make_training(**settings)
    step = data.draw(st.integers(0, training.steps - 1))
    scale = rate_scale(step, training)
    assert 0 < scale <= 1
    assert rate_scale(step, training) == scale
    if step >= training.warmup_steps:
        assert rate_scale(step + 1, training) <= scale + 1e-12


@given(SETTINGS)
def test_the_course_ends_at_zero(settings):
    training = make_training(**settings)
    if training.steps > training.warmup_steps:
        assert rate_scale(training.steps, training) == pytest.approx(0, abs=1e-9)


@given(SETTINGS, st.integers(1, 5000))
def test_a_new_number_of_steps_leaves_a_wsd_course_at_the_peak_alone(settings, steps):
    """What lets a run be planned anew: before either decay begins, both courses are the same."""
    old = make_training(**settings | {"schedule": "wsd"})
    new = old.model_copy(update={"steps": steps})
    decay = max(round(old.decay_fraction * old.steps), round(old.decay_fraction * steps), 1)
    for step in range(0, min(old.steps, steps) - decay, 97):
        assert rate_scale(step, old) == rate_scale(step, new)


@given(SETTINGS, st.integers(0, 2), st.data())
def test_the_reviews_to_come_are_those_that_come(settings, reviews, data):
    """As the trainer asks, after each step."""
    training = make_training(**settings)
    step = data.draw(st.integers(0, training.steps - 1))
    expected, made = reviews_to_come(step, reviews, training), reviews
    for later in range(step + 1, training.steps + 1):
        made += review_due(later, made, training)
    assert made - reviews == expected
