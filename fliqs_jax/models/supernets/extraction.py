"""A sub-network as an ordinary small model with variables of its own."""

import flax
import flax.linen as nn
import jax
from jaxtyping import ArrayLike, Int, PyTree

from fliqs_jax.models.supernets.network import SuperNetwork


def extract(
    net: SuperNetwork, variables: PyTree, choice: Int[ArrayLike, "A"]
) -> tuple[nn.Module, PyTree]:
    """Returns the small model of a choice and the live part of the variables.

    It gives what the masked full network gives, under every policy, at its real cost.
    Batch statistics are cut out as they are: they are the full network's until they are
    recomputed.

    Args:
      net: the super-network.
      variables: of its full network.
      choice: option indices, concrete.

    Raises:
      ValueError: if the choice is none of this network's, or what `build` makes has
        other variables than `sizes` and `axes` say.

    Example:
      >>> from fliqs_jax.models.supernets import create_supernet
      >>> net = create_supernet("vit_cifar", num_layers=2)
      >>> variables = net.abstract_variables(net.model)  # shapes do for this
      >>> model, small = extract(net, jax.tree.map(jax.numpy.zeros_like, variables),
      ...     net.smallest)
      >>> model.layers
      ((1, 192),)
    """
    choice = net.check_choice(choice)
    sizes = {name: int(size) for name, size in net.live_sizes(choice).items()}
    model = net.subnetwork(choice)
    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(variables))
    live = {}
    for leaf in net.layout.leaves:
        if 0 not in leaf.extents(sizes):
            path, parts = (leaf.collection, *leaf.path), net.slices(leaf, sizes)
            live[path] = jax.tree.map(lambda x, parts=parts: x[parts], flat[path])
    small = flax.traverse_util.flatten_dict(net.abstract_variables(model))
    _check_same(small, {path: nn.meta.unbox(value) for path, value in live.items()})
    return model, flax.traverse_util.unflatten_dict(live)


def _check_same(built: dict, sliced: dict) -> None:
    shapes = [
        {"/".join(path): tuple(leaf.shape) for path, leaf in leaves.items()}
        for leaves in (built, sliced)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        of_model, of_sizes = (found.get(name) for found in shapes)
        if of_model != of_sizes:
            raise ValueError(
                f"build: {name!r} has shape {of_model} in the small model, but by"
                f" `sizes` and `axes` it is {of_sizes} (None: absent); they must agree"
            )
