"""Accuracy and loss of a network at fixed formats, over a whole split.

Evaluation never trains: a state comes in, numbers (or fresh batch statistics) go out.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, PyTree

from fliqs_jax.data import Dataset, Split, batches, evaluation_batches
from fliqs_jax.data.batches import ALL_ROWS
from fliqs_jax.train.batch_statistics import recalibrate
from fliqs_jax.train.losses import correct, cross_entropy
from fliqs_jax.train.mapping import AXIS, local_rows, shard_batch

# (variables, images) -> logits; jitted by the caller, who keeps it between calls.
Predict = Callable[[PyTree, Array], Float[Array, "B C"]]


@runtime_checkable  # the tests check annotations while running
class Evaluable(Protocol):
    """What an evaluation asks of a classifier, which knows what its formats are."""

    def normalise(self, images: ArrayLike) -> Float[Array, "B H W C"]:
        """Returns images as the network takes them."""

    def train_forward(
        self, params, model_state, images, *, formats, dropout_key
    ) -> tuple[Float[Array, "B C"], PyTree]:
        """Returns logits in training mode and the updated model state."""

    def predict(self, params, model_state, images, *, formats) -> Float[Array, "B C"]:
        """Returns logits of raw images in evaluation mode."""


def evaluate(
    predict: Predict, variables: PyTree, batches: Iterable
) -> dict[str, float]:
    """Returns the mean accuracy and loss over every example of a split.

    Args:
      predict: logits of a batch.
      variables: its first argument.
      batches: dicts with `image`, `label` and `mask` (0 for padding), all of one shape,
        so that `predict` compiles once.

    Returns:
      `accuracy` in [0, 1], `loss` in nats and `examples`, a count.
    """
    sums = np.zeros(3)
    for batch in batches:
        logits = predict(variables, batch["image"])
        mask, labels = jnp.asarray(batch["mask"]), jnp.asarray(batch["label"])
        hits = (correct(logits, labels) * mask).sum()
        loss = (cross_entropy(logits, labels) * mask).sum()
        sums += [float(hits), float(loss), float(mask.sum())]
    if not sums[2]:
        raise ValueError("batches held no examples: the split is empty")
    return {
        "accuracy": sums[0] / sums[2],
        "loss": sums[1] / sums[2],
        "examples": int(sums[2]),
    }


class Evaluator:
    """Evaluates training states: fresh batch statistics first, then a split.

    Compiles one forward pass for every policy and split. Looks at the test split only
    when asked to `test`.

    Args:
      classifier: the network.
      dataset: its training split gives the batch statistics.
      batch_size: of all passes.
      recalibration_batches: training batches for the statistics; 0 keeps the state's.
      mesh: the devices that share every batch; None leaves it to one.
    """

    def __init__(
        self,
        classifier: Evaluable,
        dataset: Dataset,
        *,
        batch_size: int,
        recalibration_batches: int = 20,
        mesh: Mesh | None = None,
    ):
        self._mesh = mesh
        self._rows = ALL_ROWS if mesh is None else local_rows(batch_size, mesh)
        self._dataset = dataset
        self._batch_size = batch_size
        self._batches = recalibration_batches
        # A seed of its own: the same images for every run and every policy.
        self._source = batches(
            dataset.train, batch_size=batch_size, seed=2**31 - 1, rows=self._rows
        )

        @jax.jit
        def predict(variables, images):
            return classifier.predict(
                variables["params"],
                variables["model_state"],
                images,
                formats=variables["formats"],
            )

        @jax.jit
        def update_statistics(params, formats, model_state, images):
            def on_a_device(images):
                return classifier.train_forward(
                    params,
                    model_state,
                    classifier.normalise(images),
                    formats=formats,
                    dropout_key=jax.random.key(0),
                )[1]

            # As in a step, the model may average over the devices: here it is one.
            on_devices = jax.vmap(on_a_device, axis_name=AXIS)
            return jax.tree.map(lambda leaf: leaf[0], on_devices(images[None]))

        self._predict, self._update_statistics = predict, update_statistics

    def recalibrated(self, state: PyTree, formats: PyTree) -> PyTree:
        """Returns `state` with batch statistics of the network at these formats."""
        if not self._batches:
            return state
        model_state = recalibrate(
            functools.partial(self._update_statistics, state.params, formats),
            state.model_state,
            (
                self._placed(self._source.batch(step)["image"])
                for step in range(self._batches)
            ),
        )
        return state.replace(model_state=model_state)

    def validate(self, state: PyTree, formats: PyTree) -> dict[str, float]:
        """Returns accuracy and loss on the validation split, statistics as they are."""
        return self._on(self._dataset.validation, state, formats)

    def test(self, state: PyTree, formats: PyTree) -> dict[str, float]:
        """Returns accuracy and loss on the test split, statistics as they are."""
        return self._on(self._dataset.test, state, formats)

    def _on(self, split: Split, state: PyTree, formats: PyTree):
        variables = {
            "params": state.params,
            "model_state": state.model_state,
            "formats": formats,
        }
        found = evaluation_batches(split, self._batch_size, self._rows)
        return evaluate(self._predict, variables, map(self._placed, found))

    def _placed(self, batch: PyTree) -> PyTree:
        return batch if self._mesh is None else shard_batch(batch, self._mesh)
