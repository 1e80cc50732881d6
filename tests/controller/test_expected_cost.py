"""The shift to the target cost: it is met, and no nearer policy meets it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from fliqs_jax.controller import meet_expected_cost

COSTS = jnp.array([[0.1, 0.3, 0.9], [0.2, 0.4, 1.2]])


def ratio(probabilities):
    return (probabilities * COSTS).sum()


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 100.0, 1e4])
def test_target_is_met_however_sharp_the_policy(sharpness):
    logits = sharpness * jax.random.normal(jax.random.key(0), (2, 3))
    shifted = jax.jit(lambda z: meet_expected_cost(z, ratio))(logits)
    np.testing.assert_allclose(ratio(jax.nn.softmax(shifted)), 1.0, rtol=2e-3)


def test_shifted_policy_is_the_nearest_in_relative_entropy():
    logits = np.array([[0.5, 0.0, -0.5], [0.0, 1.0, 0.0]], np.float32)
    prior = np.asarray(jax.nn.softmax(logits), float)
    found = scipy.optimize.minimize(
        lambda p: (p * np.log(p / prior.ravel())).sum(),
        prior.ravel(),
        bounds=[(1e-9, 1.0)] * 6,
        constraints=[
            {"type": "eq", "fun": lambda p: p.reshape(2, 3).sum(1) - 1.0},
            {"type": "eq", "fun": lambda p: p @ np.asarray(COSTS, float).ravel() - 1.0},
        ],
    )
    shifted = jax.nn.softmax(meet_expected_cost(jnp.asarray(logits), ratio))
    np.testing.assert_allclose(shifted.ravel(), found.x, atol=1e-3)


def test_bilinear_cost_of_separate_weights_and_inputs_is_met():
    bits = jnp.array([2.0, 4.0, 8.0])

    def cost(p):
        return (p[0] @ bits) * (p[1] @ bits) / 12.0

    shifted = meet_expected_cost(jnp.zeros((2, 3)), cost)
    np.testing.assert_allclose(cost(jax.nn.softmax(shifted)), 1.0, rtol=1e-4)


def test_unreachable_target_gives_the_cheapest_policy():
    shifted = meet_expected_cost(jnp.zeros((2, 3)), lambda p: 10.0 * ratio(p))
    assert jax.nn.softmax(shifted).argmax(axis=1).tolist() == [0, 0]
    assert jnp.isfinite(shifted).all()
