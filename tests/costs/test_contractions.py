"""A model's contractions as programs: the same keys as its sites, and they run."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.costs import Contraction
from fliqs_jax.costs.contractions import OPERANDS, NotExecuted, find_contractions
from fliqs_jax.models import create_model
from fliqs_jax.site_types import register_site_type
from fliqs_jax.sites import find_sites


class Variety(nn.Module):
    """Strides, groups, dilation, transposition, general axes, and a shared layer."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Conv(6, (3, 3))
        x = nn.Conv(6, (3, 3), strides=2, feature_group_count=3)(x)
        x = shared(shared(x))
        x = nn.Conv(6, (3, 3), kernel_dilation=2, padding="VALID")(x)
        x = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x)
        x = nn.Einsum((4, 5), "...c,cd->...d")(x)
        return nn.DenseGeneral((2, 3), axis=(-2, -1))(x)


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        def step(layer, carry, _):
            return layer(carry), None

        scan = nn.scan(
            step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return scan(nn.Dense(x.shape[-1]), x, None)[0]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (create_model("resnet20"), (4, 32, 32, 3)),
        (create_model("lenet5"), (4, 28, 28, 1)),
        (Variety(), (4, 16, 16, 3)),
        (Stacked(), (4, 6)),
    ],
    ids=["resnet20", "lenet5", "variety", "stack"],
)
def test_programs_are_those_of_the_sites(model, shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    programs, left_out = find_contractions(model, images)
    sites = find_sites(model, images)
    assert not left_out
    assert {p.contraction for p in programs} == {Contraction.of(s) for s in sites}
    found = {path for program in programs for path in program.site_paths}
    assert found == {site.path.partition("[")[0] for site in sites}


def test_layer_geometry_is_kept():
    random = np.random.default_rng(0)
    image = random.normal(size=(2, 9, 9, 6)).astype(np.float32)
    kernel = random.normal(size=(3, 3, 3, 4)).astype(np.float32)
    layer = nn.Conv(
        4, (3, 3), strides=2, feature_group_count=2, padding="VALID", use_bias=False
    )
    (program,), _ = find_contractions(layer, image)
    output = program.compile("fp32").program(image, kernel)
    expected = layer.apply({"params": {"kernel": kernel}}, image)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_integers_are_summed_in_integers():
    (program,), _ = find_contractions(nn.Dense(3), jnp.zeros((2, 5)))
    compiled = program.compile("int8")
    x, kernel = compiled.operands
    assert compiled.program(x, kernel).dtype == jnp.int32
    expected = np.asarray(x, np.int64) @ np.asarray(kernel, np.int64)
    np.testing.assert_array_equal(compiled.program(x, kernel), expected)


def test_every_format_runs_or_says_why_not():
    (program,), _ = find_contractions(nn.Dense(3), jnp.zeros((2, 5)))
    for name in OPERANDS:
        try:
            program.compile(name).run()
        except NotExecuted as error:
            assert len(str(error)) > 10
    assert program.compile("fp32").executed_as == "f32"
    with pytest.raises(ValueError, match="format 'int3' has no operand type: use one"):
        program.compile("int3")


def test_layer_of_two_products_is_left_out_with_the_reason():
    class Twice(nn.Dense):
        """A site whose own call contracts twice."""

        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.ones, (x.shape[-1], 3))
            return x @ kernel + (x + 1.0) @ kernel

    register_site_type(Twice, op="twice", macs=lambda call: 2)
    programs, left_out = find_contractions(Twice(3), jnp.zeros((2, 5)))
    assert programs == ()
    assert left_out == {".": "2 dot products or convolutions, not one"}
