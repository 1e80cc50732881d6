"""A Learning-Compression run from plain objects to a finished workdir.

Puts its pieces together: network, rules, reference weights, schedule, optimizer. What
happens in a step and between L steps is in `learning_compression`.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from fliqs_jax.checks import check_one_of, check_within
from fliqs_jax.costs import storage_bits
from fliqs_jax.data import Dataset
from fliqs_jax.deploy import codebook_bits, compression_ratio, save_codebooks
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.report import compression_table, write_compression_report
from fliqs_jax.runs import results, run_folder
from fliqs_jax.runs.network import CODEBOOK_FILE, save_network
from fliqs_jax.searchers.compression.history import MEASURES
from fliqs_jax.searchers.compression.rules import (
    CompressionRule,
    Scope,
    find_scopes,
    named_leaves,
)
from fliqs_jax.searchers.compression.schedule import VARIANTS, LSteps
from fliqs_jax.searchers.compression.sizes import SIZES, choose_sizes
from fliqs_jax.searchers.learning_compression import (
    LCState,
    LearningCompression,
    Measure,
)
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.sites import Site
from fliqs_jax.train import processes
from fliqs_jax.train.classifier import Augment, Classifier, image_sites
from fliqs_jax.train.job import JobSettings, run_job
from fliqs_jax.train.mapping import check_batch_size, make_mesh
from fliqs_jax.train.optimizers import make_optimizer
from fliqs_jax.train.workdir import write_json

_MOST_JUDGED = 5000  # training examples that the loss of Delta(Theta) is measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionSettings:
    """How weights are compressed. The defaults are those of public code for LeNet300.

    Where time is short, raise `mu_growth` rather than `mu`.
    """

    method: str = "lc"  # or what it is compared with: qp, dc, idc, ste
    lc_steps: int = 40
    first_l_step: float = 2.0  # its length, in those of the others
    mu: float = 9e-5
    mu_growth: float = 1.1
    tolerance: float = 1e-3  # of |w - Delta| / |w|: the run ends below it; 0 is never
    optimizer: str = "sgd"
    learning_rate: float = 0.1  # of the first L step
    learning_rate_decay: float = 0.98  # from one L step to the next
    weight_decay: float = 5e-4  # counts as a part of the loss
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_one_of(VARIANTS, method=self.method)
        check_within("[0, 1)", label_smoothing=self.label_smoothing)
        for name in ("learning_rate", "learning_rate_decay"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def l_steps(self, steps: int) -> LSteps:
        """Returns the schedule of a run of so many training steps."""
        return LSteps.of(
            steps,
            self.lc_steps,
            first=self.first_l_step,
            mu=self.mu,
            growth=self.mu_growth,
        )

    def make_searcher(self, steps: int, **given: Any) -> LearningCompression:
        """Returns the method for a run of so many steps; `given` are other fields."""
        return LearningCompression(
            l_steps=self.l_steps(steps),
            # At a learning rate of 1: the searcher multiplies by its own.
            optimizer=make_optimizer(
                self.optimizer,
                optax.constant_schedule(1.0),
                weight_decay=self.weight_decay,
            ),
            learning_rate=lambda number: (
                self.learning_rate * self.learning_rate_decay**number
            ),
            variant=VARIANTS[self.method],
            tolerance=self.tolerance,
            label_smoothing=self.label_smoothing,
            **given,
        )


def weight_paths(sites: Sequence[Site]) -> tuple[str, ...]:
    """Returns the paths of all weights of sites in the params, each once.

    A stack of layers (`nn.scan`) is one leaf, and so has one codebook.
    """
    return tuple(
        dict.fromkeys(
            "/".join((*site.module_path, *weight.path))
            for site in sites
            for weight in site.weights
        )
    )


def compress_network(
    model: nn.Module | nnx.Module,
    dataset: Dataset,
    rules: Sequence[CompressionRule],
    *,
    trained: Callable[[], tuple[TrainedState, float]],
    workdir: str,
    job: JobSettings,
    settings: CompressionSettings = CompressionSettings(),
    size_budget: float | None = None,
    cost_reference: str = "int8",
    augment: Augment | None = None,
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> results.SearchResult:
    """Compresses a trained network's weights to codebooks, training them on the way.

    Run again with the same workdir and arguments, it continues where it stopped, or
    returns the finished result. The network to use, from `load_network`, has the very
    values of `codebooks.fqcb`, whose size on disk gives the compression ratio.

    Args:
      model: a linen or NNX image classifier, as for `search_formats`.
      dataset: from `load_dataset`.
      rules: which weights get which codebook.
      trained: returns the reference network's variables, and the seconds that training
        them took as part of this run; called if they are needed.
      workdir: a new folder, or that of the same run.
      job: steps (of all L steps), batch size, seed, and how to run.
      settings: of the method.
      size_budget: most bits of all compressed weights with their codebooks, as a
        fraction of these weights' bits at `cost_reference`; sizes of adaptive codebooks
        are then chosen for each scope, whatever the rules say.
      cost_reference: a format.
      augment: `(key, images) -> images` for training batches, on device.
      config: what else identifies the run, for its `config.json`.
      say: receives what a person wants to read.

    Raises:
      ValueError: before any training, if an argument is out of range, a rule matches
        nothing or the workdir is another run's; before the L steps, if the size budget
        is out of reach.
      TrainingDiverged: if the loss became NaN or infinite.
    """
    mesh = make_mesh()
    say = processes.spoken_once(say)
    check_batch_size(job.batch_size, mesh)
    settings.l_steps(job.steps)  # refuses too few steps
    sites = image_sites(model, dataset.train.image_shape)
    classifier = Classifier.of(QuantizedModel(model, sites=sites), dataset, augment)
    image = jax.ShapeDtypeStruct((1, *dataset.train.image_shape), np.uint8)
    shapes, _ = jax.eval_shape(classifier.init, jax.random.key(0), image)
    scopes = find_scopes(shapes, rules)
    floats = _float_bits(shapes, scopes, cost_reference)
    if size_budget is not None:
        check_size_budget(shapes, scopes, size_budget, cost_reference)
    identity = {
        "method": "learning_compression",
        **run_folder.describe_data(dataset),
        "sites": results.describe_sites(sites),
        "codebooks": [[scope.name, scope.c_step.name] for scope in scopes],
        "settings": dataclasses.asdict(settings),
        "augment": run_folder.describe_settings(augment),
        "size_budget": size_budget,
        "cost": "size",
        "cost_reference": cost_reference,
        "cost_target": size_budget,
        **run_folder.describe_job(job, mesh),
        "network": run_folder.describe_network(dataset, sites),
    }
    with run_folder.open_run(workdir, identity, config) as (folder, finished):
        if finished:
            results.say_finished(folder, say, write_page=write_compression_report)
            return results.finished_result(folder)
        reference, seconds = trained()
        if size_budget is not None:
            scopes = choose_sizes(reference.params, scopes, size_budget * floats)
        measure = make_measure(classifier, dataset, job, mesh)
        searcher = settings.make_searcher(
            job.steps,
            classifier=classifier,
            scopes=scopes,
            variables=reference.variables,
            measure=measure,
        )
        # Weights between L steps are no network to judge: C steps do that.
        job = dataclasses.replace(job, evaluate_every=0)
        state, evaluator, facts = run_job(
            searcher, dataset, job, workdir=str(folder), mesh=mesh, say=say
        )
        before = evaluator.test(reference, None)
        result = evaluator.test(state, None)
        policy = Policy.uniform(sites, "fp32")
        save_network(folder, state, policy.formats(sites), classifier)
        summary = {
            "accuracy": result["accuracy"],
            "loss": result["loss"],
            "reference_accuracy": before["accuracy"],
            "reference_loss": before["loss"],
            "train_loss": float(state.best.loss),
            "reference_train_loss": measure(reference)["train_loss"],
            "cost_target": None if size_budget is None else size_budget * floats,
            "cost_of_reference": floats,
            "steps": job.steps,
            "seed": job.seed,
            "entropy": None,
            **searcher.summary(state),
            **facts,
            "seconds": facts["seconds"] + seconds,
            "seconds_of_reference": seconds,
            "versions": results.versions(),
        }

        processes.on_main(lambda: _write(folder, policy, searcher, state, summary, say))
        return results.finished_result(folder)


def check_size_budget(
    params: PyTree, scopes: Sequence[Scope], size_budget: float, cost_reference: str
) -> None:
    """Refuses a budget that codebooks of two values exceed, by shapes alone.

    Raises:
      ValueError: naming the least reachable fraction.
    """
    floats = _float_bits(params, scopes, cost_reference)
    least = sum(
        codebook_bits(count, SIZES[0], num_fitted=SIZES[0])
        for count in _counts(params, scopes)
    )
    if not size_budget * floats >= least:  # also refuses NaN
        raise ValueError(
            f"size_budget {size_budget} of {cost_reference} is out of reach: the least "
            f"reachable is {math.ceil(1e4 * least / floats) / 1e4:g} ({least} bits, "
            f"{SIZES[0]} values a codebook). Raise it"
        )


def make_measure(
    classifier: Classifier, dataset: Dataset, job: JobSettings, mesh: Mesh
) -> Measure:
    """Returns what tells loss and error of a state on training and validation images.

    Of any state that has params and model_state.

    Batch statistics are recomputed first. Training examples are at most 5000, spread
    evenly over the split.
    """
    count = len(dataset.train)
    chosen = np.linspace(0, count - 1, min(count, _MOST_JUDGED)).astype(np.int64)
    # An evaluator knows a validation and a test split: here of training images, and of
    # held-out ones. The test split itself is not touched before the end.
    judged = dataclasses.replace(
        dataset, validation=dataset.train.take(chosen), test=dataset.validation
    )
    evaluator = job.make_evaluator(classifier, judged, mesh)

    def measure(state: LCState | TrainedState) -> dict[str, float]:
        state = evaluator.recalibrated(state, None)
        by_split = {"train": evaluator.validate(state, None)}
        if len(dataset.validation):
            by_split["validation"] = evaluator.test(state, None)
        measured = {}
        for split, result in by_split.items():
            measured[f"{split}_loss"] = result["loss"]
            measured[f"{split}_error"] = 1.0 - result["accuracy"]
        return measured

    return measure


def _counts(params: PyTree, scopes: Sequence[Scope]) -> list[int]:
    """Returns the number of weights of each scope, by shapes alone."""
    leaves = named_leaves(params)
    return [sum(math.prod(leaves[p].shape) for p in s.paths) for s in scopes]


def _float_bits(params: PyTree, scopes: Sequence[Scope], reference: str) -> int:
    return storage_bits(reference) * sum(_counts(params, scopes))


def _write(folder, policy, searcher, state, summary, say) -> None:
    """Writes the result files; the summary makes the run a finished one."""
    policy.save(folder / "policy.json")
    sizes = _write_weights(folder, searcher, state)
    target = summary["cost_target"]
    ratio = None if target is None else sizes["cost"] / target
    write_json(folder / "summary.json", {**summary, **sizes, "cost_ratio": ratio})
    report = write_compression_report(folder)
    say(compression_table(folder))
    say(f"report: {report}")


def _write_weights(
    folder: pathlib.Path, searcher: LearningCompression, state: LCState
) -> dict[str, Any]:
    """Writes codebooks.fqcb and compression.json; returns the sizes that came of it."""
    params = searcher.compressed_params(state)
    save_codebooks(folder / CODEBOOK_FILE, params)
    file_bytes = (folder / CODEBOOK_FILE).stat().st_size
    float_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    best, history = jax.device_get((state.best, state.history))
    layers = []
    for scope, codebook in zip(searcher.scopes, best.codebooks, strict=True):
        count, size = len(codebook.indices), len(codebook.values)
        layers.append(
            {
                "name": scope.name,
                "paths": list(scope.paths),
                "codebook": scope.c_step.name,
                "weights": count,
                "values": codebook.values,
                "uses": np.bincount(codebook.indices, minlength=size),
                "bits": codebook_bits(count, size, num_fitted=codebook.num_fitted),
            }
        )
    rows = int(state.l_step) + 1
    write_json(
        folder / "compression.json",
        {
            "layers": layers,
            "ends": [0, *searcher.l_steps.ends][:rows],
            "residual": history.residual[:rows],
            "mu": history.mu[:rows],
            "measured": {
                name: history.measured[:rows, column]
                for column, name in enumerate(MEASURES)
            },
            "values": [values[:rows] for values in history.values],
            "span": history.span,
            "counts": np.moveaxis(history.counts[:rows], 1, 0),
        },
    )
    return {
        "cost": float(sum(layer["bits"] for layer in layers)),
        "file_bytes": file_bytes,
        "float_bytes": float_bytes,
        "compression_ratio": float_bytes / file_bytes,
        "compression_ratio_formula": compression_ratio(params),
    }
