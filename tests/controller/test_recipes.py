"""What every recipe promises, and the published one against its equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fliqs_jax import controller

COSTS = jnp.array([[0.1, 0.3, 0.9], [0.2, 0.4, 1.2]])
START = jnp.array([[0.1, 0.0, -0.1], [0.3, 0.0, 0.2]])


def sampled_ratio(options):
    return jnp.take_along_axis(COSTS, options[:, None], axis=1).sum()


def expected_ratio(probabilities):
    return (probabilities * COSTS).sum()


RECIPES = {
    "published": functools.partial(controller.published, sampled_ratio),
    "leave_one_out": functools.partial(controller.leave_one_out, expected_ratio),
    "default": functools.partial(controller.default, expected_ratio),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def run(chosen, *, steps, loss_of, start=START):
    @jax.jit
    def step(state, at):
        options = chosen.sample(jax.random.fold_in(jax.random.key(0), at), state)
        return chosen.update(state, options, loss_of(options, at), at)[0], options

    return jax.lax.scan(step, chosen.init(start), jnp.arange(steps))


def noisy_loss(options, at):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), at))
    return noise - options.sum(axis=1).astype(jnp.float32)


@every_recipe
def test_warm_up_leaves_logits_and_optimizer_bitwise_unchanged(recipe):
    chosen = recipe(warmup_steps=20, end_step=40)
    before = chosen.init(START)
    after, _ = run(chosen, steps=20, loss_of=noisy_loss)
    for old, new in zip(
        jax.tree.leaves(before[:2]), jax.tree.leaves(after[:2]), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert int(after.num_updates) == 0
    moved, _ = run(chosen, steps=21, loss_of=noisy_loss)
    assert int(moved.num_updates) == 1
    assert not jnp.array_equal(moved.logits, START)


@every_recipe
def test_seed_fixes_the_trajectory_of_options(recipe):
    chosen = recipe(warmup_steps=2, end_step=20)
    first, second = (run(chosen, steps=20, loss_of=noisy_loss) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert first[1].shape == (20, chosen.num_samples, 2)


@every_recipe
def test_absent_option_is_never_taken(recipe):
    start = jnp.array([[0.0, -jnp.inf, 0.0], [0.0, 0.0, 0.0]])
    chosen = recipe(warmup_steps=0, end_step=30)
    state, options = run(chosen, steps=30, loss_of=noisy_loss, start=start)
    assert not (options[:, :, 0] == 1).any()
    scores = chosen.final_scores(state)
    assert jnp.isneginf(scores[0, 1]) and not jnp.isnan(scores).any()


@every_recipe
def test_devices_that_judge_their_own_samples_keep_one_state(recipe):
    chosen = recipe(warmup_steps=0, end_step=10)
    options = jax.random.randint(
        jax.random.key(2), (4, chosen.num_samples, 2), 0, 3, jnp.int32
    )
    losses = jax.random.normal(jax.random.key(3), (4, chosen.num_samples))
    average = functools.partial(jax.lax.pmean, axis_name="data")
    update = jax.vmap(
        functools.partial(chosen.update, average=average),
        in_axes=(None, 0, 0, None),
        axis_name="data",
    )
    states, _ = update(chosen.init(START), options, losses, 3)
    for leaf in jax.tree.leaves(states):
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[:1], leaf.shape))


def test_published_step_is_its_loss_under_adam():
    chosen = controller.published(
        sampled_ratio, warmup_steps=0, end_step=10, learning_rate=0.1
    )
    state = chosen.init(START)
    rewards, logits, adam = [], START, optax.adam(0.1)
    adam_state = adam.init(START)
    for at, (options, loss) in enumerate([([0, 2], 1.0), ([1, 0], 0.5), ([2, 2], 2.0)]):
        options = jnp.array(options, jnp.int32)
        state, _ = chosen.update(state, options[None], jnp.array([loss]), at)
        reward = -loss - abs(float(sampled_ratio(options)) - 1.0)
        rewards.append(reward)
        mean = rewards[0]
        for later in rewards[1:]:
            mean += 0.01 * (later - mean)
        weight = 0.25 * (1 - np.cos(np.pi * at / 10))

        def objective(z, options=options, advantage=reward - mean, weight=weight):
            likelihood = controller.log_probability(z, options)
            return -advantage * likelihood + weight * controller.entropy(z)

        updates, adam_state = adam.update(jax.grad(objective)(logits), adam_state)
        logits = optax.apply_updates(logits, updates)
    np.testing.assert_allclose(state.logits, logits, atol=2e-4)


def test_published_constant_reward_without_entropy_leaves_logits_unchanged():
    flat = controller.published(
        lambda options: jnp.float32(1.2), warmup_steps=0, end_step=9, entropy_weight=0.0
    )
    state, _ = run(flat, steps=50, loss_of=lambda options, at: jnp.full(1, 0.3))
    np.testing.assert_array_equal(state.logits, START)


def test_default_with_equal_losses_is_the_most_uncertain_policy_of_target_cost():
    chosen = controller.default(expected_ratio, warmup_steps=0, end_step=9)
    state, _ = run(chosen, steps=20, loss_of=lambda options, at: jnp.full(4, 0.3))
    expected = controller.meet_expected_cost(jnp.zeros((2, 3)), expected_ratio)
    np.testing.assert_allclose(
        jax.nn.softmax(state.logits), jax.nn.softmax(expected), atol=1e-5
    )


def test_default_is_the_same_whatever_the_scale_of_the_loss():
    chosen = controller.default(expected_ratio, warmup_steps=0, end_step=40)
    state, options = run(chosen, steps=30, loss_of=noisy_loss)
    large, same = run(
        chosen, steps=30, loss_of=lambda options, at: 1024.0 * noisy_loss(options, at)
    )
    np.testing.assert_array_equal(options, same)
    np.testing.assert_allclose(state.logits, large.logits, rtol=1e-4, atol=1e-4)


def test_recipe_names_bad_numbers():
    steps = {"warmup_steps": 0, "end_step": 9}
    with pytest.raises(ValueError, match="num_samples must be at least 2.*got 1"):
        controller.default(expected_ratio, num_samples=1, **steps)
    with pytest.raises(ValueError, match="temperature=0.0"):
        controller.default(expected_ratio, temperature=0.0, **steps)
    with pytest.raises(ValueError, match="total must be above delay"):
        controller.leave_one_out(expected_ratio, warmup_steps=9, end_step=9)
    with pytest.raises(ValueError, match=r"beta must not be negative.*-1"):
        controller.published(sampled_ratio, beta=-1.0, **steps)
    with pytest.raises(ValueError, match="warmup_steps must not be negative, got -1"):
        controller.published(sampled_ratio, warmup_steps=-1, end_step=9)


def test_no_option_scores_below_a_narrower_one_when_bits_are_given():
    ratio = lambda chances: (chances @ jnp.array([0.5, 1.0, 1.0, 1.5])).mean()  # noqa: E731
    losses = jnp.array([1.0, 3.0, 0.5, 2.0])  # of each option alone, noisy

    def scores(option_bits):
        chosen = controller.default(
            ratio,
            warmup_steps=0,
            end_step=100,
            num_samples=4,
            option_bits=option_bits,
        )
        state = chosen.init(jnp.zeros((1, 4)))
        options = jnp.arange(4)[:, None]
        for step in range(8):
            state, _ = chosen.update(state, options, losses, step)
        return chosen.final_scores(state)[0]

    free, bound = scores(None), scores([4, 8, 8, 16])
    assert free[1] < free[0] < free[2] and free[3] < free[2]
    # Option 1 rises to 0's; 2, as wide, stays better; the widest rises to the best.
    assert bound.tolist() == [free[0], free[0], free[2], free[2]]


def test_widths_may_differ_from_decision_to_decision():
    bits = np.array([[2, 4, 8], [1, 1, 1]])  # the second row trusts the data
    chosen = controller.default(
        expected_ratio, warmup_steps=0, end_step=9, num_samples=3, option_bits=bits
    )
    state = chosen.init(START)
    options = jnp.array([[0, 0], [1, 1], [2, 2]])
    state, _ = chosen.update(state, options, jnp.array([0.0, 1.0, 2.0]), 1)
    scores = np.asarray(chosen.final_scores(state))
    assert (np.diff(scores[0]) == 0).all()  # the narrowest looked best: noise
    assert (np.diff(scores[1]) < 0).all()


def test_absent_options_do_not_cool_the_policy():
    wide = jnp.array([[0.0, 0.0, -jnp.inf, -jnp.inf]] * 2)
    heats = []
    for start in (wide[:, :2], wide):
        costs = jnp.linspace(0.2, 0.8, start.shape[1])[None]
        ratio = lambda p, costs=costs: (p * costs).sum()  # noqa: E731
        chosen = controller.default(ratio, warmup_steps=0, end_step=9, num_samples=2)
        options = jnp.array([[0, 1], [1, 0]])
        _, metrics = chosen.update(
            chosen.init(start), options, jnp.array([0.0, 1.0]), 1
        )
        heats.append(float(metrics["temperature"]))
    assert heats[0] == pytest.approx(heats[1], rel=1e-5)


@every_recipe
def test_decision_without_effect_in_any_sample_learns_nothing_of_the_loss(recipe):
    chosen = recipe(warmup_steps=0, end_step=9)
    options = jnp.array([[0, -1], [1, -1], [2, -1], [0, -1]], jnp.int32)
    states = []
    for losses in ([0.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0, 2.0]):
        count = chosen.num_samples
        state = chosen.init(jnp.zeros((2, 3)))
        losses = jnp.array(losses * 2)[:count]
        taken = jnp.concatenate([options, options])[:count]
        states.append(chosen.update(state, taken, losses, 1)[0])
    scores = np.array([chosen.final_scores(state) for state in states])
    first, second = scores - scores.mean(axis=2, keepdims=True)
    if chosen.num_samples > 1:
        assert np.abs(first[0] - second[0]).max() > 1e-3
    np.testing.assert_allclose(first[1], second[1], atol=1e-6)
