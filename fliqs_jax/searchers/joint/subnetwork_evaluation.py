"""What sub-networks at their formats are worth, many at once.

Each candidate is masked, gets batch statistics of its own, is quantized after training
(static ranges from training images) and run on the validation split; nothing is
trained. Architecture and formats are data, so each of five programs compiles once for
all candidates. Candidates are spread over the devices, of all processes, one or a few
on each; images are the same for all.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int, PyTree

from fliqs_jax.checks import check_at_least
from fliqs_jax.costs import SiteCost
from fliqs_jax.data import Dataset, Split, batches, evaluation_batches
from fliqs_jax.models.supernets import live_sites, skip_dead_layers
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantized_model.static_weights import quantize_weights_by
from fliqs_jax.quantizers.observers import OBSERVERS
from fliqs_jax.searchers.joint import static_calibration
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train import processes
from fliqs_jax.train.batch_statistics import read_momentum, recalibrate
from fliqs_jax.train.classifier import Classifier, training_arguments
from fliqs_jax.train.losses import correct
from fliqs_jax.train.mapping import AXIS, gather, place

# Not "data": there, models may average over the devices, which here have other
# candidates each.
_CANDIDATES = "candidates"


class PopulationEvaluator:
    """Evaluates joint vectors: error on the validation split, and costs.

    Call it with vectors [N, D]; it is the `evaluate` of `linas.search`, its
    `objectives` are the names.

    Args:
      space: the decisions.
      state: trained variables of the full network.
      dataset: training images for statistics and ranges, validation images for the
        error.
      costs: prices by name, of the sub-network's own sites and its policy; minimised.
      ptq: how candidates are quantized.
      batch_size: of all passes.
      recalibration_batches: training batches for batch statistics; 0 keeps the state's.
      recalibrate_quantized: with the candidate quantized, which mends what few bits do
        to the statistics; before, for the ranges, with as many batches as these see.
      per_device: candidates on a device at a time; None is 1 on CPU, 4 elsewhere.
      cache_size: architectures whose statistics and inputs are remembered.

    Attributes:
      objectives: "error" (1 - accuracy), then the names of `costs`.
      compile_count: programs compiled so far; at most 5, however many candidates.
      chunk_size: candidates evaluated at a time, over all devices.

    Raises:
      ValueError: if the validation split is empty, or a number out of range.
    """

    def __init__(
        self,
        space: JointSpace,
        state: TrainedState,
        dataset: Dataset,
        *,
        costs: Mapping[str, SiteCost],
        ptq: static_calibration.PtqSettings = static_calibration.PtqSettings(),
        batch_size: int = 128,
        recalibration_batches: int = 4,
        recalibrate_quantized: bool = True,
        per_device: int | None = None,
        cache_size: int = 1024,
    ):
        if not len(dataset.validation):
            raise ValueError(
                "dataset has no validation split to evaluate on: load it with a"
                " validation_fraction above 0"
            )
        if per_device is None:
            # A convolution inside a loop is 20 to 35 times slower on CPU.
            per_device = 1 if jax.default_backend() == "cpu" else 4
        check_at_least(
            1, batch_size=batch_size, per_device=per_device, cache_size=cache_size
        )
        check_at_least(0, recalibration_batches=recalibration_batches)
        self.space, self.costs = space, dict(costs)
        self.objectives = ("error", *self.costs)
        self.compile_count = 0
        self._dataset, self._ptq, self._batch_size = dataset, ptq, batch_size
        self._recalibration_batches = recalibration_batches
        self._recalibrate_quantized = recalibrate_quantized
        self._cache_size = cache_size
        self._remembered: dict[bytes, PyTree] = {}
        self._momentum: PyTree | None = None
        self._mesh = jax.make_mesh(
            (jax.device_count(),),
            (_CANDIDATES,),
            axis_types=(jax.sharding.AxisType.Auto,),
        )
        self.chunk_size = per_device * self._mesh.size
        self._state = place(state, self._placed())
        # A seed of its own, as of `train.evaluation`: the same images for all.
        self._source = batches(dataset.train, batch_size=batch_size, seed=2**31 - 1)
        self._classifier = Classifier.of(
            QuantizedModel(space.net.model, sites=space.net.sites), dataset
        )
        self._programs = {
            "mask": self._program(self._mask),
            "update": self._program(self._update_statistics),
            "observe": self._program(self._observe),
            "quantize": self._program(self._quantize),
            "hits": self._program(self._hits),
        }

    def __call__(self, vectors: Int[np.ndarray, "N D"]) -> Float[np.ndarray, "N M"]:
        """Returns the objectives of every vector, all to be minimised."""
        errors = 1.0 - self.accuracies(vectors)
        prices = [
            [*self.space.prices(vector, self.costs).values()]
            for vector in np.asarray(vectors)
        ]
        return np.column_stack([errors, np.reshape(prices, (len(vectors), -1))])

    def accuracies(
        self, vectors: Int[np.ndarray, "N D"], *, split: Split | None = None
    ) -> Float[np.ndarray, "N"]:
        """Returns the accuracy of every vector, in [0, 1].

        Args:
          vectors: joint vectors.
          split: images to judge by, such as the test split of a final front; None is
            the validation split.
        """
        split = self._dataset.validation if split is None else split
        vectors, found = np.asarray(vectors), []
        processes.check_same(vectors.tobytes, "choice of candidates")
        for start in range(0, len(vectors), self.chunk_size):
            part = vectors[start : start + self.chunk_size]
            # The last chunk is filled up: all are of one shape.
            filled = np.pad(part, [(0, self.chunk_size - len(part)), (0, 0)], "edge")
            found.append(self._chunk_accuracies(filled, split)[: len(part)])
        return np.concatenate(found) if found else np.zeros(0)

    def quantized(self, vector: Int[np.ndarray, "D"]) -> tuple[PyTree, SiteFormats]:
        """Returns one candidate as it is evaluated, for `extract`.

        Returns:
          The full network's variables (masked, weights on their grids, the candidate's
          batch statistics), and the formats of the full network's sites.
        """
        filled = np.repeat(np.asarray(vector)[None], self.chunk_size, axis=0)
        weights, formats, model_state = jax.tree.map(
            lambda leaf: leaf[0], gather(self._prepared(filled))
        )
        return {"params": weights, **model_state}, formats

    def _chunk_accuracies(self, vectors, split):
        prepared = self._prepared(vectors)
        hits, count = 0, 0
        for batch in evaluation_batches(split, self._batch_size):
            hits = hits + self._run("hits", prepared, batch)
            count += batch["mask"].sum()
        return np.asarray(gather(hits), np.float64) / count

    def _prepared(self, vectors):
        """Returns weights, formats and batch statistics of a chunk of candidates."""
        canonical = np.where(self.space.active(vectors), vectors, 0)
        choices, options, symmetric = self.space.split(canonical)
        choices = choices.astype(np.int32)
        choice, options, symmetric = self._spread(
            (choices, options.astype(np.int32), symmetric)
        )
        masked, model_state, samples = self._architectures(choices, choice)
        weights, formats = self._run(
            "quantize", (masked, choice, options, symmetric, samples)
        )
        if self._recalibrate_quantized:
            model_state = self._statistics(
                weights, formats, model_state, self._recalibration_batches
            )
        return weights, formats, model_state

    def _architectures(self, choices, spread):
        """Returns masked weights, fresh statistics and input samples of a chunk."""
        masked = self._run("mask", (spread,))
        names = [choice.tobytes() for choice in choices]
        if not all(name in self._remembered for name in names):
            plain = static_calibration.no_quantization(len(self.space.net.sites))
            formats, own = self._spread(
                jax.tree.map(
                    lambda leaf: np.repeat(np.asarray(leaf)[None], self.chunk_size, 0),
                    (plain, self._state.model_state),
                )
            )
            # Where statistics are computed anew later, these only serve the ranges.
            count = self._recalibration_batches
            if self._recalibrate_quantized:
                count = min(count, self._ptq.batches)
            model_state = self._statistics(masked, formats, own, count)
            seen = [
                self._run("observe", (masked, model_state), batch)
                for batch in self._training_batches(self._ptq.batches)
            ]
            known = gather((model_state, static_calibration.InputSamples.of(seen)))
            for row, name in enumerate(names):
                self._remembered.pop(name, None)
                self._remembered[name] = jax.tree.map(lambda x, row=row: x[row], known)
        kept = [self._remembered[name] for name in names]
        while len(self._remembered) > self._cache_size:
            del self._remembered[next(iter(self._remembered))]
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *kept)
        return masked, *self._spread(stacked)

    def _statistics(self, weights, formats, model_state, count):
        """Returns batch statistics of a chunk's candidates on training batches."""
        if not count or not jax.tree.leaves(model_state):
            return model_state

        def update(state, batch):
            return self._run("update", (weights, formats, state), batch)

        training = list(self._training_batches(count))
        if self._momentum is None:  # the same for all candidates
            self._momentum = read_momentum(update, model_state, training[0])
        return recalibrate(update, model_state, training, momentum=self._momentum)

    def _training_batches(self, count: int):
        return ({"image": self._source.batch(i)["image"]} for i in range(count))

    # One candidate on one device each, to be mapped by `_program`.

    def _mask(self, state, candidate, batch):
        (choice,) = candidate
        return self.space.net.mask(state.params, choice)

    def _update_statistics(self, state, candidate, batch):
        weights, formats, model_state = candidate

        def on_a_device(images):
            return self._classifier.train_forward(
                weights,
                model_state,
                self._classifier.normalise(images),
                formats=formats,
                dropout_key=jax.random.key(0),
            )[1]

        # As in a step, the model may average over the devices: here it is one.
        on_devices = jax.vmap(on_a_device, axis_name=AXIS)(batch["image"][None])
        return jax.tree.map(lambda leaf: leaf[0], on_devices)

    def _observe(self, state, candidate, batch):
        weights, model_state = candidate
        return self._classifier.quantized.observe(
            {"params": weights, **model_state},
            self._classifier.normalise(batch["image"]),
            num_samples=self._ptq.num_samples,
            **training_arguments(self.space.net.model, train=False),
        )

    def _quantize(self, state, candidate, batch):
        masked, choice, options, symmetric, samples = candidate
        formats = self.space.space.formats(options)
        weights = quantize_weights_by(
            masked,
            self.space.net.sites,
            formats.weight,
            OBSERVERS[self._ptq.weight_observer],
            symmetric=symmetric,
            per_channel=self._ptq.per_channel,
        )
        live = live_sites(self.space.net, choice).input_fraction
        return weights, static_calibration.static_input_formats(
            samples, formats.activation, self._ptq, live=live
        )

    def _hits(self, state, candidate, batch):
        weights, formats, model_state = candidate
        logits = self._classifier.predict(
            weights, model_state, batch["image"], formats=formats
        )
        return (correct(logits, batch["label"]) * batch["mask"]).sum()

    def _program(self, function):
        """Compiles a function of one candidate for a chunk spread over the devices."""

        def on_device(state, candidates, batch):
            self.compile_count += 1  # runs when traced, not when executed

            def one(candidate, batch):
                with skip_dead_layers():
                    return function(state, candidate, batch)

            if self.chunk_size == self._mesh.size:
                alone = jax.tree.map(lambda leaf: leaf[0], candidates)
                return jax.tree.map(lambda leaf: leaf[None], one(alone, batch))
            return lax.map(lambda candidate: one(candidate, batch), candidates)

        spread, same = PartitionSpec(_CANDIDATES), PartitionSpec()
        mapped = jax.shard_map(
            on_device,
            mesh=self._mesh,
            in_specs=(same, spread, same),
            out_specs=spread,
            check_vma=False,  # as in `train.mapping`
        )
        return jax.jit(mapped)

    def _run(self, name, candidates, batch=None):
        # What lies elsewhere (or on one device) would be compiled for anew.
        candidates = self._spread(candidates)
        batch = place(batch or {}, self._placed())
        return self._programs[name](self._state, candidates, batch)

    def _placed(self, *axes: str) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def _spread(self, tree: PyTree) -> PyTree:
        return place(tree, self._placed(_CANDIDATES))
