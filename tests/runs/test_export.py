"""Exported networks: files that give what the network gives, and mistakes."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from small_models import Cnn, Layer

import fliqs_jax as fq
from fliqs_jax.deploy import program
from fliqs_jax.deploy.weight_file import load_weights
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantized_model.static_weights import quantize_weights_by
from fliqs_jax.quantizers.observers import OBSERVERS
from fliqs_jax.runs.export import (
    export_network,
    load_program,
    loaded_weights,
)
from fliqs_jax.runs.network import Network
from fliqs_jax.searchers.joint.static_calibration import (
    InputSamples,
    PtqSettings,
    static_input_formats,
)
from fliqs_jax.train.classifier import Classifier, image_sites

SHAPE = (8, 8, 3)


class Patches(nn.Module):
    """A stack of attention layers on the rows of an image."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x.reshape(x.shape[0], 8, -1))
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(2)(x.mean(1))


def network(model, names, *, products=False, clips=True, per_channel=True):
    sites = image_sites(model, SHAPE, attention_products=products)
    policy = fq.Policy(
        {
            site.path: (names[i % len(names)], names[(i + 1) % len(names)])
            for i, site in enumerate(sites)
        }
    )
    formats = policy.formats(sites)
    if clips:
        rng = np.random.default_rng(0)
        drawn = jnp.asarray(rng.uniform(1.5, 3.0, (2, len(sites))), jnp.float32)
        formats = formats.replace(weight_clip=drawn[0], activation_clip=drawn[1])
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    params = variables.pop("params")
    return Network(
        classifier=Classifier(
            quantized=QuantizedModel(model, sites=sites, per_channel=per_channel),
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.2, 0.3),
        ),
        params=params,
        model_state=variables,
        policy=policy,
        formats=formats,
    )


def images(count=4):
    return np.random.default_rng(1).integers(0, 256, (count, *SHAPE), np.uint8)


CASES = {
    "integers with clips": (Cnn, ["int2", "int5", "int8"], {}),
    "floats, dynamic, per tensor": (
        Cnn,
        ["e4m3", "e2m1", "bf16", "fp32"],
        {"clips": False, "per_channel": False},
    ),
    "stack with products": (
        Patches,
        ["int3", "e3m2", "int12", "fp16"],
        {"products": True},
    ),
}


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES][2:]


@pytest.mark.parametrize("case", [*list(CASES)[:2], *SLOW])
def test_files_give_what_the_network_gives(case, tmp_path):
    make, names, options = CASES[case]
    net = network(make(), names, **options)
    export_network(net, SHAPE, tmp_path, platforms=["cpu", "tpu"])
    expected = jax.jit(net.__call__)(images())
    call = load_program(tmp_path)
    np.testing.assert_allclose(call(images()), expected, rtol=1e-6, atol=1e-6)
    assert call(images(7)).shape == (7, expected.shape[1])  # any number of images
    restored = jax.jit(loaded_weights(net, tmp_path))(images())
    np.testing.assert_allclose(restored, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [*list(CASES)[:2], *SLOW])
def test_weights_on_file_are_those_the_network_runs_with(case, tmp_path):
    make, names, options = CASES[case]
    net = network(make(), names, **options)
    export_network(net, SHAPE, tmp_path, platforms=None)
    variables = load_weights(tmp_path / "weights.safetensors")
    seen = {}

    class Recorder(type(net.classifier.quantized.model)):
        def __call__(self, x, **kwargs):
            seen.update(self.variables["params"])
            return super().__call__(x, **kwargs)

    quantized = QuantizedModel(
        Recorder(),
        sites=net.classifier.quantized.sites(),
        per_channel=net.classifier.quantized.per_channel,
    )

    @jax.jit
    def weights_seen(variables, images):
        quantized.apply(variables, images, policy=net.formats)
        return dict(seen)

    seen = jax.device_get(weights_seen(net.variables, images() / 255.0))
    found = jax.tree.leaves_with_path(variables["params"])
    assert found
    for path, leaf in found:
        expected = seen
        for key in path:
            expected = expected[key.key]
        np.testing.assert_array_equal(leaf, expected)
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(net.params)


def test_weights_take_the_bits_of_their_formats(tmp_path):
    net = network(Cnn(), ["int3"])
    manifest = export_network(net, SHAPE, tmp_path, platforms=None)
    tensors = safetensors.numpy.load_file(tmp_path / "weights.safetensors")
    sites = net.classifier.quantized.sites()
    for site in sites:
        codes = tensors[f"{site.path}/kernel:codes"]
        assert codes.nbytes == -(-site.weight_count * 3 // 8)
    assert manifest["bytes"] == {
        "weights.safetensors": (tmp_path / "weights.safetensors").stat().st_size
    }
    on_disk = json.loads((tmp_path / "export.json").read_text())
    assert [row["weights"] for row in on_disk["sites"]] == ["int3"] * len(sites)
    assert on_disk["sites"][0]["largest_input"] == pytest.approx(
        float(net.formats.activation_clip[0])
    )


def test_weights_that_are_not_finite_are_refused(tmp_path):
    net = network(Cnn(), ["int4"])
    net.params["Dense_0"]["kernel"] = net.params["Dense_0"]["kernel"].at[0].set(jnp.nan)
    with pytest.raises(ValueError, match="nan is not a number of int4"):
        export_network(net, SHAPE, tmp_path, platforms=None)


def quantized_after_training(names, *, observer="minmax", symmetric=True):
    """A network whose weights and inputs have grids of their own."""
    net = network(Cnn(), names, clips=False)
    quantized = net.classifier.quantized
    modes = np.full(len(quantized.sites()), symmetric)

    @jax.jit
    def quantize(variables, images):
        seen = quantized.observe(variables, images, num_samples=64)
        params = quantize_weights_by(
            variables["params"],
            quantized.sites(),
            net.formats.weight,
            OBSERVERS[observer],
            symmetric=modes,
        )
        samples = InputSamples.of([seen])
        return params, static_input_formats(
            samples, net.formats.activation, PtqSettings(input_observer="minmax")
        )

    params, formats = quantize(net.variables, images() / 255.0)
    return dataclasses.replace(net, params=params, formats=formats, static=True)


@pytest.mark.parametrize(
    "observer", ["minmax", pytest.param("mse", marks=pytest.mark.slow)]
)
def test_files_of_a_network_quantized_after_training(observer, tmp_path):
    names = ["int4", "e2m1", "int8", "fp32"]
    net = quantized_after_training(names, observer=observer)
    manifest = export_network(net, SHAPE, tmp_path, platforms=["cpu"])
    expected = jax.jit(net.__call__)(images())
    for call in (load_program(tmp_path), jax.jit(loaded_weights(net, tmp_path))):
        np.testing.assert_allclose(call(images()), expected, rtol=1e-5, atol=1e-5)
    tensors = safetensors.numpy.load_file(tmp_path / "weights.safetensors")
    first, *_ = net.classifier.quantized.sites()
    codes = tensors[f"{first.path}/kernel:codes"]
    assert codes.nbytes == -(-first.weight_count * 4 // 8)  # int4
    # The grids of the inputs are in the manifest: zero is on them.
    for index, row in enumerate(manifest["sites"]):
        grid = net.formats.activation[index]
        if row["activations"] == "int8":
            scale = (row["largest_input"] - row["smallest_input"]) / 255
            zero = -row["smallest_input"] / scale
            assert zero == pytest.approx(round(zero), abs=1e-3)
            assert -zero == pytest.approx(float(grid.min_value), abs=1e-3)


def test_weights_with_zero_points_are_refused(tmp_path):
    net = quantized_after_training(["int4", "int8"], symmetric=False)
    with pytest.raises(ValueError, match="zero points have no place in the file"):
        export_network(net, SHAPE, tmp_path / "export", platforms=None)
    assert not (tmp_path / "export").exists()


def test_without_flatbuffers_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install flatbuffers"):
        export_network(
            network(Cnn(), ["int4"]), SHAPE, tmp_path / "x", platforms=["cpu"]
        )
    assert not (tmp_path / "x").exists()


def test_unknown_platforms_are_named(tmp_path):
    with pytest.raises(ValueError, match="'vax' is none of cpu"):
        export_network(
            network(Cnn(), ["int4"]), SHAPE, tmp_path / "x", platforms=["cpu", "vax"]
        )
    assert not (tmp_path / "x").exists()


def test_other_safetensors_files_are_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"x": np.ones(2)}, file)
    with pytest.raises(ValueError, match="holds no weights of this library"):
        load_weights(file)


def test_other_variables_come_back_in_shape_and_type(tmp_path):
    class Typed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.mean(axis=(1, 2)) * self.param("gain", nn.initializers.ones, ())
            self.variable("counts", "seen", lambda: jnp.zeros((), jnp.int32))
            return nn.LayerNorm(param_dtype=jnp.bfloat16)(nn.Dense(2)(x))

    net = network(Typed(), ["int4"])
    export_network(net, SHAPE, tmp_path, platforms=None)
    variables = load_weights(tmp_path / "weights.safetensors")
    assert variables["params"]["gain"].shape == ()
    assert variables["counts"]["seen"].shape == ()
    assert variables["params"]["LayerNorm_0"]["scale"].dtype == jnp.bfloat16
    call = jax.jit(loaded_weights(net, tmp_path))
    np.testing.assert_allclose(call(images()), net(images()), rtol=1e-5, atol=1e-5)


def test_models_that_need_a_fixed_batch_say_so(tmp_path):
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x.reshape(len(x), -1))

    net = network(Fixed(), ["int4"])
    with pytest.raises(ValueError, match="batch_size: the model needs a fixed"):
        export_network(net, SHAPE, tmp_path, platforms=["cpu"])
    export_network(net, SHAPE, tmp_path, platforms=["cpu"], batch_size=2)
    assert load_program(tmp_path)(images(2)).shape == (2, 2)


def _small_or_slow(name):
    small = ("lenet300", "lenet5", "resnet8", "vit_mini")
    return pytest.param(name, marks=() if name in small else pytest.mark.slow)


@pytest.mark.parametrize("name", [_small_or_slow(name) for name in fq.model_names()])
def test_our_models_take_an_open_number_of_images(name):
    model = fq.create_model(name, num_classes=10)
    shape = (28, 28, 1) if "lenet" in name else (32, 32, 3)
    if name.startswith(
        ("deit", "efficientnet", "inception", "vit_b", "vit_s", "vit_t")
    ):
        shape = (224, 224, 3)
    images = jax.ShapeDtypeStruct((1, *shape), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    many = jax.ShapeDtypeStruct((jax.export.symbolic_shape("b")[0], *shape), np.float32)
    logits = jax.eval_shape(model.apply, variables, many)
    assert logits.shape[1] == 10 and jax.export.is_symbolic_dim(logits.shape[0])
