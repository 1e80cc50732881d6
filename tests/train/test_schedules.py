"""Learning-rate schedules against their closed form."""

import math

import pytest

from fliqs_jax.searchers.in_training.settings import FLIQNAS, FliqsSettings
from fliqs_jax.train.optimizers import cosine_schedule


def half_cosine(step, *, steps, peak, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@pytest.mark.parametrize("step", [0, 1, 9, 10, 100, 499, 500])
def test_schedule_is_a_warm_up_and_half_a_cosine(step):
    schedule = cosine_schedule(0.1, steps=500)
    expected = half_cosine(step, steps=500, peak=0.1, warmup=10)
    assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("step", [0, 10, 299, 300, 302, 304, 400, 499, 500])
def test_restarted_schedule_is_that_of_the_steps_left(step):
    schedule = cosine_schedule(0.1, steps=500, restart_at=300)
    if step < 300:
        expected = half_cosine(step, steps=500, peak=0.1, warmup=10)
    else:
        expected = half_cosine(step - 300, steps=200, peak=0.1, warmup=4)
    assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    "settings, searching, expected",
    [
        (FLIQNAS, True, 600),
        (FLIQNAS, False, None),  # all steps are at what is given: one schedule
        (FliqsSettings(final_fraction=0.4), True, None),
        (FliqsSettings(final_fraction=0.0, restart_schedule=True), True, None),
    ],
)
def test_restart_is_where_the_choice_is_fixed(settings, searching, expected):
    phases = settings.make_phases(1000, searching=searching)
    assert settings.restart_at(phases) == expected
