"""Squared gradients of the loss at the sites' inputs, from the one backward pass.

Carried out of a model as the gradient of riding zeros, as in `observations`. Summed up,
they are a Fisher trace but for a factor; what that is used for is not known
here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


@jax.custom_vjp
def carry_squared_gradient(
    inputs: list[Shaped[Array, "..."]], zero: Float[Array, "..."]
) -> list[Shaped[Array, "..."]]:
    r"""Returns inputs as they are; a loss L has with respect to the zero the "gradient"

    .. math:: \sum_i \left( \frac{\partial L}{\partial x_i} \right)^2

    over the elements of all inputs. The gradients that go on are untouched.
    """
    del zero
    return inputs


def _forward(inputs, zero):
    return inputs, zero


def _backward(zero, gradients):
    squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in gradients]
    return gradients, jnp.full_like(zero, sum(squares))


carry_squared_gradient.defvjp(_forward, _backward)
