"""What every network promises: shapes, counts, types, and which calls change state."""

import functools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fliqs_jax as fq
from fliqs_jax import models
from fliqs_jax.sites import find_sites

INPUTS = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar": (32, 32, 3)}
SMALL = tuple(n for n in models.model_names() if models.input_shape(n)[0] <= 32)

# Networks for ImageNet with 1000 classes: their published parameter counts, those of
# timm (ViT, DeiT), torchvision (ResNet, MobileNetV2, Inception without its auxiliary
# classifier) and the EfficientNet code of its authors. ResNet-18 has 11,689,512, and
# the projection in its first stage 64 * 64 weights and two numbers a channel.
PUBLISHED = {
    "resnet18": 11_689_512 + 64 * 64 + 2 * 64,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "inception_v3": 27_161_264 - 3_326_696,
    "darts_imagenet": 4_718_752,  # the 4.7 M of its paper, without auxiliary head
    "vit_tiny": 5_717_416,
    "vit_small": 22_050_664,
    "vit_base": 86_567_656,
    "deit_tiny": 5_717_416,
    "deit_small": 22_050_664,
    "deit_base": 86_567_656,
}
# One of each family, and fields that make it quick to trace or compile.
FAMILIES = {
    "resnet18": {"width": 0.125},
    "resnet50": {"width": 0.125, "num_blocks": (1, 1, 1, 1)},
    "mobilenet_v2": {"width": 0.25},
    "efficientnet_b0": {"width": 0.25},
    "inception_v3": {"width": 0.125},
    "deit_tiny": {"dim": 64, "num_layers": 2},
}
SMALLEST = {"inception_v3": (75, 75, 3)}  # images, where 32 pixels do not do
# Fields that make a deep network for small images quick to trace.
SHALLOW = {
    "nasbench201": {"width": 4, "num_cells": 1},
    "darts": {"channels": 4, "layers": 3},
}
# Tracing all blocks at full size takes seconds: one or two of a family by default.
QUICK = ("resnet18", "mobilenet_v2", "efficientnet_b0", "deit_tiny")

# Hand counts. ResNet of n blocks a stage at width 16, on RGB: stem 432; convolutions
# 9*16*16 * 2n, 9*16*32 + 9*32*32 * (2n-1), 9*32*64 + 9*64*64 * (2n-1); batch norm two a
# channel; classifier 650; projections 16*32 + 2*32 and 32*64 + 2*64. ResNet-20 without
# the projections is the published 269,722 (0.27 M).
PARAMETERS = {
    ("lenet300", "mnist"): 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
    ("lenet5", "mnist"): 431_080,
    ("resnet8", "cifar"): 75_290 + 2_752,
    ("resnet20", "cifar"): 269_722 + 2_752,
    ("resnet32", "cifar"): 464_154 + 2_752,
    ("resnet56", "cifar"): 853_018 + 2_752,
    # Patches 16*3*96 + 96, positions 64*96; a layer: four 96*96 + 96, 96*384 + 384,
    # 384*96 + 96, two norms of 192; last norm 192, classifier 970.
    ("vit_mini", "cifar"): 4_704 + 6_144 + 6 * 111_840 + 192 + 970,
}


@functools.cache
def _variables(name, kind):
    model = models.create_model(name)
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((2, *INPUTS[kind])))


def _images(kind, count=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *INPUTS[kind])).astype(np.float32)


@pytest.mark.parametrize("name, kind", PARAMETERS)
def test_parameter_count(name, kind):
    model = models.create_model(name)
    images = jnp.zeros((1, *INPUTS[kind]))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == PARAMETERS[name, kind]


# Hand counts, an example each. ResNet-20: stem 442,368; stages 14,155,776 and twice
# 12,976,128; classifier 640 (the published 40.55 M); projections twice 131,072.
MACS = {
    ("lenet300", "mnist"): 784 * 300 + 300 * 100 + 100 * 10,
    ("lenet5", "mnist"): 24 * 24 * 500 + 8 * 8 * 25_000 + 800 * 500 + 500 * 10,
    ("resnet8", "cifar"): 12_239_488 + 2 * 131_072,
    ("resnet20", "cifar"): 40_551_040 + 2 * 131_072,
    # Patches 64 * 48 * 96; a layer 64 * 12 * 96 * 96 (weights only); classifier 960.
    ("vit_mini", "cifar"): 64 * 48 * 96 + 6 * 64 * 12 * 96 * 96 + 960,
}


@pytest.mark.parametrize("name, kind", MACS)
def test_macs_of_an_example(name, kind):
    images = jax.ShapeDtypeStruct((2, *INPUTS[kind]), jnp.float32)
    found = find_sites(models.create_model(name), images)
    assert sum(site.macs for site in found) == MACS[name, kind]


def _some_slow(names, quick):
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(name, marks=marks[name in quick]) for name in names]


def test_every_network_for_imagenet_has_a_published_count():
    assert set(models.model_names()) == {*SMALL, *PUBLISHED}


@pytest.mark.parametrize(
    "name", _some_slow(PUBLISHED, (*QUICK, "resnet50", "efficientnet_b4", "vit_base"))
)
def test_published_parameters_and_logits_at_the_native_input(name):
    model = models.create_model(name)
    images = jax.ShapeDtypeStruct((1, *models.input_shape(name)), jnp.float32)
    logits, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert (logits.shape, logits.dtype) == ((1, 1000), jnp.float32)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == PUBLISHED[name]


@pytest.mark.slow
def test_resnet18_without_the_projection_is_that_of_torchvision():
    model = models.create_model("resnet18", project_first_stage=False)
    images = jnp.zeros((1, 224, 224, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_689_512


@pytest.mark.parametrize(
    "name",
    _some_slow(
        models.model_names(), ("lenet5", "resnet8", "vit_mini", "resnet18", "deit_tiny")
    ),
)
def test_every_name_is_quantized_under_traced_formats(name):
    model = models.create_model(name)
    images = jax.ShapeDtypeStruct((1, *models.input_shape(name)), jnp.float32)
    found = find_sites(model, images)
    space = fq.SearchSpace(found, ["int2", "e4m3", "bf16"])
    quantized = fq.QuantizedModel(model, sites=found)

    def run(variables, options, images):
        return quantized.apply(variables, images, policy=space.formats(options))

    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    options = jax.ShapeDtypeStruct((len(found),), jnp.int32)
    logits = jax.eval_shape(run, variables, options, images)
    assert logits.shape == (1, model.num_classes)


@pytest.mark.parametrize(
    "name", _some_slow(FAMILIES, ("resnet18", "mobilenet_v2", "deit_tiny"))
)
def test_families_for_imagenet_compute_in_bfloat16_on_small_images(name):
    fields = {**FAMILIES[name], "num_classes": 7}
    model = models.create_model(name, dtype="bfloat16", **fields)
    shape = (4, *SMALLEST.get(name, (32, 32, 3)))
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((4, 7), jnp.float32)
    assert _contraction_types(model, variables, images) == {"bfloat16"}


def test_resnet_for_imagenet_halves_as_torchvision_does():
    model = models.create_model("resnet18")
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    pixels = [
        site.output_size // site.weight_shape[-1] for site in find_sites(model, images)
    ]
    sides = [56] * 5 + [28] * 5 + [14] * 5 + [7] * 5
    assert pixels == [112**2, *(side**2 for side in sides), 1]


def test_images_that_would_vanish_are_refused():
    model = models.create_model("inception_v3")
    with pytest.raises(ValueError, match="32 x 32 are too small .* at least 75"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", SMALL)
def test_logits_have_the_stated_shape_on_every_input(name, kind):
    model = models.create_model(name, num_classes=7, **SHALLOW.get(name, {}))
    images = jax.ShapeDtypeStruct((4, *INPUTS[kind]), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits = jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((4, 7), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_parameters_and_statistics_are_float32(name, dtype):
    model = models.create_model(name, dtype=dtype, **SHALLOW.get(name, {}))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", SHALLOW)
def test_cells_compute_in_bfloat16(name):
    model = models.create_model(name, dtype="bfloat16", **SHALLOW[name])
    images = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert _contraction_types(model, variables, images) == {"bfloat16"}


@pytest.mark.parametrize("name", ["lenet5", "resnet8", "vit_mini"])
def test_bfloat16_computes_in_bfloat16_near_float32(name):
    variables, images = _variables(name, "digits"), _images("digits")
    exact = jax.jit(models.create_model(name).apply)(variables, images)
    model = models.create_model(name, dtype=jnp.bfloat16)
    assert _contraction_types(model, variables, images) == {"bfloat16"}
    close = jax.jit(model.apply)(variables, images)
    # bfloat16 keeps eight bits: the largest logit may move by a few percent.
    assert 0 < jnp.abs(close - exact).max() < 0.1 * jnp.abs(exact).max()


def _contraction_types(model, variables, images):
    text = jax.jit(model.apply).lower(variables, images).as_text()
    lines = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert lines
    inputs = [re.search(r": \((tensor.*)\) ->", line)[1] for line in lines]
    names = {"bf16": "bfloat16", "f32": "float32"}
    return {names[kind] for line in inputs for kind in re.findall(r"x(b?f\d+)>", line)}


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet8", "vit_mini"])
def test_evaluation_of_an_example_ignores_its_neighbours(name):
    variables, images = _variables(name, "digits"), _images("digits")
    apply = jax.jit(functools.partial(models.create_model(name).apply, train=False))
    together = apply(variables, images)
    changed = apply(variables, np.concatenate([images[:1], 9 * images[1:]]))
    np.testing.assert_allclose(changed[0], together[0], rtol=1e-4, atol=1e-5)
    assert np.isfinite(together).all() and np.ptp(together, axis=0).min() > 0


def test_training_updates_batch_statistics_with_momentum_one_tenth():
    variables, images = _variables("resnet8", "digits"), _images("digits")
    model = models.create_model("resnet8")
    logits, updates = model.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    kernel = variables["params"]["Conv_0"]["kernel"]
    convolved = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    new = updates["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(new["mean"], 0.1 * convolved.mean((0, 1, 2)), atol=1e-6)
    variance = convolved.var((0, 1, 2))
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    assert logits.shape == (4, 10)


def test_paths_of_a_resnet_are_those_the_design_names():
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    model = models.create_model("resnet8")
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    flat = flax.traverse_util.flatten_dict(params)
    kernels = {
        "/".join(path[:-1]): leaf.shape
        for path, leaf in flat.items()
        if path[-1] == "kernel"
    }
    assert kernels == {
        "Conv_0": (3, 3, 3, 16),
        "Block_0/Conv_0": (3, 3, 16, 16),
        "Block_0/Conv_1": (3, 3, 16, 16),
        "Block_1/Conv_0": (3, 3, 16, 32),
        "Block_1/Conv_1": (3, 3, 32, 32),
        "Block_1/Conv_2": (1, 1, 16, 32),
        "Block_2/Conv_0": (3, 3, 32, 64),
        "Block_2/Conv_1": (3, 3, 64, 64),
        "Block_2/Conv_2": (1, 1, 32, 64),
        "Dense_0": (64, 10),
    }


def test_patch_that_does_not_divide_the_image_is_refused():
    model = models.create_model("vit_mini", patch_size=5)
    with pytest.raises(ValueError, match="patch_size 5 does not divide .* 28 x 28"):
        model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


def test_convolution_kernels_start_he_normal():
    kernel = _variables("resnet8", "digits")["params"]["Block_2"]["Conv_1"]["kernel"]
    # He normal by fan-out: variance 2 / (9 * 64); 36,864 draws fix std to 1 %.
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
