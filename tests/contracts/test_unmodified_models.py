"""What holds for every model nobody wrote for us: a row a model, a test a promise."""

import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.formats import stack_formats
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.sites import find_sites


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(x)
        x = nn.Conv(8, (3, 3), strides=2, feature_group_count=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(6, (3, 3), kernel_dilation=2)(x)
        x = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((2, 3), axis=(-2, -1))(x)
        x = nn.Einsum((2, 3, 5), "...hd,hdf->...hf")(nn.gelu(x))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(2, qkv_features=8)(nn.LayerNorm()(x))
        return nn.Dense(3)((x + y).mean(1))


class Layer(nn.Module):
    """One layer of the stacks below, in the form that nn.scan wants."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=4)(y)
        return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(x))), None


class Stack(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(2)(x.mean(1))


class Unrolled(nn.Module):
    """Stack without scan: layer i is called layers_i."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x, _ = Layer(name=f"layers_{i}")(x, None)
        return nn.Dense(2)(x.mean(1))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4)
        return nn.Dense(2)(nn.relu(dense(nn.relu(dense(x)))))


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(2)(x)


# Sites of one layer of the stacks on [B, 6, 4]: path -> MACs per example.
_LAYER = {
    "MultiHeadDotProductAttention_0/query": 6 * 4 * 4,
    "MultiHeadDotProductAttention_0/key": 6 * 4 * 4,
    "MultiHeadDotProductAttention_0/value": 6 * 4 * 4,
    "MultiHeadDotProductAttention_0/out": 6 * 4 * 4,
    "Dense_1": 6 * 4 * 8,  # made second, called first
    "Dense_0": 6 * 8 * 4,
}
_STACK = {
    f"layers/{path}[{i}]": macs for path, macs in _LAYER.items() for i in range(3)
} | {"Dense_0": 8}


@dataclasses.dataclass(frozen=True)
class Case:
    model: nn.Module
    shape: tuple[int, ...]  # of the input, without the batch
    macs: dict[str, int]  # by path, in call order, counted by hand
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "cnn": Case(
        Cnn(),
        (8, 8, 4),
        {
            "Conv_0": 64 * 8 * 9 * 4,
            "Conv_1": 64 * 8 * 9,
            "Conv_2": 16 * 8 * 9 * 4,
            "Conv_3": 16 * 6 * 9 * 8,
            "ConvTranspose_0": 16 * 6 * 4 * 4,
            "Dense_0": 4 * 3,
        },
    ),
    "mlp": Case(
        Mlp(),
        (6, 4, 5),
        {
            "DenseGeneral_0": 6 * 20 * 6,
            "Einsum_0": 6 * 2 * 3 * 5,
            "Dense_0": 6 * 2 * 5 * 2,
        },
    ),
    "attention": Case(
        Attention(),
        (6, 4),
        {
            f"MultiHeadDotProductAttention_0/{name}": 6 * 4 * 8
            for name in ("query", "key", "value", "out")
        }
        | {"Dense_0": 12},
    ),
    "scan of remat": Case(Stack(), (6, 4), _STACK),
    "scan, axis 1": Case(Stack(axis=1), (6, 4), _STACK),
    "shared": Case(Shared(), (4,), {"Dense_0": 2 * 16, "Dense_1": 8}),
    "dropout": Case(Dropout(), (4,), {"Dense_0": 32, "Dense_1": 16}, {"train": True}),
}


class Run:
    """A row made concrete: variables, an input, and the compiled model."""

    def __init__(self, case: Case):
        self.case = case
        self.x = jax.random.normal(jax.random.key(1), (2, *case.shape))
        variables = jax.jit(case.model.init)(jax.random.key(0), self.x)
        # Zero biases and unit norms would hide a mistake.
        self.variables = jax.tree.map(lambda leaf: leaf + 0.01, variables)
        self.quantized = QuantizedModel(case.model)
        self.sites = self.quantized.sites(self.x, **case.kwargs)
        self.arguments = {"rngs": {"dropout": jax.random.key(3)}, **case.kwargs}
        self.traces = 0
        self._forward = jax.jit(self.apply)
        self.plain = self.forward(None)

    def apply(self, policy, params, x):
        self.traces += 1
        variables = {**self.variables, "params": params}
        return self.quantized.apply(variables, x, policy=policy, **self.arguments)

    def eager(self, policy):
        return self.apply(policy, self.variables["params"], self.x)

    def forward(self, policy):
        # Params are arguments: XLA would fold constants, with other roundings.
        return self._forward(policy, self.variables["params"], self.x)

    def uniform(self, name) -> SiteFormats:
        return Policy.uniform(self.sites, name).formats(self.sites)

    def mixed(self, *names) -> SiteFormats:
        """Different formats at neighbouring sites: `names` over and over."""
        listed = [names[i % len(names)] for i in range(len(self.sites))]
        return SiteFormats(stack_formats(listed), stack_formats(listed[::-1]))


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def run(request):
    return Run(request.param)


def test_sites_have_the_counted_macs(run):
    example = jax.ShapeDtypeStruct(run.x.shape, run.x.dtype)
    sites = find_sites(run.case.model, example, **run.case.kwargs)
    assert {site.path: site.macs for site in sites} == run.case.macs
    assert [site.path for site in sites] == list(run.case.macs)
    weights = flax.traverse_util.flatten_dict(run.variables["params"])
    kernels = sum(leaf.size for path, leaf in weights.items() if path[-1] == "kernel")
    assert sum(site.weight_count for site in sites) == kernels


def test_init_is_the_models_own(run):
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    # The same program, so the same values: nothing needs to run.
    programs = [
        str(
            jax.make_jaxpr(lambda r, x, init=init: init(r, x, **run.case.kwargs))(
                rngs, run.x
            )
        )
        for init in (run.quantized.init, run.case.model.init)
    ]
    assert programs[0] == programs[1]


def test_fp32_policy_changes_no_bit(run):
    assert (run.forward(run.uniform("fp32")) == run.plain).all()


def test_int8_is_close_and_int3_is_not(run):
    scale = jnp.abs(run.plain).max()
    error = jnp.abs(run.forward(run.uniform("int8")) - run.plain).max() / scale
    assert 0 < error < 0.05
    coarse = jnp.abs(run.forward(run.uniform("int3")) - run.plain).max() / scale
    assert coarse > 2 * error


def test_one_trace_serves_all_formats(run):
    run.forward(run.mixed("int4"))
    before = run.traces
    outputs = [
        run.forward(run.mixed(*names))
        for names in (["int5"], ["e4m3", "int8"], ["fp32", "int5", "bf16"])
    ]
    assert run.traces == before
    assert not (outputs[0] == outputs[1]).all()


def test_jit_equals_eager(run):
    if not isinstance(run.case.model, Shared | Stack):
        pytest.skip("slow without jit, and has nothing that those two have not")
    formats = run.mixed("int4", "e4m3", "bf16")
    np.testing.assert_allclose(
        run.forward(formats), run.eager(formats), rtol=1e-5, atol=1e-6
    )


def test_gradient_reaches_every_weight(run):
    formats = run.mixed("int6", "e4m3", "bf16")

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.square(run.apply(formats, p, run.x)).sum())(
            params
        )

    own = flax.traverse_util.flatten_dict(run.variables["params"])
    gradients = flax.traverse_util.flatten_dict(gradient(run.variables["params"]))
    assert gradients.keys() == own.keys()
    for path, leaf in gradients.items():
        assert jnp.isfinite(leaf).all(), path
        if path[-1] == "kernel":
            assert (leaf != 0).any(), path


def test_observed_inputs_are_those_of_the_sites(run):
    @jax.jit
    def observe(variables):
        return run.quantized.observe(variables, run.x, num_samples=64, **run.arguments)

    seen = observe(run.variables)
    assert seen.samples.shape == (len(run.sites), 64)
    inputs = inputs_by_path(run)
    for i, site in enumerate(run.sites):
        values = inputs[site.path]
        every = np.concatenate([value.ravel() for value in values])
        assert seen.absmax[i] == pytest.approx(np.abs(every).max(), rel=1e-5)
        assert seen.minimum[i] == pytest.approx(every.min(), rel=1e-5, abs=1e-7)
        mean = np.mean([np.square(value).mean() for value in values])
        assert seen.mean_square[i] == pytest.approx(mean, rel=1e-4)
        if site.calls == 1:
            distance = np.abs(seen.samples[i][:, None] - every[None, :]).min(1)
            assert distance.max() < 1e-5  # every sample is an element of the input


def inputs_by_path(run) -> dict[str, list[np.ndarray]]:
    """The inputs of each site, recorded without any of our machinery."""
    params, model = run.variables["params"], run.case.model
    if isinstance(model, Stack):
        params, model = unrolled_params(run), Unrolled()

    @jax.jit
    def recorded():
        seen = {}

        def record(next_fun, args, kwargs, context):
            module = context.module
            has_kernel = "kernel" in module.variables.get("params", {})
            if has_kernel and context.method_name == "__call__":
                path = stacked_path("/".join(module.path))
                seen.setdefault(path, []).append(args[0])
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(record):
            variables = {**run.variables, "params": params}
            model.apply(variables, run.x, **run.arguments)
        return seen

    return jax.tree.map(np.asarray, recorded())


def stacked_path(path: str) -> str:
    """layers_2/Dense_0 -> layers/Dense_0[2]."""
    if not path.startswith("layers_"):
        return path
    head, _, rest = path.partition("/")
    return f"layers/{rest}[{head.removeprefix('layers_')}]"


def unrolled_params(run):
    stacked = run.variables["params"]
    axis = run.case.model.axis
    rest = {name: tree for name, tree in stacked.items() if name != "layers"}
    layers = {
        f"layers_{i}": jax.tree.map(lambda leaf: leaf.take(i, axis), stacked["layers"])  # noqa: B023
        for i in range(3)
    }
    return rest | layers


@pytest.fixture(scope="module", params=[0, 1], ids=["axis 0", "axis 1"])
def stack(request):
    return Run(CASES["scan of remat" if request.param == 0 else "scan, axis 1"])


@pytest.mark.parametrize(("per_channel", "clips"), [(False, False), (True, True)])
def test_formats_per_layer_under_scan_equal_the_unrolled_model(
    stack, per_channel, clips
):
    formats = stack.mixed("int4", "int8", "e2m1", "int3", "fp32")
    if clips:
        count = len(stack.sites)
        formats = formats.replace(
            weight_clip=jnp.linspace(1.0, 3.0, count),
            activation_clip=jnp.linspace(0.5, 2.0, count),
        )
    quantized = QuantizedModel(stack.case.model, per_channel=per_channel)
    unrolled = QuantizedModel(Unrolled(), per_channel=per_channel)
    paths = [site.path for site in stack.sites]
    order = [paths.index(stacked_path(s.path)) for s in unrolled.sites(stack.x)]
    reordered = jax.tree.map(lambda leaf: leaf[np.array(order)], formats)
    params = {"params": unrolled_params(stack)}
    got = jax.jit(lambda: quantized.apply(stack.variables, stack.x, policy=formats))()
    want = jax.jit(lambda: unrolled.apply(params, stack.x, policy=reordered))()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
