"""Running means of rewards against hand-computed sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import controller

UPDATES = [controller.update_baseline, controller.update_debiased_baseline]


def means(update, rewards, decay):
    step = jax.jit(functools.partial(update, decay=decay))
    state, seen = controller.init_baseline(), []
    for reward in rewards:
        state = step(state, jnp.float32(reward))
        seen.append(float(state.mean))
    return seen


def test_published_baseline_starts_at_the_first_reward():
    seen = means(controller.update_baseline, [1.0, 3.0, 2.0], decay=0.9)
    np.testing.assert_allclose(seen, [1.0, 1.2, 1.28], rtol=1e-6)


def test_debiased_baseline_is_the_weighted_average_of_all_rewards():
    rewards = [1.0, 3.0, 2.0, -4.0]
    seen = means(controller.update_debiased_baseline, rewards, decay=0.5)
    weights = 0.5 ** np.arange(4)[::-1]
    np.testing.assert_allclose(seen[-1], np.average(rewards, weights=weights))


@pytest.mark.parametrize("update", UPDATES)
def test_constant_reward_is_its_own_mean_bit_for_bit(update):
    assert set(means(update, [0.1] * 200, decay=0.99)) == {float(np.float32(0.1))}


@pytest.mark.parametrize("update", UPDATES)
def test_baseline_names_a_decay_out_of_range(update):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        update(controller.init_baseline(), jnp.float32(0.0), decay=1.0)
