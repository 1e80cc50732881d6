"""Entropy schedules against their definition and their end points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import controller


def test_half_cosine_starts_at_zero_is_half_way_in_the_middle_and_ends_at_its_end():
    weight = controller.half_cosine(0.5, delay=1000, total=3000)
    steps = jnp.array([0, 999, 1000, 1500, 2000, 2500, 3000, 4000])
    quarter = 0.25 * (1 - np.sqrt(0.5))
    expected = [0, 0, 0, quarter, 0.25, 0.5 - quarter, 0.5, 0.5]
    np.testing.assert_allclose(jax.vmap(weight)(steps), expected, atol=1e-7)


def test_half_cosine_never_falls_and_is_flat_at_both_ends():
    weight = controller.half_cosine(0.1, delay=100, total=300)
    values = np.asarray(jax.vmap(weight)(jnp.arange(401)))
    assert (np.diff(values) >= 0).all()
    slope = jax.grad(weight)
    for end in (100.001, 299.999):
        assert abs(float(slope(end))) < 1e-6 < float(slope(200.0))


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (controller.linear(0.4, delay=100, total=300), [0.0, 0.0, 0.2, 0.4, 0.4]),
        (controller.constant(0.4), [0.4, 0.4, 0.4, 0.4, 0.4]),
        (controller.heaviside(0.4, total=400), [0.0, 0.0, 0.4, 0.4, 0.4]),
    ],
)
def test_alternative_schedule_at_steps_0_100_200_300_400(schedule, values):
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(0, 500, 100))
    np.testing.assert_allclose(traced, values, atol=1e-7)
    assert traced.dtype == jnp.float32


def test_schedule_names_bad_bounds():
    with pytest.raises(ValueError, match="total must be above delay.*10 and 10"):
        controller.half_cosine(0.5, delay=10, total=10)
    with pytest.raises(ValueError, match=r"end must not be negative.*-0\.5"):
        controller.constant(-0.5)
    with pytest.raises(ValueError, match="at=2"):
        controller.heaviside(0.5, total=10, at=2.0)
