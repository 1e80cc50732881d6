"""The published test vectors (T, beta, T0, Q -> R), and what bad input gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import controller

EXPONENTIAL = [controller.soft_exponential_reward, controller.hard_exponential_reward]


@pytest.mark.parametrize(
    ("name", "cost", "beta", "target", "quality", "reward"),
    [
        ("absolute", 15.0, 1.0, 5.0, 0.8, -1.2),
        ("absolute", 5.0, 1.0, 5.0, 0.9, 0.9),
        ("absolute", 3.0, 2.0, 5.0, 0.95, 0.15),
        ("one_sided", 3.0, 2.0, 5.0, 0.95, 0.95),
        ("soft_exponential", 10.0, 1.0, 5.0, 0.8, 1.6),
        ("soft_exponential", 3.0, 2.0, 6.0, 0.9, 0.225),
        ("hard_exponential", 3.0, 2.0, 6.0, 0.9, 0.9),
        ("hard_exponential", 10.0, -1.0, 5.0, 0.8, 0.4),
    ],
)
def test_published_vector(name, cost, beta, target, quality, reward):
    function = getattr(controller, f"{name}_reward")
    value = function(quality, cost, target=target, beta=beta)
    np.testing.assert_allclose(value, reward, rtol=1e-6)


def test_absolute_reward_is_highest_at_the_target_and_concave():
    costs = jnp.linspace(0.0, 3.0, 31)
    rewards = np.asarray(
        controller.absolute_reward(jnp.full(31, 0.5), costs, target=1.0, beta=0.7)
    )
    assert rewards.argmax() == 10
    assert (np.diff(rewards, 2) <= 1e-6).all()


@pytest.mark.parametrize("reward", EXPONENTIAL)
def test_exponential_reward_refuses_a_negative_quality(reward):
    with pytest.raises(ValueError, match=r"quality >= 0, got -0\.5.*absolute_reward"):
        reward(np.float32([0.5, -0.5]), np.float32([1.0, 1.0]), target=1.0, beta=-1.0)


@pytest.mark.parametrize("reward", EXPONENTIAL)
def test_exponential_reward_of_a_traced_negative_quality_is_zero(reward):
    traced = jax.jit(lambda q, c: reward(q, c, target=1.0, beta=-1.0))
    values = traced(jnp.array([-0.5, 0.0, 0.5]), jnp.array([2.0, 0.0, 2.0]))
    np.testing.assert_array_equal(values, [0.0, 0.0, 0.25])


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_reward_names_a_target_that_is_not_positive(target):
    with pytest.raises(ValueError, match=f"target must be positive.*got {target}"):
        controller.absolute_reward(0.5, 1.0, target=target, beta=1.0)


def test_reward_names_a_negative_beta():
    with pytest.raises(ValueError, match=r"beta must not be negative.*got -0\.1"):
        controller.one_sided_reward(0.5, 1.0, target=1.0, beta=-0.1)
