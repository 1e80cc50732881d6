"""QuantizedModel: a Flax model, as it is, run under a policy of number formats.

Weights are quantized in the params tree before the model runs, inputs of sites while it
runs. It holds no variables and trains nothing; which formats to use is `policy` and
`search_space`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from fliqs_jax.checks import check_at_least
from fliqs_jax.interception import as_model, intercept_sites, model_name
from fliqs_jax.policy import FormatMixture, Policy, SiteFormats
from fliqs_jax.quantized_model import observations, riding
from fliqs_jax.quantized_model.input_gradients import carry_squared_gradient
from fliqs_jax.quantized_model.observations import Observations
from fliqs_jax.quantized_model.weights import (
    mix_weights,
    quantize_second_operand,
    quantize_weights,
)
from fliqs_jax.quantizers import (
    absmax_bound,
    fake_quantize,
    learned_scale,
    lsq,
    scale_of_bound,
)
from fliqs_jax.site_types import SiteLayer
from fliqs_jax.sites import Site, find_sites

_FORMAT = "fliqs_jax_format"
_SECOND_FORMAT = _FORMAT + "_second"  # of the key or value of a product
_SHARES = _FORMAT + "_shares"  # of each format, where several ride
_GRADIENTS = _FORMAT + "_gradients"  # zeros, for squared gradients of the inputs


class QuantizedModel:
    """Runs a Flax model with fake-quantized weights and inputs of its sites.

    The model is not changed: `init` and `apply` are its own, plus `policy`. Those of an
    NNX model are as in `nnx_adapter`: `init` returns the values it has. Biases,
    norms and embeddings stay as they are, and so do integer inputs. Gradients reach the
    float weights straight through. Formats are data: one compilation serves all values.

    Without clips a scale comes from the tensor's own largest magnitude (of the inputs:
    per tensor, on each device under `shard_map`). A weight clip c sets the scale to
    c * RMS / max_value, an activation clip b to b / max_value.

    Sites of op "attention_product" (on request, see `find_sites`) have both operands of
    their product quantized: query and probabilities as the inputs of other sites are;
    key and value as weights, with one scale a tensor, or where clips are given, one
    scale an example (RMS and maximum over its positions, heads and components). The
    query is quantized after its division by the root of the head size, the
    probabilities after dropout. Layers with `decode=True` take them without clips only.

    Args:
      model: the linen or NNX module.
      sites: its sites, where the model's own arguments do not lead to all of them (an
        `apply` with `method=...`); None finds them from the arguments of the call.
      attention_products: find the products inside attention layers, too (of linen
        models); where `sites` are given, these decide.
      per_channel: one scale per output channel of a weight instead of one per tensor.
      clip_gradient: False passes the gradient of clipped values too.
      learned_clips: clips are trained: their gradient is that of LSQ's step size (see
        `fliqs_jax.quantizers.lsq`), the scale being the clip times what is constant.

    Raises:
      TypeError: if `model` is no Flax module.
      ValueError: if clips are learned without a mask on the gradient of the values.

    Example:
      >>> import flax.linen as nn
      >>> qm = QuantizedModel(nn.Dense(2))
      >>> x = jnp.ones((1, 4))
      >>> variables = qm.init(jax.random.key(0), x)
      >>> policy = Policy.uniform(qm.sites(x), "int8")
      >>> qm.apply(variables, x, policy=policy).shape
      (1, 2)
    """

    def __init__(
        self,
        model: Any,
        *,
        sites: Sequence[Site] | None = None,
        attention_products: bool = False,
        per_channel: bool = False,
        clip_gradient: bool = True,
        learned_clips: bool = False,
    ):
        if learned_clips and not clip_gradient:
            raise ValueError(
                "learned_clips needs clip_gradient=True: beyond the clip the gradient"
                " is the clip's"
            )
        self.model = as_model(model)
        self.attention_products = attention_products
        self.per_channel = per_channel
        self.clip_gradient = clip_gradient
        self.learned_clips = learned_clips
        self._given = None if sites is None else tuple(sites)
        self._found: dict[Any, tuple[Site, ...]] = {}

    def __repr__(self) -> str:
        return f"QuantizedModel({model_name(self.model)})"

    def sites(self, *args: Any, **kwargs: Any) -> tuple[Site, ...]:
        """Returns the model's sites for these arguments; remembers them by shape."""
        if self._given is not None:
            return self._given
        kwargs = {k: v for k, v in kwargs.items() if k not in ("rngs", "mutable")}
        leaves, tree = jax.tree.flatten((args, kwargs))
        key = (tree, tuple(_static_key(leaf) for leaf in leaves))
        if key not in self._found:
            self._found[key] = find_sites(
                self.model, *args, attention_products=self.attention_products, **kwargs
            )
        return self._found[key]

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> PyTree:
        """Returns exactly what the model's own `init` returns."""
        return self.model.init(rngs, *args, **kwargs)

    def apply(
        self,
        variables: PyTree,
        *args: Any,
        policy: Policy | SiteFormats | FormatMixture | None = None,
        gradient_zeros: Mapping[str, Float[Array, ""]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Applies the model with the formats of a policy.

        Args:
          variables: the model's variables, weights in float.
          *args: arguments of the model.
          policy: None runs the plain model. A `Policy` is fixed when traced;
            `SiteFormats` are arrays over the sites and may be traced; so are those of
            a `FormatMixture`, which is for sites that are no attention products.
          gradient_zeros: a zero for each site (by its path) that is to be watched. A
            loss has with respect to it as "gradient" the sum of its squared gradients
            to the site's input, as quantized, over elements and calls. Other sites
            cost nothing.
          **kwargs: as for the model's `apply` (`mutable`, `rngs`, `method`, ...).

        Returns:
          What the model returns. If `mutable` covers params, the returned ones hold the
          float weights that came in.

        Raises:
          TypeError: if `policy` is none of these.
          ValueError: if the policy is another model's, or a watched site does not
            exist or there is no policy.
        """
        if policy is None:
            if gradient_zeros:
                raise ValueError("gradient_zeros needs a policy: fp32 changes nothing")
            return self.model.apply(variables, *args, **kwargs)
        sites = self.sites(*args, **kwargs)
        formats = _site_formats(policy, sites)
        groups = riding.group_sites(sites)
        given = riding.flatten_params(variables["params"])
        flat = self._ridden(given, groups, formats)
        if gradient_zeros:
            _place_zeros(flat, groups, sites, gradient_zeros)
        change = self._quantized
        result = self._apply_flat(change, groups, variables, flat, args, kwargs)
        if kwargs.get("mutable", False) is False or "params" not in result[1]:
            return result
        return result[0], {**result[1], "params": _restored(result[1], flat, given)}

    def observe(
        self,
        variables: PyTree,
        *args: Any,
        policy: Policy | SiteFormats | FormatMixture | None = None,
        num_samples: int = 2048,
        **kwargs: Any,
    ) -> Observations:
        """Returns statistics of every site's input in one run of the model.

        Costs about a forward pass. The inputs are looked at as they arrive, before they
        are quantized. Under `shard_map` each device sees its own examples. A model with
        a `while` loop cannot be observed: JAX has no gradient through it.

        Args:
          variables: the model's variables.
          *args: arguments of the model.
          policy: formats under which the model runs; None is the plain model.
          num_samples: S, values to keep of each input; fewer are repeated.
          **kwargs: as for the model's `apply`.

        Returns:
          Observations over the sites L, float32.
        """
        check_at_least(1, num_samples=num_samples)
        sites = self.sites(*args, **kwargs)
        groups = riding.group_sites(sites)
        flat = riding.flatten_params(variables["params"])
        if policy is not None:
            flat = self._ridden(flat, groups, _site_formats(policy, sites))
        axes = observations.varying_axes((variables, args))

        def change(inputs, layer, product=None):
            inputs = _observed(inputs, layer, product)
            return self._quantized(inputs, layer, product)

        def outputs(zeros):
            ridden = {**flat, **zeros}
            result = self._apply_flat(change, groups, variables, ridden, args, kwargs)
            leaves = jax.tree.leaves(result)
            return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]

        zeros = observations.zero_leaves(groups, num_samples)
        if axes:
            zeros = lax.pcast(zeros, tuple(axes), to="varying")
        results, pull_back = jax.vjp(outputs, zeros)
        # Outside jit, JAX cannot add the extended dtype that maxima have.
        pull_back = jax.jit(pull_back, inline=True)
        (statistics,) = pull_back([jnp.zeros_like(x) for x in results])
        return observations.read_leaves(statistics, groups)

    def _apply_flat(self, change, groups, variables, flat, args, kwargs):
        """Applies the model, `change` applied to the inputs of its sites."""

        def hook(next_fun, args, kwargs, layer):
            inputs, rejoin = layer.site_type.split_inputs(args, kwargs)
            args, kwargs = rejoin(change(inputs, layer))
            return next_fun(*args, **kwargs)

        def contract(layer, name, einsum, equation, first, second):
            (first,) = change([first], layer, name)
            if (row := _row(layer, _SECOND_FORMAT, name)) is not None:
                _check_not_decoding(layer, name, row)
                second = quantize_second_operand(
                    second, row, clip_gradient=self.clip_gradient
                )
            return einsum(equation, first, second)

        product_hook = contract if any(group.product for group in groups) else None
        variables = {**variables, "params": riding.unflatten_params(flat)}
        with intercept_sites(self.model, hook, product_hook) as hooked:
            return hooked.apply(variables, *args, **kwargs)

    def _ridden(self, flat, groups, formats: SiteFormats | FormatMixture):
        """Returns params with quantized weights and the inputs' formats in them."""
        if isinstance(formats, FormatMixture):
            return self._mixed(flat, groups, formats)
        weight_rows = riding.pack_formats(formats.weight, formats.weight_clip)
        flat = quantize_weights(
            flat,
            groups,
            weight_rows,
            per_channel=self.per_channel,
            clip_gradient=self.clip_gradient,
            learned_clips=self.learned_clips,
        )
        rows = riding.pack_formats(formats.activation, formats.activation_clip)
        riding.place_rows(flat, groups, _FORMAT, rows)
        products = [group for group in groups if group.product]
        riding.place_rows(flat, products, _SECOND_FORMAT, weight_rows)
        return flat

    def _mixed(self, flat, groups, mixture: FormatMixture):
        """As `_ridden`: weights are means, the formats of all options ride."""
        if any(group.product for group in groups):
            raise ValueError(
                "policy is a FormatMixture, which attention products do not take: find"
                " the sites without attention_products"
            )
        options = [self._ridden(flat, groups, option) for option in mixture.options]
        mixed = mix_weights(options, groups, mixture.probabilities)
        rows = [
            riding.pack_formats(option.activation, option.activation_clip)
            for option in mixture.options
        ]
        riding.place_rows(mixed, groups, _FORMAT, jnp.concatenate(rows, axis=1))
        riding.place_rows(mixed, groups, _SHARES, mixture.probabilities)
        return mixed

    def _quantized(self, inputs, layer, product=None):
        """Returns a site's inputs on the grid that rides in its scope, if any."""
        row = _row(layer, _FORMAT, product)
        types = [jnp.result_type(x) for x in inputs]
        if row is None or not all(jnp.issubdtype(x, jnp.floating) for x in types):
            return inputs
        inputs = [jnp.asarray(x) for x in inputs]
        shares = _row(layer, _SHARES, product)
        if shares is None:
            quantized = self._on_grid(inputs, row)
        else:
            options = [self._on_grid(inputs, r) for r in jnp.split(row, len(shares))]
            quantized = [
                sum(
                    share.astype(x.dtype) * x
                    for share, x in zip(shares, each, strict=True)
                )
                for each in zip(*options, strict=True)
            ]
        zero = _leaf(layer, _GRADIENTS, product)
        return quantized if zero is None else carry_squared_gradient(quantized, zero)

    def _on_grid(self, inputs, row):
        """Returns inputs on the grid of one format, which they share a scale of."""
        fmt, clip = riding.unpack_format(row)
        if (bound := clip) is None:
            bounds = [absmax_bound(lax.stop_gradient(x)) for x in inputs]
            bound = functools.reduce(jnp.maximum, bounds)
        if self.learned_clips and clip is not None:
            scale = learned_scale(bound, fmt)
            return [lsq(x, scale, fmt) for x in inputs]
        scale, masked = scale_of_bound(bound, fmt), self.clip_gradient
        return [
            fake_quantize(x, fmt, scale=scale, clip_gradient=masked) for x in inputs
        ]


def _observed(inputs: list, layer: SiteLayer, product: str | None) -> list:
    """Returns a site's inputs, their statistics carried out if zeros ride in."""
    sums = _leaf(layer, observations.SUMS, product)
    if sums is None or not all(jnp.size(x) for x in inputs):
        return inputs
    maxima = _leaf(layer, observations.MAXIMA, product)
    inputs = [jnp.asarray(x) for x in inputs]
    return observations.observe_inputs(inputs, sums, maxima)


def _place_zeros(
    flat: riding.FlatParams,
    groups: Sequence[riding.SiteGroup],
    sites: tuple[Site, ...],
    zeros: Mapping[str, Any],
) -> None:
    """Adds the watched sites' zeros to the params of their scopes."""
    paths = [site.path for site in sites]
    if unknown := sorted(zeros.keys() - set(paths)):
        raise ValueError(
            f"gradient_zeros names {unknown[0]!r}, which is no site of the model"
        )
    rows = jnp.stack([zeros.get(path, jnp.zeros(())) for path in paths])[:, None]
    watched = [
        group for group in groups if not zeros.keys().isdisjoint(paths[group.rows])
    ]
    riding.place_rows(flat, watched, _GRADIENTS, rows)


def _leaf(layer: SiteLayer, name: str, product: str | None) -> Any:
    return layer.get(riding.leaf_name(name, product))


def _row(layer: SiteLayer, name: str, product: str | None) -> Any:
    leaf = _leaf(layer, name, product)
    return None if leaf is None else leaf.reshape(-1)


def _check_not_decoding(layer: SiteLayer, name: str, row: Any) -> None:
    _, clip = riding.unpack_format(row)
    if clip is not None and layer.module.decode:
        # The RMS would count the empty places of the cache as zeros.
        raise ValueError(
            f"attention product '{layer.path}/{name}': a clip is relative to the keys"
            " or values of all positions, which a layer with decode=True has not seen"
            " yet: leave out the clips of the formats, or give QuantizedModel the sites"
            " without attention products"
        )


def _static_key(leaf: Any) -> Any:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return tuple(leaf.shape), str(leaf.dtype)
    return repr(leaf)


def _site_formats(
    policy: Policy | SiteFormats | FormatMixture, sites: tuple[Site, ...]
) -> SiteFormats | FormatMixture:
    if isinstance(policy, Policy):
        return policy.formats(sites)
    if isinstance(policy, FormatMixture):
        shape = (len(sites), len(policy.options))
        if np.shape(policy.probabilities) != shape:
            raise ValueError(
                f"policy.probabilities has shape {np.shape(policy.probabilities)}, but"
                f" {shape[0]} sites with {shape[1]} options need {shape}"
            )
        for option in policy.options:
            _site_formats(option, sites)
        return policy
    if not isinstance(policy, SiteFormats):
        raise TypeError(
            "policy must be a Policy, SiteFormats, a FormatMixture or None, got"
            f" {policy!r}: Policy.uniform(sites, 'int8') makes one,"
            " space.formats(options) the other"
        )
    for name, fields in vars(policy).items():
        for leaf in jax.tree.leaves(fields):
            if np.shape(leaf) != (len(sites),):
                raise ValueError(
                    f"policy.{name} has shape {np.shape(leaf)}, but the model has"
                    f" {len(sites)} sites ({sites[0].path!r} to {sites[-1].path!r}):"
                    " make the formats for the sites of this model"
                )
    return policy


def _restored(mutated: Any, flat: riding.FlatParams, given: riding.FlatParams) -> dict:
    """Returns params after the model: nothing rides, quantized weights are float."""
    returned = riding.flatten_params(mutated["params"])
    kept = {
        path: leaf
        for path, leaf in returned.items()
        if not path[-1].startswith(_FORMAT)
    }
    quantized = {path for path, leaf in given.items() if flat[path] is not leaf}
    restored = {path: given[path] for path in quantized}
    return riding.unflatten_params({**kept, **restored})
