"""Leaving out the layers of a masked network that are dead as a whole.

A block left out is nothing but zeros in the full network's arrays: masking alone would
multiply by them all the same. Which layers those are is data, so one compiled program
leaves out others for each sub-network.
"""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fliqs_jax.site_types import runs_call_of, split_first_input

# Zero weights give zeros whatever comes in; a user's own layer may do anything.
_LINEAR = (nn.Conv, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum)


@contextlib.contextmanager
def skip_dead_layers() -> Iterator[None]:
    """Applies linen models without their layers that hold nothing but zeros.

    The result is the same: y = x * 0 + 0 for finite x. Saves time where the choice is
    one for all examples of a call; under `jax.vmap` over choices, JAX runs both sides.

    Example:
      >>> layer, x = nn.Dense(2), jnp.ones((1, 3))
      >>> zeros = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), x))
      >>> with skip_dead_layers():
      ...     layer.apply(zeros, x).tolist()
      [[0.0, 0.0]]
    """

    def intercept(next_fun, args, kwargs, context):
        module = context.module
        linear = any(runs_call_of(kind, context) for kind in _LINEAR)
        if not linear or not module.has_variable("params", "kernel"):  # or in `init`
            return next_fun(*args, **kwargs)
        own = [module.get_variable("params", name) for name in ("kernel", "bias")]
        live = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(own)]
        inputs, rejoin = split_first_input(args, kwargs)

        def layer(x):
            args, kwargs = rejoin([x])
            return next_fun(*args, **kwargs)

        # Traced once, for its shape and to be run: a module's names are taken but once.
        run, captured = jax.closure_convert(layer, *inputs)
        output = jax.eval_shape(run, *inputs, *captured)
        return lax.cond(
            jnp.stack(live).any(),
            run,
            lambda *_: jnp.zeros(output.shape, output.dtype),
            *inputs,
            *captured,
        )

    with nn.intercept_methods(intercept):
        yield
