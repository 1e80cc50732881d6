"""Quantization noise of every format, against NumPy on plain integer grids."""

import flax.linen as nn
import jax
import numpy as np

from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import (
    init_calibration,
    update_calibration,
)
from fliqs_jax.searchers.sensitivities.noise import quantization_noise
from fliqs_jax.sites import find_sites

FORMATS = ("int2", "int4", "int8")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(3)(x)


def error_on_grid(values, bound, low, high):
    """Mean squared error of rounding to low...high times bound / high."""
    step = bound / high
    on_grid = np.clip(np.round(values / step), low, high) * step
    return np.mean((on_grid - values) ** 2)


def test_errors_of_weights_and_inputs_at_their_best_clips():
    x = jax.random.normal(jax.random.key(0), (64, 8))
    model = Net()
    params = model.init(jax.random.key(1), x)["params"]
    sites = find_sites(model, x)
    space = SearchSpace(sites, FORMATS)
    quantized = QuantizedModel(model, sites=sites, learned_clips=True)
    seen = quantized.observe({"params": params}, x, num_samples=512)
    calibration = update_calibration(init_calibration(space), space, seen)
    noise = np.asarray(quantization_noise(params, seen, calibration, space, quantized))
    assert noise.shape == (2, 2, 3)
    for number, site in enumerate(sites):
        kernel = np.asarray(params[site.path]["kernel"], np.float64)
        rms = np.sqrt(np.mean(kernel**2))
        samples = np.asarray(seen.samples[number], np.float64)
        for option, bits in enumerate((2, 4, 8)):
            high = 2 ** (bits - 1) - 1
            factor = float(calibration.weight_clip[option])
            bound = min(factor * rms, np.abs(kernel).max())
            want = error_on_grid(kernel, bound, -high - 1, high)
            np.testing.assert_allclose(noise[0, number, option], want, rtol=1e-4)
            clip = float(calibration.activation_clip[number, option])
            low, high = (0, 2**bits - 1) if number else (-high - 1, high)  # after ReLU
            want = error_on_grid(samples, clip, low, high)
            largest = np.float64(seen.absmax[number])
            want += error_on_grid(largest, clip, low, high) / float(seen.size[number])
            np.testing.assert_allclose(noise[1, number, option], want, rtol=1e-4)
