"""The README's own lines, run as they stand there."""

import math
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

import fliqs_jax as fq
from fliqs_jax import site_types

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def block_with(text: str) -> str:
    """The one Python block of the README that holds `text`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if text in block]
    return block


def test_own_layer_is_registered_by_the_lines_of_the_readme(monkeypatch):
    monkeypatch.setattr(site_types, "_SITE_TYPES", site_types._SITE_TYPES)
    names = {"fq": fq, "nn": nn, "math": math}
    exec(block_with("register_site_type"), names)
    model = names["MyLayer"](features=3)
    x = jax.random.normal(jax.random.key(0), (2, 5))
    (site,) = fq.find_sites(model, x)
    assert (site.op, site.macs, site.weight_shape) == ("my_layer", 5 * 3, (5, 3))
    quantized = fq.QuantizedModel(model)
    variables = quantized.init(jax.random.key(1), x)
    y = quantized.apply(variables, x, policy=fq.Policy.uniform([site], "int3"))

    def int3(values):
        return fq.fake_quantize(values, fq.parse_format("int3"))

    kernel = variables["params"]["kernel"]
    assert jnp.allclose(y, int3(x) @ int3(kernel), rtol=1e-6)
    assert not jnp.allclose(y, x @ kernel, rtol=1e-2)
