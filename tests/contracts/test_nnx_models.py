"""What holds for every NNX model: that it is quantized as its linen twin is.

The twins have the same names, so the same variables serve both.
"""

import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fliqs_jax as fq
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.sites import find_sites


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.grouped = nnx.Conv(
            8, 8, (3, 3), strides=2, feature_group_count=4, use_bias=False, rngs=rngs
        )
        self.up = nnx.ConvTranspose(
            8, 4, (2, 2), strides=2, transpose_kernel=True, rngs=rngs
        )
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.up(self.grouped(x)).mean((1, 2)))


class LinenCnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Conv(
            8, (3, 3), 2, feature_group_count=4, use_bias=False, name="grouped"
        )(x)
        up = nn.ConvTranspose(4, (2, 2), (2, 2), transpose_kernel=True, name="up")
        return nn.Dense(3, name="head")(up(x).mean((1, 2)))


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List(
            [
                nnx.LinearGeneral((4, 5), (2, 3), axis=(-2, -1), rngs=rngs),
                nnx.Einsum("...hd,hdf->...hf", (2, 3, 5), (2, 5), rngs=rngs),
            ]
        )
        self.heads = nnx.Dict(last=nnx.Linear(10, 2, rngs=rngs))

    def __call__(self, x):
        first, second = self.blocks
        return self.heads["last"](second(nnx.gelu(first(x))).reshape(x.shape[0], -1))


class LinenBlocks(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.DenseGeneral((2, 3), axis=(-2, -1), name="0")(x))
        return nn.Einsum((2, 3, 5), "...hd,hdf->...hf", name="1")(x)


class LinenHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="last")(x)


class LinenMlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = LinenBlocks(name="blocks")(x)
        return LinenHeads(name="heads")(x.reshape(x.shape[0], -1))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=4, qkv_features=8, decode=False, rngs=rngs
        )
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head((x + self.attention(self.norm(x))).mean(1))


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=8, name="attention")
        y = attention(nn.LayerNorm(name="norm")(x))
        return nn.Dense(3, name="head")((x + y).mean(1))


class Shared(nnx.Module):
    """One layer reached by two attributes, and called by both."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.same = self.dense
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.same(nnx.relu(self.dense(x)))))


class LinenShared(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4, name="dense")
        return nn.Dense(2, name="head")(nn.relu(dense(nn.relu(dense(x)))))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.wide = nnx.Linear(4, 8, rngs=rngs)
        self.narrow = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return x + self.narrow(nnx.gelu(self.wide(self.norm(x))))


class Stack(nnx.Module):
    """Layers made by nnx.vmap and run by nnx.scan."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=4)  # as many layers as channels
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return Layer(rngs)

        self.layers = make(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return nnx.remat(Layer.__call__)(layer, x)

        return self.head(run(x, self.layers))


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(8, name="wide")(nn.LayerNorm(name="norm")(x))
        return x + nn.Dense(4, name="narrow")(nn.gelu(y)), None


class LinenStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(LinenLayer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=4,
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)


@dataclasses.dataclass(frozen=True)
class Case:
    model: type[nnx.Module]
    twin: nn.Module
    shape: tuple[int, ...]  # of the input, without the batch
    macs: dict[str, int]  # by path, in call order, counted by hand
    twin_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    observed: bool = True  # False where it would only cost compile time


CASES = {
    "cnn": Case(
        Cnn,
        LinenCnn(),
        (4, 4, 4),
        {
            "conv": 16 * 8 * 9 * 4,
            "grouped": 4 * 8 * 9 * 2,
            "up": 4 * 8 * 4 * 4,
            "head": 4 * 3,
        },
        {"train": True},
    ),
    "mlp": Case(
        Mlp,
        LinenMlp(),
        (4, 5),
        {"blocks/0": 20 * 6, "blocks/1": 2 * 3 * 5, "heads/last": 10 * 2},
        observed=False,
    ),
    "attention": Case(
        Attention,
        LinenAttention(),
        (6, 4),
        {f"attention/{name}": 6 * 4 * 8 for name in ("query", "key", "value", "out")}
        | {"head": 12},
        observed=False,
    ),
    "shared": Case(Shared, LinenShared(), (4,), {"dense": 2 * 16, "head": 8}),
    "stack": Case(
        Stack,
        LinenStack(),
        (4,),
        {f"layers/wide[{i}]": 32 for i in range(4)}
        | {f"layers/narrow[{i}]": 32 for i in range(4)}
        | {"head": 8},
    ),
}


def made(model: type[nnx.Module]) -> nnx.Module:
    """A model with numbers of ours: its own take seconds to compile."""
    generator = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: model(nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)

    def fill(leaf):
        return jnp.asarray(0.4 * generator.normal(size=leaf.shape), leaf.dtype)

    rest = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), rest)
    return nnx.merge(graphdef, jax.tree.map(fill, params), rest)


class Run:
    """A row made concrete: a model, its variables, an input, and formats."""

    def __init__(self, case: Case):
        self.case = case
        generator = np.random.default_rng(0)
        shape = (2, *case.shape)
        self.x = jnp.asarray(generator.normal(size=shape), jnp.float32)
        self.model = made(case.model)
        self.before = jax.tree.map(np.asarray, nnx.split(self.model))
        self.quantized = QuantizedModel(self.model, per_channel=True)
        self.variables = self.quantized.init(jax.random.key(0), self.x)
        self.sites = self.quantized.sites(self.x, train=True)
        self.traces = 0
        self.measured = jax.jit(self.everything(self.quantized, {"train": True}))

    def mixed(self, *names) -> SiteFormats:
        """Different formats at neighbouring sites, with clips."""
        count = len(self.sites)
        listed = [names[i % len(names)] for i in range(count)]
        formats = fq.stack_formats(listed)
        clips = jnp.asarray(np.linspace(2.0, 4.0, count), jnp.float32)
        return SiteFormats(formats, formats, clips, clips)

    def everything(self, quantized, kwargs):
        """Output, new state, gradient and statistics of a model, in one program."""
        mutable = ["batch_stats"]

        def loss(params, variables, formats, x):
            variables = {**variables, "params": params}
            output, state = quantized.apply(
                variables, x, policy=formats, mutable=mutable, **kwargs
            )
            return jnp.square(output).sum(), (output, state)

        def run(formats, variables, x):
            self.traces += 1
            results = jax.grad(loss, has_aux=True)(
                variables["params"], variables, formats, x
            )
            if not self.case.observed:
                return results, None
            observe = quantized.observe
            seen = observe(variables, x, num_samples=8, mutable=mutable, **kwargs)
            return results, seen

        return run


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def run(request):
    return Run(request.param)


def test_sites_are_the_twins_with_the_counted_macs(run):
    example = jax.ShapeDtypeStruct(run.x.shape, run.x.dtype)
    sites = find_sites(run.model, example)
    assert {site.path: site.macs for site in sites} == run.case.macs
    assert sites == run.sites == find_sites(run.case.twin, example)


def test_variables_are_the_models_own_and_in_the_twins_shape(run):
    twin = jax.eval_shape(run.case.twin.init, jax.random.key(0), run.x)
    assert jax.tree.structure(run.variables) == jax.tree.structure(dict(twin))
    own = dict(nnx.to_flat_state(nnx.state(run.model, nnx.Param)))
    flat = flax.traverse_util.flatten_dict(run.variables["params"])
    assert {tuple(map(str, path)) for path in own} == set(flat)
    for path, variable in own.items():
        np.testing.assert_array_equal(flat[tuple(map(str, path))], variable[...])


def test_fp32_policy_changes_no_bit(run):
    plain = nnx.jit(lambda model, x: model(x))(nnx.clone(run.model), run.x)
    formats = Policy.uniform(run.sites, "fp32").formats(run.sites)
    got = jax.jit(
        lambda formats, variables, x: run.quantized.apply(
            variables, x, policy=formats, train=True
        )
    )(formats, run.variables, run.x)
    assert (got == plain).all()


COSTLY = {"attention", "mlp", "shared"}


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in COSTLY else [])
        for name, case in CASES.items()
    ],
    indirect=True,
)
def test_everything_equals_the_twin_in_one_trace(run):
    twin = QuantizedModel(run.case.twin, per_channel=True)
    expected = jax.jit(run.everything(twin, run.case.twin_kwargs))
    outputs = []
    for names in (["int4", "e2m1", "int8"], ["e4m3", "int6"]):
        formats = run.mixed(*names)
        run.traces = 0
        got = run.measured(formats, run.variables, run.x)
        assert run.traces == (0 if outputs else 1)
        want = expected(formats, run.variables, run.x)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            got,
            want,
        )
        outputs.append(got[0][1][0])
    gradient = flax.traverse_util.flatten_dict(got[0][0])
    assert all((g != 0).any() for path, g in gradient.items() if path[-1] == "kernel")
    assert not (outputs[0] == outputs[1]).all()


def test_model_is_left_alone(run):
    jax.eval_shape(
        lambda: run.quantized.apply(
            run.variables, run.x, policy=run.mixed("int4"), train=True, mutable=True
        )
    )
    after = jax.tree.map(np.asarray, nnx.split(run.model))
    assert jax.tree.structure(after) == jax.tree.structure(run.before)
    jax.tree.map(np.testing.assert_array_equal, after, run.before)


def test_policy_file_of_the_twin_serves(run, tmp_path):
    sites = find_sites(run.case.twin, run.x)
    Policy.uniform(sites, "int5").save(tmp_path / "policy.json")
    policy = Policy.load(tmp_path / "policy.json")
    assert policy == Policy.uniform(run.sites, "int5")
