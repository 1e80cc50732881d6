"""Learned scales: LSQ's step size and PACT's clip, with their published gradients.

A learned step or clip is a parameter of the caller's: nothing here keeps state.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Num

from fliqs_jax.formats import Format
from fliqs_jax.quantizers.rounding import SMALLEST_SCALE, round_to_grid
from fliqs_jax.quantizers.scales import as_float32, reduced_axes, scale_of_bound
from fliqs_jax.quantizers.straight_through import broadcastable_scale, check_format


def init_lsq_step(
    x: Num[ArrayLike, "*S"], fmt: Format, *, axis: int | Sequence[int] | None = None
) -> Float[Array, "..."]:
    r"""Returns LSQ's initial step size for a tensor.

    .. math:: s_0 = 2 \, \overline{|x|} / \sqrt{Q_P}, \quad Q_P = v_{max}

    Args:
      x: the weights, or a first batch of activations.
      fmt: one format, may be traced.
      axis: axes that keep a step each, as in `absmax`.

    Returns:
      The step size, float32, shaped as in `absmax`; 1 where x is all zero, and for
      formats that need no scale.

    Reference:
      Esser et al., LSQ, 2020, section 2.1, https://arxiv.org/abs/1902.08153

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> float(init_lsq_step(jnp.array([1.0, -3.0]), parse_format("e3m0")))
      1.0
    """
    check_format(fmt)
    x = as_float32(x)
    axes = reduced_axes(x.ndim, axis)
    finite = jnp.isfinite(x)
    total = jnp.sum(
        jnp.where(finite, jnp.abs(x), 0.0), axis=axes, keepdims=axis is not None
    )
    count = jnp.sum(finite, axis=axes, keepdims=axis is not None)
    mean = total / jnp.maximum(count, 1)
    step_size = 2.0 * mean / jnp.sqrt(jnp.asarray(fmt.max_value))
    usable = jnp.asarray(fmt.needs_scale) & (step_size > 0)
    return jnp.where(usable, step_size, 1.0)


def learned_scale(bound: Num[ArrayLike, "*C"], fmt: Format) -> Float[Array, "*C"]:
    r"""Returns `scale_of_bound`, as a function of the bound that can be learned.

    .. math:: s = bound / v_{max}, \quad \partial s / \partial bound = 1 / v_{max}

    So with `lsq` a clip bound is LSQ's step size in other units, and a change of format
    keeps the range. Formats that need no scale give the bound no gradient.

    Args:
      bound: largest magnitude to represent, positive, in the tensor's units.
      fmt: one format, scalar fields, may be traced.

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> slope = jax.grad(lambda b: learned_scale(b, parse_format("int3")))(1.0)
      >>> round(float(slope), 4)
      0.3333
    """
    bound = jnp.asarray(bound, jnp.float32)
    held = lax.stop_gradient(bound)
    scale = scale_of_bound(held, fmt)
    usable = jnp.asarray(fmt.needs_scale) & (held > 0) & jnp.isfinite(held)
    # The factor is exactly 1; rounding up, as scale_of_bound may, has no gradient.
    return scale * jnp.where(usable, bound / jnp.where(usable, held, 1.0), 1.0)


@jax.custom_jvp
def _lsq(x, step_size, fmt):
    return round_to_grid(x, fmt, step_size)


@_lsq.defjvp
def _lsq_jvp(primals, tangents):
    x, step_size, fmt = primals
    x_dot, step_dot, _ = tangents
    ratio = x * (1.0 / step_size)
    codes = round_to_grid(ratio, fmt)
    inside = (ratio >= fmt.min_value) & (ratio <= fmt.max_value)
    slope = jnp.where(inside, codes - ratio, codes)  # Q_N or Q_P beyond the range
    # Weights and steps then move at one pace. Square roots apart: their product's
    # argument would overflow for bf16.
    elements = max(x.size, 1) / max(step_size.size, 1)
    pace = 1.0 / (jnp.sqrt(elements) * jnp.sqrt(fmt.max_value))
    step_dot = jnp.broadcast_to(step_dot * pace, x.shape)
    return _lsq(x, step_size, fmt), jnp.where(inside, x_dot, 0.0) + slope * step_dot


def lsq(
    x: Num[ArrayLike, "*S"], step_size: Num[ArrayLike, "..."], fmt: Format
) -> Float[Array, "*S"]:
    r"""Quantizes with a learned step size (LSQ).

    .. math:: \hat x = s \, Q(x / s), \quad
        \frac{\partial \hat x}{\partial s} = g \cdot \begin{cases}
        Q(x/s) - x/s & Q_N \le x/s \le Q_P \\ Q_N \text{ or } Q_P & \text{beyond}
        \end{cases}, \quad g = 1 / \sqrt{N Q_P}

    N is the number of elements that share a step, Q_N and Q_P the format's smallest and
    largest value. The gradient to x is straight through, zero outside the range.

    Args:
      x: the tensor, any floating type.
      step_size: s, positive; broadcasts against x. Values below 2**-100 count as that.
      fmt: one format, may be traced. Formats that need no scale are a cast: they
        ignore the step, whose gradient is then zero. fp32 returns x.

    Returns:
      The quantized tensor in x's type and shape.

    Raises:
      TypeError: if x is not of a floating type.
      ValueError: if fmt is stacked, or the step does not broadcast or is not positive.

    Reference:
      Esser et al., LSQ, 2020, https://arxiv.org/abs/1902.08153

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> int4, x = parse_format("int4"), jnp.array([0.8, 9.0, -9.0, 0.4])
      >>> lsq(x, 1.0, int4).tolist()
      [1.0, 7.0, -8.0, 0.0]
    """
    x = jnp.asarray(x)
    check_format(fmt)
    fmt = jax.tree.map(jnp.asarray, fmt)
    x32 = as_float32(x)
    step_size = broadcastable_scale(step_size, x32)
    y = _lsq(x32, jnp.where(fmt.needs_scale, step_size, 1.0), fmt)
    return jnp.where(fmt.mantissa_bits >= 23, x32, y).astype(x.dtype)


@jax.custom_jvp
def _pact(x, clip, fmt):
    low = jnp.where(fmt.min_value < 0, -clip, 0.0)
    scale = jnp.where(fmt.needs_scale, clip / fmt.max_value, 1.0)
    scale = jnp.maximum(scale, SMALLEST_SCALE)
    clipped = jnp.clip(x, low, clip)
    on_grid = round_to_grid(clipped, fmt, scale)
    return jnp.where(fmt.mantissa_bits >= 23, clipped, on_grid)


@_pact.defjvp
def _pact_jvp(primals, tangents):
    x, clip, fmt = primals
    x_dot, clip_dot, _ = tangents
    low = jnp.where(fmt.min_value < 0, -clip, 0.0)
    above, below = x >= clip, x <= low
    signed = (fmt.min_value < 0).astype(jnp.float32)
    slope = above.astype(jnp.float32) - signed * below.astype(jnp.float32)
    inside = (x < clip) & ((x > low) | (x == 0.0))
    clip_dot = jnp.broadcast_to(clip_dot, x.shape)
    return _pact(x, clip, fmt), jnp.where(inside, x_dot, 0.0) + slope * clip_dot


def pact(
    x: Num[ArrayLike, "*S"], clip: Num[ArrayLike, "..."], fmt: Format
) -> Float[Array, "*S"]:
    r"""Quantizes to a learned clip (PACT).

    .. math:: \hat x = s \, Q(\mathrm{clip}(x, 0, \alpha) / s), \quad
        s = \alpha / v_{max}, \quad
        \frac{\partial \hat x}{\partial \alpha} = [\, x \ge \alpha \,]

    On an unsigned format it is the paper's replacement of ReLU. On a signed one it
    clips to plus and minus alpha, and the gradient is -1 below minus alpha. The
    gradient to x is 1 between the bounds (at 0 too) and zero beyond. fp32 clips without
    rounding. The caller adds the paper's L2 penalty on alpha to the loss.

    Args:
      x: the tensor, any floating type.
      clip: alpha, positive, in the units of x; broadcasts against x.
      fmt: one format, may be traced.

    Returns:
      The quantized tensor in x's type and shape.

    Raises:
      TypeError: if x is not of a floating type.
      ValueError: if fmt is stacked, or the clip does not broadcast or is not positive.

    Reference:
      Choi et al., PACT, 2018, equations 1-3, https://arxiv.org/abs/1805.06085

    Example:
      >>> from fliqs_jax.formats import parse_format
      >>> pact(jnp.array([-1.0, 0.6, 9.0]), 3.0, parse_format("uint2")).tolist()
      [0.0, 1.0, 3.0]
    """
    x = jnp.asarray(x)
    check_format(fmt)
    fmt = jax.tree.map(jnp.asarray, fmt)
    x32 = as_float32(x)
    clip = broadcastable_scale(clip, x32, name="clip")
    return _pact(x32, clip, fmt).astype(x.dtype)
