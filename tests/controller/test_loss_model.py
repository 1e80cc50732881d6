"""The least-squares effects against ridge regression and against Kakade's identity."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import Ridge

from fliqs_jax import controller


def one_hot(options, num_options):
    return np.eye(num_options)[options].reshape(len(options), -1)


def test_effects_are_scikit_learns_ridge_regression():
    rng = np.random.default_rng(0)
    options, losses = rng.integers(0, 4, (12, 3)), rng.normal(size=12)
    one = controller.loss_model_increment(
        jnp.asarray(options), jnp.asarray(losses, jnp.float32), 4
    )
    effects = controller.option_effects(one, (3, 4), ridge=0.5)
    reference = Ridge(alpha=0.5).fit(one_hot(options, 4), losses)
    np.testing.assert_allclose(effects.ravel(), reference.coef_, atol=1e-5)
    np.testing.assert_allclose(effects.sum(axis=1), 0.0, atol=1e-5)


def test_what_a_batch_shares_does_not_matter():
    options = jnp.array([[0, 1], [1, 0], [1, 1]])
    losses = jnp.array([1.0, 2.0, 4.0])
    one = controller.loss_model_increment(options, losses, 2)
    other = controller.loss_model_increment(options, losses + 8.0, 2)
    np.testing.assert_allclose(one.moment, other.moment, atol=1e-5)


def test_effects_times_fisher_matrix_are_the_policy_gradient():
    """Exactly on all options of a loss with an interaction, under a uniform policy."""
    table = jax.random.normal(jax.random.key(0), (3, 3))
    options = jnp.stack(jnp.meshgrid(*[jnp.arange(3)] * 2, indexing="ij"), -1)
    options = options.reshape(9, 2)
    one = controller.loss_model_increment(options, table.ravel(), 3)
    effects = controller.option_effects(one, (2, 3), ridge=1e-4)

    def expected_loss(logits):
        first, second = jax.nn.softmax(logits)
        return first @ table @ second

    gradient = jax.grad(expected_loss)(jnp.zeros((2, 3)))
    fisher_times_effects = (effects - effects.mean(1, keepdims=True)) / 3
    np.testing.assert_allclose(fisher_times_effects, gradient, atol=1e-4)


def test_decay_forgets_geometrically():
    state = controller.init_loss_model(1, 2)
    one = controller.loss_model_increment(
        jnp.array([[0], [1]]), jnp.array([0.0, 2.0]), 2
    )
    for _ in range(3):
        state = controller.update_loss_model(state, one, decay=0.5)
    np.testing.assert_allclose(state.moment, 1.75 * one.moment)
