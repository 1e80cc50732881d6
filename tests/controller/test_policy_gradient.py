"""Sampling, likelihood, entropy and gradients against exact expressions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fliqs_jax import controller

LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-8, 8, width=32))


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_samples_have_the_softmax_frequencies():
    logits = jnp.array([[0.0, 1.0, 2.0], [2.0, -jnp.inf, 0.0]])
    keys = jax.random.split(jax.random.key(0), 4000)
    options = jax.vmap(controller.sample_options, in_axes=(0, None))(keys, logits)
    counts = np.stack([(options == k).sum(0) for k in range(3)], axis=1)
    expected = softmax(np.asarray(logits, float)) * 4000
    assert options.dtype == jnp.int32 and counts[1, 1] == 0
    assert scipy.stats.chisquare(counts[0], expected[0]).pvalue > 1e-3
    assert scipy.stats.chisquare(counts[1, ::2], expected[1, ::2]).pvalue > 1e-3


@given(logits=LOGITS)
def test_entropy_is_scipys_mean_over_decisions(logits):
    expected = scipy.stats.entropy(softmax(logits.astype(np.float64)), axis=1).mean()
    np.testing.assert_allclose(
        controller.entropy(jnp.asarray(logits)), expected, atol=2e-6
    )


@given(logits=LOGITS)
def test_entropy_gradient_is_minus_pi_times_log_pi_plus_entropy(logits):
    pi = softmax(logits.astype(np.float64))
    each = -(pi * np.log(pi)).sum(1, keepdims=True)
    expected = -pi * (np.log(pi) + each) / 3
    gradient = controller.entropy_gradient(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


@pytest.mark.parametrize("absent", [0.0, -np.inf])
def test_entropy_gradient_of_tied_options_is_exactly_zero(absent):
    logits = jnp.array([[0.7, 0.7, 0.7 + absent]])
    assert (controller.entropy_gradient(logits) == 0).all()


def test_saturated_policy_stays_finite():
    logits = jnp.array([[0.0, 500.0, -jnp.inf], [1e4, 0.0, 0.0]])
    options = jnp.array([0, 0])
    assert float(controller.joint_log_probability(logits, options)) == -500.0
    assert float(controller.log_probability(logits, options)) == -250.0
    assert float(controller.entropy(logits)) == 0.0
    assert jnp.isfinite(controller.entropy_gradient(logits)).all()
    advantages = jnp.array([1.0])
    gradient = controller.reinforce_gradient(logits, options[None], advantages)
    assert jnp.isfinite(gradient).all()


def test_reinforce_gradient_is_autodiffs_of_the_mean_log_probability():
    logits = jax.random.normal(jax.random.key(0), (3, 4))
    options = jax.random.randint(jax.random.key(1), (5, 3), 0, 4)
    advantages = jnp.array([0.5, -1.0, 2.0, 0.0, 0.25])

    def loss(logits):
        log_pi = jax.vmap(controller.log_probability, in_axes=(None, 0))
        return -(advantages * log_pi(logits, options)).mean()

    gradient = controller.reinforce_gradient(logits, options, advantages)
    np.testing.assert_allclose(gradient, jax.grad(loss)(logits), atol=1e-6)


def test_expected_leave_one_out_gradient_is_the_exact_gradient():
    """Two samples of a bandit with one decision: all nine pairs, by probability."""
    logits, losses = jnp.array([[0.3, -0.5, 1.0]]), jnp.array([1.0, 2.0, 5.0])
    pi = jax.nn.softmax(logits)[0]
    expected = jnp.zeros((1, 3))
    for a, b in itertools.product(range(3), repeat=2):
        advantages = controller.leave_one_out_advantages(-losses[jnp.array([a, b])])
        options = jnp.array([[a], [b]])
        gradient = controller.reinforce_gradient(logits, options, advantages)
        expected += pi[a] * pi[b] * gradient
    exact = jax.grad(lambda z: (jax.nn.softmax(z)[0] * losses).sum())(logits)
    np.testing.assert_allclose(expected, exact, atol=1e-6)


def test_leave_one_out_needs_two_samples():
    with pytest.raises(ValueError, match="2 or more samples, got 1"):
        controller.leave_one_out_advantages(jnp.ones(1))
