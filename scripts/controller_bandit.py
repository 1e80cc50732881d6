"""A bandit with the structure of a format search, and a run of a controller on it.

Each site raises the loss by its sensitivity times the squared error of its format; a
policy judged on a batch shows the sum, in noise common to all policies of the batch
and in some of its own. The optimum is known, so a controller's result can be graded.

Not here: networks, data, and the tables (`simulate_controller.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BITS = (2, 3, 4, 8)
TARGET_BITS = 3  # the budget is the cost of this width everywhere


class Problems(NamedTuple):
    """P bandits; costs are in units of the budget."""

    rises: np.ndarray  # [P, L, K] loss above float's when one site takes one option
    costs: np.ndarray  # [P, L, K], whose sum over sites may be 1
    drifts: np.ndarray  # [P, L] a site's rise falls by exp(-drift) during the search


def make_problems(
    num_problems, num_sites, *, bits=BITS, total=0.3, drift=0.0, seed=100
) -> Problems:
    """Draws bandits whose loss rises by `total` with 2 bits at every site.

    A `drift` of 1 stands for weights that adapt to low bits: the median site's rise
    falls to exp(-1) of its first value while the search lasts.
    """
    widths = np.asarray(bits, float)
    rises, costs, drifts = [], [], []
    for problem in range(num_problems):
        rng = np.random.default_rng(seed + problem)
        sensitivity = rng.lognormal(0.0, 0.8, num_sites)
        share = rng.lognormal(0.0, 0.9, num_sites)
        sensitivity, share = sensitivity / sensitivity.sum(), share / share.sum()
        error = 9.0 / (2.0**widths - 1.0) ** 2  # 1 at 2 bits
        rises.append(total * sensitivity[:, None] * error)
        costs.append(share[:, None] * widths**2 / TARGET_BITS**2)
        drifts.append(drift * rng.lognormal(0.0, 0.7, num_sites))
    return Problems(*(np.stack(x).astype(np.float32) for x in (rises, costs, drifts)))


def final_rises(problems) -> np.ndarray:
    """The rises [P, L, K] at the end of the search, after the drift."""
    return problems.rises * np.exp(-problems.drifts)[:, :, None]


def best_within_budget(scores, costs, *, grid=20_000) -> np.ndarray:
    """The options [L] with the largest sum of scores whose costs sum to at most 1.

    Dynamic programming over the cost in `grid` parts, each rounded up; what rounding
    may take is given back, so the budget holds to L / grid (a tenth of a percent).
    """
    num_sites = len(scores)
    prices = np.ceil(np.asarray(costs, float) * grid - 1e-3).astype(int)
    best, choices = np.zeros(grid + num_sites + 1), []
    for site in range(num_sites):
        totals = np.full((scores.shape[1], len(best)), -np.inf)
        for option, price in enumerate(prices[site]):
            if price < len(best):
                totals[option, price:] = (
                    best[: len(best) - price] + scores[site, option]
                )
        choices.append(totals.argmax(axis=0))
        best = totals.max(axis=0)
    options, left = np.zeros(num_sites, int), len(best) - 1
    for site in reversed(range(num_sites)):
        options[site] = choices[site][left]
        left -= prices[site, options[site]]
    return options


def judge(key, options, rises, *, common=0.08, individual=0.15, saturation=0.0):
    """Losses [S] that a batch shows for options [S, L].

    `individual` is the share of the batch's noise that each policy has of its own; a
    positive `saturation` is where the loss stops rising, as a network's does at chance.
    """
    rise = rises[jnp.arange(rises.shape[0]), options].sum(axis=-1)
    if saturation:
        rise = saturation * -jnp.expm1(-rise / saturation)
    batch_key, own_key = jax.random.split(key)
    noise = jax.random.normal(batch_key) + individual * jax.random.normal(
        own_key, rise.shape
    )
    return rise + common * noise


def search(make_controller, problems, *, steps, every, num_seeds=2, seed=0, **noise):
    """Runs a controller on every problem with every seed: scores, logits [P, R, L, K].

    As in a training run, the first quarter of the steps is warm-up and the last fifth
    has a fixed policy; in between, every `every`-th step judges samples.

    Args:
      make_controller: from (costs [L, K], warmup_steps, end_step) to a Controller.
    """
    warmup, end = steps // 4, steps - steps // 5

    def one(rises, costs, drifts, key):
        controller = make_controller(costs, warmup, end)
        state = controller.init(jnp.zeros(costs.shape))

        def step(state, at):
            sample_key, judge_key = jax.random.split(jax.random.fold_in(key, at))
            options = controller.sample(sample_key, state)
            faded = rises * jnp.exp(-drifts * (at - warmup) / (end - warmup))[:, None]
            losses = judge(judge_key, options, faded, **noise)
            return controller.update(state, options, losses, at)

        state, metrics = jax.lax.scan(step, state, jnp.arange(warmup, end, every))
        return controller.final_scores(state), state.logits, metrics

    keys = jax.random.split(jax.random.key(seed), (len(problems.rises), num_seeds))
    over_seeds = jax.vmap(one, in_axes=(None, None, None, 0))
    run = jax.jit(jax.vmap(over_seeds))
    return run(*(jnp.asarray(x) for x in problems), keys)


def grade(problems, scores) -> np.ndarray:
    """Regret [P, R] of the final policies: 0 is the optimum, 1 the uniform policy.

    In units of the gap between the two, averaged over the problems.
    """
    rises = final_rises(problems)
    sites = np.arange(rises.shape[1])
    uniform = rises[:, :, 1].sum(axis=1)  # spaces start with 2 and 3 bits
    optimum = np.array(
        [
            r[sites, best_within_budget(-r, c)].sum()
            for r, c in zip(rises, problems.costs, strict=True)
        ]
    )
    found = np.array(
        [
            [r[sites, best_within_budget(one, c)].sum() for one in np.asarray(seeds)]
            for r, c, seeds in zip(rises, problems.costs, scores, strict=True)
        ]
    )
    return (found - optimum[:, None]) / (uniform - optimum).mean()
