"""Keeping a policy's expected cost on its target, exactly.

Not here: the cost itself, which comes in as a function of the probabilities, and the
hard budget of the final policy (a knapsack over the log-probabilities).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# probabilities [L, K] -> expected cost / target, differentiable
ExpectedCostRatio = Callable[[Float[Array, "L K"]], Float[Array, ""]]

# Halvings of the multiplier's range: from +-1e5 nats down to float32's resolution.
_BISECTIONS = 60
_WIDEST_MULTIPLIER = 1e5


def meet_expected_cost(
    logits: Float[Array, "L K"], expected_cost_ratio: ExpectedCostRatio
) -> Float[Array, "L K"]:
    r"""Returns the policy nearest to the given one whose expected cost is the target.

    .. math:: z - \lambda c, \quad \lambda: E_\pi[C] = C^*, \quad
              c_{lk} = L \; \partial (E_\pi[C] / C^*) / \partial \pi_{lk}

    Nearest in relative entropy where the cost is linear in each probability with the
    others fixed; lambda is the multiplier of the cost, found by bisection, so there is
    no penalty weight to choose.

    Args:
      logits: z; -inf marks an option that is absent.
      expected_cost_ratio: expected cost over target of a table of probabilities; must
        not fall where a decision moves to an option of higher cost.

    Returns:
      Shifted logits. Where no policy reaches the target, the cheapest (or dearest).

    Example:
      >>> ratio = lambda probabilities: probabilities[:, 1].sum() / 0.5
      >>> logits = meet_expected_cost(jnp.zeros((2, 2)), ratio)
      >>> round(float(ratio(jax.nn.softmax(logits))), 5)
      1.0
    """
    direction = jax.grad(expected_cost_ratio)(jax.nn.softmax(logits)) * logits.shape[0]
    # A decision's common offset changes no probability; without it logits stay small.
    direction = direction - direction.mean(axis=-1, keepdims=True)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        ratio = expected_cost_ratio(jax.nn.softmax(logits - middle * direction))
        dear = ratio > 1.0
        return jnp.where(dear, middle, low), jnp.where(dear, high, middle)

    widest = jnp.float32(_WIDEST_MULTIPLIER)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-widest, widest))
    return logits - 0.5 * (low + high) * direction
