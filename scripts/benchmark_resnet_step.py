"""Times a training step of ResNet-8 and ResNet-20 with flax's layers and with ours.

Run: python scripts/benchmark_resnet_step.py

Batches of 128 32x32x3 images, SGD with momentum. "flax" is nn.BatchNorm and the native
convolution, the other rows replace either or both. Steps alternate and medians are
compared, because timings drift within minutes (aim for both: at least 1.3 times).
"""

import pathlib
import statistics
import sys
import time
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fliqs_jax.models import cifar_resnet, create_model
from fliqs_jax.models.batch_norm import BatchNorm
from fliqs_jax.models.convolution import convolve

BATCH = 128
ROUNDS = 15
LAYERS = {
    "flax": (lax.conv_general_dilated, nn.BatchNorm),
    "convolve": (convolve, nn.BatchNorm),
    "BatchNorm": (lax.conv_general_dilated, BatchNorm),
    "both": (convolve, BatchNorm),
}


def make_step(name: str, images: jax.Array, labels: jax.Array):
    """Returns step(state, images, labels) -> state, compiled, and the first state."""
    model, optimizer = create_model(name), optax.sgd(0.1, momentum=0.9)

    def loss(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates["batch_stats"]

    def step(state, images, labels):
        params, batch_stats, memory = state
        gradients, batch_stats = jax.grad(loss, has_aux=True)(
            params, batch_stats, images, labels
        )
        updates, memory = optimizer.update(gradients, memory, params)
        return optax.apply_updates(params, updates), batch_stats, memory

    variables = model.init(jax.random.key(0), images)
    params = variables["params"]
    state = params, variables["batch_stats"], optimizer.init(params)
    lowered = jax.jit(step, donate_argnums=0).lower(state, images, labels)
    return lowered.compile(), state


def main() -> None:
    images = jax.random.normal(jax.random.key(1), (BATCH, 32, 32, 3))
    labels = jnp.arange(BATCH) % 10
    print(f"training steps at batch {BATCH}, medians of {ROUNDS} alternating steps")
    print("network   layers      step [ms]   faster than flax")
    for name in ("resnet8", "resnet20"):
        steps, states, times = {}, {}, {label: [] for label in LAYERS}
        for label, (convolution, norm) in LAYERS.items():
            # The networks have no field for their layers; tracing looks them up here.
            with (
                mock.patch.object(cifar_resnet, "convolve", convolution),
                mock.patch.object(cifar_resnet, "BatchNorm", norm),
            ):
                steps[label], states[label] = make_step(name, images, labels)
        for _ in range(ROUNDS + 2):
            for label, step in steps.items():
                start = time.perf_counter()
                states[label] = jax.block_until_ready(
                    step(states[label], images, labels)
                )
                times[label].append(time.perf_counter() - start)
        medians = {label: statistics.median(t[2:]) for label, t in times.items()}
        for label, seconds in medians.items():
            ratio = medians["flax"] / seconds
            print(f"{name:9} {label:11} {1e3 * seconds:9.1f} {ratio:18.2f}", flush=True)


if __name__ == "__main__":
    main()
