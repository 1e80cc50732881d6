"""The controllers on bandits of known optimum: which one works in a short run.

A regret of 0 is the optimum, 1 the uniform policy of the same cost. All bandits and
seeds are fixed; the bounds leave about a factor of two to the values reached.
"""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np

from fliqs_jax import controller

_PATH = pathlib.Path(__file__).parents[2] / "scripts" / "controller_bandit.py"
_SPEC = importlib.util.spec_from_file_location("controller_bandit", _PATH)
bandit = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bandit)


def make_default(costs, warmup, end):
    return controller.default(
        lambda p: (p * costs).sum(), warmup_steps=warmup, end_step=end
    )


def make_published(costs, warmup, end):
    def ratio(options):
        return jnp.take_along_axis(costs, options[:, None], axis=1).sum()

    return controller.published(ratio, warmup_steps=warmup, end_step=end)


def test_default_ends_near_the_optimum_whatever_the_loss_scale():
    """At 4,000 steps with four policies judged on every 8th: 275 updates."""
    small, large = (bandit.make_problems(4, 10, total=scale) for scale in (0.3, 3.0))
    problems = bandit.Problems(*map(np.concatenate, zip(small, large, strict=True)))
    scores, _, metrics = bandit.search(make_default, problems, steps=4000, every=8)
    for part, found in ((small, scores[:4]), (large, scores[4:])):
        assert bandit.grade(part, found).mean() < 0.2
    assert np.asarray(metrics["entropy"])[:, :, -1].mean() < 0.1
    np.testing.assert_allclose(metrics["cost_ratio"], 1.0, atol=1e-3)


def test_default_stands_a_loss_that_saturates_while_sensitivities_fall():
    problems = bandit.make_problems(4, 10, total=3.0, drift=1.0)
    scores, _, _ = bandit.search(
        make_default, problems, steps=4000, every=8, saturation=1.5, num_seeds=1
    )
    assert bandit.grade(problems, scores).mean() < 0.5


def test_published_form_ends_worse_than_uniform_in_a_short_run():
    problems = bandit.make_problems(4, 10)
    scores, _, _ = bandit.search(make_published, problems, steps=2000, every=1)
    assert bandit.grade(problems, scores).mean() > 1.0


def test_knapsack_of_the_bandit_finds_the_best_of_all_policies():
    problems = bandit.make_problems(1, 5)
    rises, costs = problems.rises[0], problems.costs[0]
    every = np.stack(np.meshgrid(*[np.arange(4)] * 5), -1).reshape(-1, 5)
    sites = np.arange(5)
    within = costs[sites, every].sum(1) <= 1.0 + 1e-6
    best = rises[sites, every[within]].sum(1).min()
    found = rises[sites, bandit.best_within_budget(-rises, costs)].sum()
    np.testing.assert_allclose(found, best, rtol=1e-6)
