"""Published costs, digit by digit, from the networks' shapes alone.

The tables are those of FLIQS (Dotzel et al., https://arxiv.org/abs/2308.03290): GBOPs
of one format for all sites, by width multiplier.
"""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

import fliqs_jax as fq
from fliqs_jax import models

RESNET_18 = {
    "e2m1": "0.5: 7.78  0.75: 16.80  1.0: 29.23  1.25: 45.08  1.5: 64.35  2.0: 113.1",
    "e4m3": "0.5: 31.13  0.75: 67.19  1.0: 116.9  1.25: 180.3  1.5: 257.4  2.0: 452.5",
    "bf16": "0.5: 124.5  0.75: 268.8  1.0: 467.7  1.25: 721.3  1.5: 1030  2.0: 1810",
}
MOBILENET_V2 = {
    "e2m1": "0.5: 1.55  1.0: 4.81  1.4: 9.31  2.0: 18.2",
    "e4m3": "0.25: 2.38  0.5: 6.21  1.0: 19.25  1.4: 37.2",
    "bf16": "0.25: 9.52  0.5: 24.87  1.0: 77  1.4: 149",
}
# Printed digits that are cut off, not rounded, as the table itself shows: no number of
# MACs rounds to both 6.21 and, sixteen bits wide, 24.87.
CUT_OFF = {"mobilenet_v2-e2m1-1.4", "mobilenet_v2-e4m3-0.5", "mobilenet_v2-e4m3-1.4"}


def rows(name, table):
    for fmt, columns in table.items():
        for column in columns.split("  "):
            width, gbops = column.split(": ")
            row = f"{name}-{fmt}-{width}"
            values = (name, fmt, float(width), gbops, row in CUT_OFF)
            yield pytest.param(*values, id=row)


@functools.cache
def sites(name, **overrides):
    images = jax.ShapeDtypeStruct((1, *models.input_shape(name)), jnp.float32)
    return fq.find_sites(fq.create_model(name, **overrides), images)


def macs(name, where=None, **overrides):
    found = sites(name, **overrides)
    # fp32 counts 32 x 32 for each.
    return fq.bops(found, fq.Policy.uniform(found, "fp32"), where=where) // 1024


@pytest.mark.parametrize(
    ("name", "fmt", "width", "gbops", "cut_off"),
    [*rows("resnet18", RESNET_18), *rows("mobilenet_v2", MOBILENET_V2)],
)
def test_uniform_policies_cost_the_printed_digits(name, fmt, width, gbops, cut_off):
    found = sites(name, width=width)
    cost = fq.bops(found, fq.Policy.uniform(found, fmt))
    unit = 10 ** (9 - len(gbops.partition(".")[2]))  # of the last digit, in BOPs
    printed = round(float(gbops) * 1e9)
    assert (cost if cut_off else cost + unit // 2) // unit * unit == printed


def test_resnet_18_counts_the_projection_in_its_first_stage():
    assert macs("resnet18") == 1_826_918_400
    # Its 64 x 64 weights meet 56 x 56 pixels.
    without = macs("resnet18", project_first_stage=False)
    assert macs("resnet18") - without == 56 * 56 * 64 * 64


def test_resnet_50_strides_in_its_3x3_convolutions():
    # 4.09 GMAC of "v1.5" (torchvision); 3.86 with the stride in the 1x1 convolution.
    assert macs("resnet50") / 1e9 == pytest.approx(4.089, abs=5e-4)


def test_mobilenet_v2_has_the_300_million_macs_of_its_paper():
    assert macs("mobilenet_v2") / 1e6 == pytest.approx(300, abs=1)


@pytest.mark.slow
def test_inception_v3_has_the_macs_of_torchvision():
    assert macs("inception_v3") / 1e9 == pytest.approx(5.71, abs=5e-3)


@pytest.mark.parametrize(
    "dim",
    [672, *(pytest.param(d, marks=pytest.mark.slow) for d in (288, 384, 576, 768))],
)
def test_deit_counts_its_weights_on_every_token(dim):
    # 14 x 14 patches and the class token; attention 4 dim^2, perceptron 8 dim^2.
    layers, patches, head = 12 * 197 * 12 * dim**2, 196 * 768 * dim, 1000 * dim
    assert macs("deit_small", dim=dim) == layers + patches + head


# B0 by hand: stage by stage expansion, features, blocks, stride, window at width 1.
STAGES = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
]


def efficientnet_macs(width, depth, side):
    """MACs without, and of, squeeze-and-excitation."""

    def channels(base):
        multiples = range(8, 10_000, 8)
        nearest = min(multiples, key=lambda n: (abs(n - base * width), -n))
        return nearest if nearest >= 0.9 * base * width else nearest + 8

    side = math.ceil(side / 2)
    inputs = channels(32)
    total, squeezing = side**2 * 27 * inputs, 0
    for expansion, base, blocks, stride, window in STAGES:
        for block in range(math.ceil(depth * blocks)):
            hidden, outputs = inputs * expansion, channels(base)
            total += side**2 * inputs * hidden * (expansion > 1)
            side = math.ceil(side / (stride if block == 0 else 1))
            total += side**2 * hidden * (window**2 + outputs)
            squeezing += 2 * hidden * (inputs // 4)
            inputs = outputs
    head = channels(1280)
    return total + side**2 * inputs * head + head * 1000, squeezing


@pytest.mark.parametrize(
    ("name", "width", "depth", "side"),
    [
        ("efficientnet_b0", 1, 1, 224),
        pytest.param("efficientnet_b1", 1, 1.1, 240, marks=pytest.mark.slow),
        pytest.param("efficientnet_b2", 1.1, 1.2, 260, marks=pytest.mark.slow),
        pytest.param("efficientnet_b3", 1.2, 1.4, 300, marks=pytest.mark.slow),
        pytest.param("efficientnet_b4", 1.4, 1.8, 380, marks=pytest.mark.slow),
    ],
)
def test_efficientnet_with_and_without_squeeze_and_excitation(name, width, depth, side):
    assert models.input_shape(name) == (side, side, 3)
    without, squeezing = efficientnet_macs(width, depth, side)
    assert macs(name, where=lambda site: "squeeze_excite" not in site.path) == without
    assert macs(name) == without + squeezing
