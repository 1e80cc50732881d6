"""Named controllers: the published one, and two for runs of a few thousand steps.

Not here: the machinery they share (`update`). A recipe only picks callables.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from fliqs_jax.controller.baselines import init_baseline, update_baseline
from fliqs_jax.controller.expected_cost import ExpectedCostRatio, meet_expected_cost
from fliqs_jax.controller.loss_model import (
    init_loss_model,
    loss_model_increment,
    option_effects,
    update_loss_model,
)
from fliqs_jax.controller.policy_gradient import (
    entropy_gradient,
    leave_one_out_advantages,
    reinforce_gradient,
)
from fliqs_jax.controller.rewards import absolute_reward
from fliqs_jax.controller.schedules import Schedule, half_cosine
from fliqs_jax.controller.update import Controller, Proposal, descend

# options [L] -> cost / target, of a sampled policy
CostRatio = Callable[[Int[Array, "L"]], Float[Array, ""]]
# (quality [N], cost [N], target=, beta=) -> reward [N]
Reward = Callable[..., Float[Array, "*N"]]
# (probabilities [L, K], effects [L, K]) -> effects [L, K]
MarginalEffects = Callable[[Float[Array, "L K"], Float[Array, "L K"]], Array]
# (end, delay=, total=) -> weight by step
EntropySchedule = Callable[..., Schedule]


# The temperature stops here: softmax is decided, and nothing divides by 0.
_COLDEST = 0.01
_TINY = 1e-30  # equal losses have no spread: the effects are 0, so is the quotient


def published(
    cost_ratio: CostRatio,
    *,
    warmup_steps: int,
    end_step: int,
    beta: float = 1.0,
    learning_rate: float = 5e-3,
    entropy_weight: float = 0.5,
    baseline_decay: float = 0.99,
    reward: Reward = absolute_reward,
    entropy_schedule: EntropySchedule = half_cosine,
) -> Controller:
    r"""Builds the controller of the FLIQS authors' code: one sample a step.

    .. math:: R = -loss - \beta |C(a)/C^* - 1|, \quad
              L = -(R - b) \, mean_l \log \pi_l(a_l) + w(t) \, mean_l H(\pi_l)

    The baseline b is an exponential mean that includes R, also during the warm-up.
    Meant for large batches and 10^5 steps; in a few thousand steps the noise of the
    batch drowns a site's share of the reward, and `default` does better.

    Args:
      cost_ratio: cost over target of a sampled policy.
      warmup_steps: steps with a uniform policy at the start.
      end_step: step at which the entropy weight is at its largest.
      beta: loss that a cost error of 100 % is worth.
      learning_rate: Adam's, on the logits.
      entropy_weight: the schedule's last value, in units of the loss per nat.
      baseline_decay: d of `update_baseline`.
      reward: R from quality (the negated loss) and cost, one of `rewards`.
      entropy_schedule: makes w(t) from its end value, `delay` and `total` steps.

    Returns:
      A controller to `update` at every step.

    Raises:
      ValueError: if a number is out of range; see `half_cosine`, `absolute_reward`.

    Reference:
      Dotzel et al., FLIQS, 2024, https://arxiv.org/abs/2308.03290

    Example:
      >>> controller = published(lambda a: a.sum() / 2.0, warmup_steps=1, end_step=9)
      >>> state = controller.init(jnp.zeros((3, 2)))
      >>> options = controller.sample(jax.random.key(0), state)
      >>> state, metrics = controller.update(state, options, jnp.ones(1), step=1)
      >>> options.shape, int(state.num_updates)
      ((1, 3), 1)
    """
    reward_of = functools.partial(reward, target=1.0, beta=beta)
    reward_of(0.0, 1.0)  # a bad beta is reported here, not in the first traced step
    adam = optax.adam(learning_rate)
    weight_at = entropy_schedule(entropy_weight, delay=warmup_steps, total=end_step)

    def propose(state, options, losses, step, average):
        ratios = jax.vmap(cost_ratio)(options)
        rewards = reward_of(-losses, ratios)
        reward = average(rewards.mean())
        baseline = update_baseline(state.memory, reward, decay=baseline_decay)
        advantages = rewards - baseline.mean
        gradient = average(reinforce_gradient(state.logits, options, advantages))
        weight = weight_at(step)
        gradient += weight * entropy_gradient(state.logits)
        metrics = {
            "reward": reward,
            "advantage": average(jnp.abs(advantages).mean()),
            "cost_ratio": average(ratios.mean()),
            "entropy_weight": weight,
        }
        return Proposal(*descend(adam, state, gradient), baseline, metrics)

    return Controller(
        num_samples=1,
        propose=propose,
        init_memory=lambda shape: init_baseline(),
        init_optimizer=adam.init,
        score=lambda state: jax.nn.log_softmax(state.logits),
        warmup_steps=warmup_steps,
    )


def leave_one_out(
    expected_cost_ratio: ExpectedCostRatio,
    *,
    warmup_steps: int,
    end_step: int,
    num_samples: int = 8,
    beta: float = 1.0,
    learning_rate: float = 5e-2,
    entropy_weight: float = 0.02,
) -> Controller:
    r"""Builds REINFORCE with an exact cost and samples judged against each other.

    .. math:: \nabla = \frac{1}{L} \nabla_z \Big[ E_\pi[loss] + \beta |E_\pi[C]/C^* - 1|
              \Big] + w(t) \, \nabla_z mean_l H(\pi_l)

    Two things differ from `published`. The cost is no part of the sampled reward: its
    expectation is exact, so is its gradient. And several samples are judged on the same
    batch, each against the mean of the others, so the batch's own noise cancels.

    Args:
      expected_cost_ratio: expected cost over target of a table of probabilities.
      warmup_steps: steps with a uniform policy at the start.
      end_step: step at which the entropy weight is at its largest.
      num_samples: S >= 2, policies judged on one batch.
      beta: loss that a cost error of 100 % is worth.
      learning_rate: Adam's, on the logits.
      entropy_weight: the half cosine's last value, in units of the loss per nat.

    Returns:
      A controller to `update` whenever samples were judged.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> ratio = lambda probabilities: probabilities[:, 1].sum() / 2.0
      >>> controller = leave_one_out(ratio, warmup_steps=0, end_step=9, num_samples=2)
      >>> state = controller.init(jnp.zeros((3, 2)))
      >>> options = controller.sample(jax.random.key(0), state)
      >>> state, metrics = controller.update(state, options, jnp.ones(2), step=1)
      >>> float(metrics["cost_ratio"])
      0.75
    """
    _check_samples(num_samples)
    absolute_reward(0.0, 1.0, target=1.0, beta=beta)
    adam = optax.adam(learning_rate)
    weight_at = half_cosine(entropy_weight, delay=warmup_steps, total=end_step)

    def penalty(logits):
        ratio = expected_cost_ratio(jax.nn.softmax(logits))
        return beta * jnp.abs(ratio - 1.0), ratio

    def propose(state, options, losses, step, average):
        advantages = leave_one_out_advantages(-losses)
        gradient = average(reinforce_gradient(state.logits, options, advantages))
        (cost, ratio), cost_gradient = jax.value_and_grad(penalty, has_aux=True)(
            state.logits
        )
        weight = weight_at(step)
        gradient += cost_gradient / state.logits.shape[0]
        gradient += weight * entropy_gradient(state.logits)
        metrics = {
            "reward": average(-losses.mean()) - cost,
            "advantage": average(jnp.abs(advantages).mean()),
            "cost_ratio": ratio,
            "entropy_weight": weight,
        }
        return Proposal(*descend(adam, state, gradient), state.memory, metrics)

    return Controller(
        num_samples=num_samples,
        propose=propose,
        init_memory=lambda shape: (),
        init_optimizer=adam.init,
        score=lambda state: jax.nn.log_softmax(state.logits),
        warmup_steps=warmup_steps,
    )


def default(
    expected_cost_ratio: ExpectedCostRatio,
    *,
    warmup_steps: int,
    end_step: int,
    num_samples: int = 4,
    temperature: float = 1.0,
    decay: float = 1.0,
    ridge: float = 1.0,
    option_bits: Int[ArrayLike, "*L K"] | Sequence[int] | None = None,
    marginal_effects: MarginalEffects | None = None,
) -> Controller:
    r"""Builds the natural-gradient controller, the default.

    .. math:: z = -m / T(t) - \lambda c, \quad T(t) = \tau \sigma_m (1 + \cos \pi s) / 2

    m [L, K] is the least-squares effect of each option on the loss (`loss_model`): the
    natural policy gradient of all samples so far. The policy is then exact: of
    all with the target's expected cost it has the least expected loss less T times
    its entropy. T falls on a half cosine from the size of the effects to (almost) 0,
    so the policy goes from nearly uniform to decided, whatever the loss's scale and
    the number of updates. There is no learning rate and no penalty weight.

    Args:
      expected_cost_ratio: expected cost over target of a table of probabilities.
      warmup_steps: steps with a uniform policy at the start.
      end_step: step at which the policy is decided.
      num_samples: S >= 2, policies judged on one batch.
      temperature: tau, the first temperature in units of the effects' spread.
      decay: share of the sums that an update keeps; 1 forgets nothing.
      ridge: observations, on each device, that pull an effect to 0.
      option_bits: width of each of the K options, [K] or for each decision [L, K]. In
        the final scores no option then counts for less than a narrower one: where it
        seems to, that is noise, and a budget that would stay unspent goes to the wider
        format. Where all are equal, and with None, the data are trusted.
      marginal_effects: where decisions may be without effect, as others leave out what
        they are about: what an option brings with the others' probabilities as they
        are. None takes every effect as it is.

    Returns:
      A controller to `update` whenever samples were judged.

    Raises:
      ValueError: if a number is out of range.

    Reference:
      Kakade, A natural policy gradient, 2001. The form of the search: `published`.

    Example:
      >>> ratio = lambda probabilities: probabilities[:, 1].sum() / 1.5
      >>> controller = default(ratio, warmup_steps=0, end_step=9, num_samples=2)
      >>> state = controller.init(jnp.zeros((3, 2)))
      >>> options = controller.sample(jax.random.key(0), state)
      >>> state, metrics = controller.update(state, options, jnp.ones(2), step=1)
      >>> round(float(metrics["cost_ratio"]), 3)
      1.0
    """
    _check_samples(num_samples)
    if not (temperature > 0 and ridge > 0 and 0 < decay <= 1):
        raise ValueError(
            "temperature (--policy_temperature) and ridge (--policy_ridge) must be "
            "positive and decay in (0, 1], got "
            f"temperature={temperature}, ridge={ridge}, decay={decay}"
        )
    fraction_of = half_cosine(1.0, delay=warmup_steps, total=end_step)

    def propose(state, options, losses, step, average):
        shape = state.logits.shape
        present = ~jnp.isneginf(state.logits)  # absent options have no effect
        increment = average(
            loss_model_increment(options, losses, shape[1], present=present)
        )
        model = update_loss_model(state.memory, increment, decay=decay)
        effects = option_effects(model, shape, ridge=ridge)
        spread = jnp.sqrt(jnp.square(effects).mean(where=present))
        heat = temperature * spread * jnp.maximum(1.0 - fraction_of(step), _COLDEST)
        if marginal_effects is not None:
            effects = marginal_effects(jax.nn.softmax(state.logits), effects)
        logits = -effects / jnp.maximum(heat, _TINY)
        logits = jnp.where(present, logits, -jnp.inf)
        logits = meet_expected_cost(logits, expected_cost_ratio)
        metrics = {
            "reward": average(-losses.mean()),
            "advantage": average(jnp.abs(losses - losses.mean()).mean()),
            "cost_ratio": expected_cost_ratio(jax.nn.softmax(logits)),
            "temperature": heat,
        }
        return Proposal(logits, state.optimizer, model, metrics)

    def score(state):
        scores = -option_effects(state.memory, state.logits.shape, ridge=ridge)
        return (
            scores if option_bits is None else _no_worse_when_wider(scores, option_bits)
        )

    return Controller(
        num_samples=num_samples,
        propose=propose,
        init_memory=lambda shape: init_loss_model(*shape),
        init_optimizer=lambda logits: (),
        score=score,
        warmup_steps=warmup_steps,
    )


def _no_worse_when_wider(
    scores: Float[Array, "L K"], option_bits: Int[ArrayLike, "*L K"] | Sequence[int]
) -> Float[Array, "L K"]:
    """Raises each score to the best of the strictly narrower options'."""
    bits = np.broadcast_to(option_bits, scores.shape)
    narrower = bits[:, None, :] < bits[:, :, None]  # [L, K, K]
    reachable = narrower | np.eye(bits.shape[1], dtype=bool)[None]
    return jnp.where(reachable, scores[:, None, :], -jnp.inf).max(axis=-1)


def _check_samples(num_samples: int) -> None:
    if num_samples < 2:
        raise ValueError(
            f"num_samples must be at least 2 (they are compared), got {num_samples}"
        )
