"""Learning-Compression's equations, without a job: exact L steps, and invariants."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fliqs_jax.quantizers.codebook import kmeans_exact
from fliqs_jax.searchers.compression.lagrangian import (
    assign,
    c_step,
    clipped_learning_rate,
    compress,
    decode,
    multiplier_step,
    penalty,
    penalty_gradient,
    residual,
    straight_through,
)
from fliqs_jax.searchers.compression.rules import (
    CompressionRule,
    CStep,
    find_scopes,
    kmeans_step,
    parse_codebook,
)
from fliqs_jax.searchers.compression.schedule import VARIANTS, LSteps

INPUTS, OUTPUTS = 30, 10
SCHEDULE = LSteps(ends=tuple(range(1, 31)), mu=1e-3, growth=1.5)


def one_scope(params, step):
    return find_scopes(params, [CompressionRule(pattern="w", c_step=step)])


class Regression:
    """Linear regression with correlated inputs, and its L step in closed form."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        mixing = random.normal(size=(INPUTS, INPUTS)) * 0.9 ** np.arange(INPUTS)
        inputs = random.normal(size=(500, INPUTS)) @ mixing
        truth = random.normal(size=(INPUTS, OUTPUTS))
        outputs = inputs @ truth + 0.1 * random.normal(size=(500, OUTPUTS))
        self.gram = inputs.T @ inputs / 500
        self.moment = inputs.T @ outputs / 500
        self.square = (outputs**2).sum() / 500
        self.optimum = np.linalg.solve(self.gram, self.moment)

    def loss(self, w):
        w = np.asarray(w, np.float64)
        quadratic = np.sum(w * (self.gram @ w))
        return 0.5 * (quadratic - 2.0 * np.sum(w * self.moment) + self.square)

    def l_step(self, compression):
        """Solves for w: (G + mu I) w = m + mu Delta + lambda."""
        decoded, multiplier = (
            np.asarray(part[0], np.float64).reshape(INPUTS, OUTPUTS)
            for part in (compression.decoded, compression.multipliers)
        )
        mu = float(compression.mu)
        right = self.moment + mu * decoded + multiplier
        w = np.linalg.solve(self.gram + mu * np.eye(INPUTS), right)
        return {"w": jnp.asarray(w, jnp.float32)}

    def descend(self, w, steps=30):
        """A retraining that does not run to its end."""
        rate = 1.0 / np.linalg.eigvalsh(self.gram)[-1]
        for _ in range(steps):
            w = w - rate * (self.gram @ w - self.moment)
        return {"w": jnp.asarray(w, jnp.float32)}

    def lagrangian(self, params, compression, scopes):
        return self.loss(params["w"]) + float(penalty(params, compression, scopes))


class End(NamedTuple):
    params: Any
    compression: Any
    scopes: Any
    losses: list  # of Delta, by L step
    residuals: list


def run(problem, name, schedule=SCHEDULE, *, k=2):
    """Runs a variant on the schedule with exact L steps."""
    variant = VARIANTS[name]
    params = {"w": jnp.asarray(problem.optimum, jnp.float32)}
    scopes = one_scope(params, kmeans_step(k))
    compression = compress(params, scopes)
    losses, residuals = [problem.loss(decode(params, compression, scopes)["w"])], []
    for number in range(len(schedule.ends)):
        if variant.penalty:
            mu = jnp.float32(schedule.mu_of(number))
            compression = compression.replace(mu=mu)
            params = problem.l_step(compression)
        elif variant.restart:
            start = decode(params, compression, scopes)["w"]
            params = problem.descend(np.asarray(start, np.float64))
        compression = c_step(params, compression, scopes)
        if variant.multipliers:
            compression = multiplier_step(params, compression, scopes)
        losses.append(problem.loss(decode(params, compression, scopes)["w"]))
        residuals.append(float(residual(params, compression, scopes)))
    return End(params, compression, scopes, losses, residuals)


@pytest.mark.parametrize("seed", range(3))
def test_regression_ends_in_the_published_order(seed):
    problem = Regression(seed)
    reference = problem.loss(problem.optimum)
    ends = {name: min(run(problem, name).losses) for name in ("lc", "qp", "idc", "dc")}
    assert reference < ends["lc"] < min(ends["qp"], ends["idc"])
    assert max(ends["qp"], ends["idc"]) < ends["dc"]


@pytest.fixture(scope="module")
def converged():
    """The problem, and a run of a long schedule on it."""
    problem = Regression(0)
    schedule = LSteps(ends=tuple(range(1, 69)), mu=1e-2, growth=1.2)
    return problem, run(problem, "lc", schedule)


def test_weights_meet_at_most_k_values(converged):
    _, end = converged
    assert end.residuals[-1] < 1e-6
    falling = [x for x in end.residuals[-len(end.residuals) // 3 :] if x > 1e-6]
    assert all(after < before for before, after in itertools.pairwise(falling))
    assert len(np.unique(decode(end.params, end.compression, end.scopes)["w"])) == 2


def test_multiplier_becomes_the_gradient_whose_sum_over_a_cluster_is_zero(converged):
    """At a mu that grows no more, or stiffness would stop it short of that."""
    problem, (params, compression, scopes, _, _) = converged
    compression = compression.replace(mu=jnp.float32(40.0))
    for _ in range(60):
        params = problem.l_step(compression)
        compression = c_step(params, compression, scopes)
        compression = multiplier_step(params, compression, scopes)
    w = np.asarray(params["w"], np.float64)
    gradient = (problem.gram @ w - problem.moment).ravel()
    multiplier = np.asarray(compression.multipliers[0])
    np.testing.assert_allclose(multiplier, gradient, atol=1e-3)
    indices = np.asarray(compression.codebooks[0].indices)
    for cluster in range(2):
        members = gradient[indices == cluster]
        assert abs(members.sum()) < 1e-3 * np.abs(members).sum()


def test_exact_steps_never_raise_the_lagrangian():
    """At fixed mu and lambda; the C step is the global optimum."""
    problem = Regression(1)
    exact = CStep("exact", 3, lambda w, before: kmeans_exact(w, 3))
    params = {"w": jnp.asarray(problem.optimum, jnp.float32)}
    scopes = one_scope(params, exact)
    compression = compress(params, scopes)
    noise = np.random.default_rng(0).normal(size=INPUTS * OUTPUTS)
    compression = compression.replace(
        mu=jnp.float32(3.0), multipliers=(jnp.asarray(noise, jnp.float32),)
    )
    values = [problem.lagrangian(params, compression, scopes)]
    for _ in range(8):
        params = problem.l_step(compression)
        values.append(problem.lagrangian(params, compression, scopes))
        compression = c_step(params, compression, scopes)
        values.append(problem.lagrangian(params, compression, scopes))
    slack = 1e-5 * abs(values[0])
    assert all(after <= before + slack for before, after in itertools.pairwise(values))
    assert values[-1] < values[0] - 10 * slack


@pytest.mark.parametrize(
    "step", [kmeans_step(2), parse_codebook("ternary_scaled")], ids=["free", "scale"]
)
def test_multipliers_sum_to_zero_over_what_a_fitted_number_sets(step):
    """Each centroid is the mean of w - lambda/mu; a scale its projection on q."""
    random = np.random.default_rng(2)
    params = {"w": jnp.asarray(random.normal(size=(30, 10)), jnp.float32)}
    scopes = one_scope(params, step)
    compression = compress(params, scopes).replace(mu=jnp.float32(2.0))
    for _ in range(3):
        noise = 0.1 * random.normal(size=(30, 10))
        params = {"w": params["w"] + jnp.asarray(noise, jnp.float32)}
        compression = c_step(params, compression, scopes)
        compression = multiplier_step(params, compression, scopes)
    multiplier = np.asarray(compression.multipliers[0], np.float64)
    indices = np.asarray(compression.codebooks[0].indices)
    if compression.codebooks[0].num_fitted == 1:
        sums = [(multiplier * (indices - 1)).sum()]
    else:
        sums = [multiplier[indices == cluster].sum() for cluster in range(2)]
    np.testing.assert_allclose(sums, 0.0, atol=1e-4)


def test_one_step_of_a_tiny_mu_is_direct_compression():
    problem = Regression(2)
    direct = run(problem, "dc", LSteps(ends=(1,)))
    pulled = run(problem, "lc", LSteps(ends=(1,), mu=1e-9))
    np.testing.assert_allclose(
        pulled.compression.decoded[0], direct.compression.decoded[0], rtol=1e-3
    )


def test_weights_of_k_distinct_values_change_nothing():
    signs = jnp.sign(jax.random.normal(jax.random.key(0), (INPUTS, OUTPUTS)))
    params = {"w": 0.3 * signs}
    scopes = one_scope(params, kmeans_step(2))
    compression = compress(params, scopes)
    np.testing.assert_array_equal(decode(params, compression, scopes)["w"], params["w"])
    assert float(residual(params, compression, scopes)) == 0.0


def test_gradient_of_the_penalty_is_its_derivative_and_zero_on_biases():
    params = {"w": jnp.array([[0.1, -0.4], [2.0, 1.0]]), "b": jnp.array([3.0])}
    scopes = one_scope(params, parse_codebook("binary"))
    compression = compress(params, scopes).replace(
        mu=jnp.float32(0.5), multipliers=(jnp.array([1.0, -1.0, 0.5, 0.0]),)
    )
    gradient = penalty_gradient(params, compression, scopes)
    # mu (w - Delta) - lambda, by hand: Delta = +1, -1, +1, +1.
    np.testing.assert_allclose(gradient["w"], [[-1.45, 1.3], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(gradient["b"], [0.0])
    by_jax = jax.grad(lambda p: penalty(p, compression, scopes))(params)
    jax.tree.map(np.testing.assert_allclose, gradient, by_jax)


def test_assignment_follows_the_weights_and_leaves_the_values():
    params = {"w": jnp.array([[0.0, 1.0], [10.0, 12.0]]), "b": jnp.array([3.0])}
    scopes = one_scope(params, kmeans_step(2))
    before = compress(params, scopes)
    moved = {"w": jnp.array([[0.0, 9.0], [10.0, 2.0]]), "b": jnp.array([3.0])}
    after = assign(moved, before, scopes)
    np.testing.assert_array_equal(after.codebooks[0].values, before.codebooks[0].values)
    np.testing.assert_array_equal(
        decode(moved, after, scopes)["w"], [[0.5, 11.0], [11.0, 0.5]]
    )


def test_straight_through_has_codebook_values_and_the_gradient_of_the_weights():
    params = {"w": jnp.array([[0.1, -0.4], [2.0, 1.0]]), "b": jnp.array([3.0])}
    scopes = one_scope(params, parse_codebook("binary"))
    compression = compress(params, scopes)

    def loss(params):
        used = straight_through(params, compression, scopes)
        return (
            jnp.sum(used["w"] ** 2 * jnp.array([[1.0, 2.0], [3.0, 4.0]])) + used["b"][0]
        )

    value, gradient = jax.value_and_grad(loss)(params)
    assert float(value) == 1.0 + 2.0 + 3.0 + 4.0 + 3.0  # Delta = +1, -1, +1, +1
    np.testing.assert_array_equal(gradient["w"], [[2.0, -4.0], [6.0, 8.0]])
    np.testing.assert_array_equal(gradient["b"], [1.0])


def test_c_step_is_data_free_and_compiles():
    w = jax.random.normal(jax.random.key(0), (INPUTS, OUTPUTS))
    params = {"w": w, "b": jnp.ones(5)}
    scopes = one_scope(params, kmeans_step(2))
    compression = compress(params, scopes).replace(mu=jnp.float32(1.0))
    moved = {**params, "w": params["w"] + 0.3}
    eager = c_step(moved, compression, scopes)
    compiled = jax.jit(c_step, static_argnums=2)(moved, compression, scopes)
    jax.tree.map(np.testing.assert_array_equal, compiled, eager)


def test_clipped_learning_rate_keeps_the_penalty_from_diverging():
    params = {"w": jnp.array([[1.5, -0.2]])}
    scopes = one_scope(params, parse_codebook("binary"))
    compression = compress(params, scopes).replace(mu=jnp.float32(100.0))
    rate = 0.1  # times mu: 10

    def descend(rate):
        w = params
        for _ in range(60):
            gradient = penalty_gradient(w, compression, scopes)
            w = jax.tree.map(lambda x, g: x - rate * g, w, gradient)
        return float(jnp.abs(w["w"]).max())

    assert descend(clipped_learning_rate(rate, compression.mu)) == pytest.approx(1.0)
    assert not descend(rate) < 1e30


def test_any_loss_and_optimizer_without_a_job():
    """A user's own loop: Adam, a made-up loss, two groups of weights."""
    key = jax.random.key(3)
    params = {
        "a": {"w": jax.random.normal(key, (15, 20)), "b": jnp.zeros(20)},
        "c": {"w": jax.random.normal(key, (20, 2))},
    }
    target = jax.random.normal(jax.random.key(4), (8, 2))
    x = jax.random.normal(jax.random.key(5), (8, 15))

    def loss(params):
        hidden = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"][None])
        return jnp.mean((hidden @ params["c"]["w"] - target) ** 2)

    scopes = find_scopes(
        params,
        [
            CompressionRule(pattern="a/w", c_step=kmeans_step(2)),
            CompressionRule(pattern="c/w", c_step=parse_codebook("binary_scaled")),
        ],
    )
    optimizer = optax.adam(0.02)

    @jax.jit
    def l_step(params, compression):
        def step(carry, _):
            params, state = carry
            pull = penalty_gradient(params, compression, scopes)
            gradient = jax.tree.map(jnp.add, jax.grad(loss)(params), pull)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, start, length=100)
        return params

    compression = compress(params, scopes)
    direct = float(loss(decode(params, compression, scopes)))
    for number in range(8):
        compression = compression.replace(mu=jnp.float32(0.02 * 1.8**number))
        params = l_step(params, compression)
        compression = c_step(params, compression, scopes)
        compression = multiplier_step(params, compression, scopes)
    end = decode(params, compression, scopes)
    assert float(loss(end)) < 0.5 * direct
    assert len(np.unique(end["a"]["w"])) == 2
    assert len(np.unique(np.abs(end["c"]["w"]))) == 1
    np.testing.assert_array_equal(end["a"]["b"], params["a"]["b"])


def test_l_steps_share_the_steps_and_mu_grows():
    schedule = LSteps.of(50, 4, mu=0.5, growth=2.0)
    assert schedule.ends == (20, 30, 40, 50)  # the first is twice as long
    assert [schedule.mu_of(number) for number in range(4)] == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSteps.of(5, 20), "20 L steps in 5 steps: take fewer"),
        (lambda: LSteps.of(5, 0), "at least one L step.*count=0"),
        (lambda: LSteps(ends=(3, 3)), "ascending order"),
        (lambda: LSteps(ends=(3,), mu=0.0), "mu must be positive.*mu=0.0"),
        (lambda: LSteps(ends=(3,), growth=0.9), "growth at least 1.*0.9"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
