"""Learning-Compression's equations, without a job: exact L steps, rules, invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fliqs_jax.quantizers.codebook import kmeans_exact
from fliqs_jax.searchers.compression_rules import (
    CompressionRule,
    find_scopes,
    kmeans_step,
    parse_codebook,
    scope_weights,
    with_codebooks,
)
from fliqs_jax.searchers.learning_compression import (
    VARIANTS,
    LSteps,
    c_step,
    clipped_learning_rate,
    compress,
    decode,
    multiplier_step,
    penalty,
    penalty_gradient,
    residual,
)

INPUTS, OUTPUTS = 30, 10


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

    def lagrangian(self, params, compression, scopes):
        return self.loss(params["w"]) + float(penalty(params, compression, scopes))


def run(problem, name, *, k=2, schedule=None):
    """Runs a variant with exact L steps; returns the end and the losses of Delta."""
    schedule = schedule or LSteps(ends=tuple(range(1, 61)), mu=1e-3, growth=1.2)
    variant = VARIANTS[name]
    w = np.linalg.solve(problem.gram, problem.moment)
    params = {"w": jnp.asarray(w, jnp.float32)}
    scopes = one_scope(params, kmeans_step(k))
    compression = compress(params, scopes)
    losses, residuals = [problem.loss(decode(params, compression, scopes)["w"])], []
    for number in range(len(schedule.ends)):
        if variant.penalty:
            mu = jnp.float32(schedule.mu_of(number))
            params = problem.l_step(compression.replace(mu=mu))
            compression = compression.replace(mu=mu)
        elif variant.restart:  # a retraining that is cut off: some gradient steps
            w = np.asarray(decode(params, compression, scopes)["w"], np.float64)
            rate = 1.0 / np.linalg.eigvalsh(problem.gram)[-1]
            for _ in range(30):
                w = w - rate * (problem.gram @ w - problem.moment)
            params = {"w": jnp.asarray(w, jnp.float32)}
        compression = c_step(params, compression, scopes)
        if variant.multipliers:
            compression = multiplier_step(params, compression, scopes)
        losses.append(problem.loss(decode(params, compression, scopes)["w"]))
        residuals.append(float(residual(params, compression, scopes)))
    return params, compression, scopes, losses, residuals


@pytest.mark.parametrize("seed", range(4))
def test_regression_ends_in_the_published_order(seed):
    problem = Regression(seed)
    reference = problem.loss(np.linalg.solve(problem.gram, problem.moment))
    best = {name: min(run(problem, name)[3]) for name in ("lc", "qp", "idc", "dc")}
    assert reference < best["lc"] < min(best["qp"], best["idc"])
    assert max(best["qp"], best["idc"]) < best["dc"]
