r"""Training a super-network: InstaTune's step, and sandwich sampling.

Every step draws sub-networks and trains the one set of weights through them and through
the full network, which teaches them:

.. math:: \mathcal L = \frac{1}{n + 1} \sum_{i=0}^{n} \ell_i
    + \frac{1}{n} \sum_{i=1}^{n} T^2 \,
    \mathrm{KL}(\mathrm{softmax}(z_0 / T) \,\|\, \mathrm{softmax}(z_i / T))

with network 0 the full one. One random sub-network a step is InstaTune; sandwich
sampling adds the smallest one. Batch statistics are the full network's: those of a
sub-network are computed when it is evaluated (`subnetwork_evaluation`).

Reference: InstaTune, 2023, https://arxiv.org/abs/2308.15609; Yu and Huang, Universally
slimmable networks, 2019 (sandwich rule), https://arxiv.org/abs/1903.05134
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from fliqs_jax.checks import check_positive, check_within
from fliqs_jax.data import Dataset
from fliqs_jax.models.supernets import SuperNetwork
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs import results, run_folder
from fliqs_jax.runs.network import save_network
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train import processes
from fliqs_jax.train.classifier import Augment, Classifier
from fliqs_jax.train.fitting import fit_variables, start_state
from fliqs_jax.train.job import Hook, JobSettings, run_job
from fliqs_jax.train.losses import correct, cross_entropy, distillation
from fliqs_jax.train.mapping import AXIS, Step, device_keys, make_mesh
from fliqs_jax.train.pretrained import load_variables
from fliqs_jax.train.workdir import write_json


@flax.struct.dataclass
class SupernetState:
    """Everything a step changes; equal on all devices, saved in every checkpoint."""

    step: Int[Array, ""]
    key: Key[Array, ""]
    params: PyTree  # of the full network
    model_state: PyTree  # its batch statistics and other collections
    opt_state: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """How sub-networks are trained beside the full network."""

    subnetworks: int = 1  # drawn at random, each step and on each device
    sandwich: bool = False  # the smallest sub-network, too
    temperature: float = 5.0  # of the teacher's and the students' predictions
    label_smoothing: float = 0.0
    # Of the weights' gradient, by its norm over all of them; 0 is not at all. T^2 makes
    # the lesson's gradient large while networks are fresh and disagree.
    clip_norm: float = 5.0

    def __post_init__(self):
        if self.subnetworks + self.sandwich < 1 or self.subnetworks < 0:
            raise ValueError(
                f"subnetworks must be at least 1, got {self.subnetworks}"
                " (0 with sandwich=True)"
            )
        check_positive(temperature=self.temperature)
        check_within("[0, 1)", label_smoothing=self.label_smoothing)
        if not self.clip_norm >= 0:
            raise ValueError(
                f"clip_norm must be positive, or 0 for none, got {self.clip_norm}"
            )

    def clipped(
        self, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """Returns the optimizer of gradients that are clipped."""
        if not self.clip_norm:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SupernetTrainer:
    """What `fliqs_jax.train.job` runs to train a super-network (see its `Searcher`)."""

    classifier: Classifier  # of the full network
    net: SuperNetwork
    optimizer: optax.GradientTransformation
    settings: SupernetSettings = SupernetSettings()
    variables: Mapping[str, Any] | None = None  # to start from; None is fresh ones
    skip_variables: tuple[str, ...] = ()  # patterns of what starts fresh even so

    def __post_init__(self):
        if self.classifier.quantized.model is not self.net.model:
            raise ValueError(
                "classifier must be of the full network:"
                " Classifier(quantized=QuantizedModel(net.model), ...)"
            )

    def init(self, key: Key[Array, ""], images: ArrayLike) -> SupernetState:
        """Returns the state before the first step."""
        return SupernetState(**start_state(self, key, images, skip=self.skip_variables))

    def choices(self, key: Key[Array, ""]) -> list[Int[Array, "A"]]:
        """Returns the sub-networks of one step."""
        keys = jax.random.split(key, self.settings.subnetworks)
        drawn = [self.net.sample(key) for key in keys]
        return drawn + [jnp.asarray(self.net.smallest)] * self.settings.sandwich

    def step(self, state: SupernetState, batch: dict) -> tuple[SupernetState, dict]:
        """Trains on one batch; runs per device (axis `data`)."""
        keys = device_keys(state.key, state.step, ("choice", "augment", "dropout"))
        images = self.classifier.training_images(keys["augment"], batch["image"])
        choices, labels = self.choices(keys["choice"]), batch["label"]

        def forward(params):
            return self.classifier.train_forward(
                params,
                state.model_state,
                images,
                formats=None,
                dropout_key=keys["dropout"],
            )

        def objective(params):
            teacher, model_state = forward(params)
            students = [forward(self.net.mask(params, choice))[0] for choice in choices]
            loss, parts = supernet_loss(teacher, students, labels, self.settings)
            accuracy = correct(teacher, labels).mean()
            parts["subnetwork_accuracy"] = correct(students[0], labels).mean()
            return loss, (model_state, {"accuracy": accuracy, **parts})

        (loss, (model_state, metrics)), gradients = jax.value_and_grad(
            objective, has_aux=True
        )(state.params)
        gradients, model_state, metrics = lax.pmean(
            (gradients, model_state, {"loss": loss, **metrics}), AXIS
        )
        updates, opt_state = self.optimizer.update(
            gradients, state.opt_state, state.params
        )
        next_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return next_state, metrics

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns no work between steps: nothing is decided in this training."""
        return []

    def current_formats(self, state: SupernetState) -> None:
        """Returns None: what is evaluated on the way is the full network in float."""

    def progress(self, state: SupernetState) -> dict[str, Any]:
        """Returns nothing beyond the step's own metrics."""
        return {}


def supernet_loss(
    teacher: Float[Array, "B C"],
    students: Sequence[Float[Array, "B C"]],
    labels: Int[Array, "B"],
    settings: SupernetSettings,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of one step and its parts; the equation heads this module.

    Args:
      teacher: logits of the full network.
      students: logits of the sub-networks, one or more.
      labels: of the batch.
      settings: temperature and label smoothing.

    Returns:
      The loss in nats, a mean over the batch; `cross_entropy` of the full network and
      `distillation` of the sub-networks.

    Example:
      >>> logits, labels = jnp.array([[0.0, 1.0]]), jnp.array([1])
      >>> loss, parts = supernet_loss(logits, [logits], labels, SupernetSettings())
      >>> float(parts["distillation"]), bool(loss == parts["cross_entropy"])
      (0.0, True)
    """

    def entropy(logits):
        smoothing = settings.label_smoothing
        return cross_entropy(logits, labels, label_smoothing=smoothing).mean()

    divergences = [
        distillation(logits, teacher, temperature=settings.temperature).mean()
        for logits in students
    ]
    own, taught = entropy(teacher), sum(divergences) / len(students)
    mean = (own + sum(entropy(logits) for logits in students)) / (1 + len(students))
    return mean + taught, {"cross_entropy": own, "distillation": taught}


def train_supernet(
    net: SuperNetwork,
    dataset: Dataset,
    *,
    workdir: str,
    job: JobSettings,
    settings: SupernetSettings = SupernetSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(),
    augment: Augment | None = None,
    variables: Mapping[str, Any] | None = None,
    skip_variables: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> TrainedState:
    """Trains all sub-networks of a super-network in one set of weights.

    Run again with the same workdir and arguments, it continues where it stopped, or
    returns what was trained. The folder is then an ordinary run's of the full network
    in float.

    Args:
      net: the super-network.
      dataset: from `load_dataset`; its test split is not touched.
      workdir: a new folder, or that of the same run.
      job: steps, batch size, seed, and how to run.
      settings: how sub-networks are drawn and taught.
      optimizer: of the weights.
      augment: `(key, images) -> images` for training batches, on device.
      variables: trained ones of the full network to start from (InstaTune); None
        starts fresh.
      skip_variables: patterns of leaves that start fresh even so.
      config: what else identifies the run.
      say: receives what a person wants to read.

    Returns:
      The trained variables of the full network, its batch statistics recomputed.

    Raises:
      ValueError: if the variables are another model's or the workdir another run's.
      TrainingDiverged: if the loss became NaN or infinite.
    """
    classifier = Classifier.of(
        QuantizedModel(net.model, sites=net.sites), dataset, augment
    )
    trainer = SupernetTrainer(
        classifier=classifier,
        net=net,
        optimizer=settings.clipped(optimizer.make(job.steps)),
        settings=settings,
        variables=variables,
        skip_variables=tuple(skip_variables),
    )
    mesh = make_mesh()
    identity = {
        "method": "supernet",
        **run_folder.describe_data(dataset),
        "decisions": {d.name: list(d.options) for d in net.decisions},
        "settings": dataclasses.asdict(settings),
        "optimizer": dataclasses.asdict(optimizer),
        "augment": run_folder.describe_settings(augment),
        **run_folder.describe_job(job, mesh),
        "network": run_folder.describe_network(dataset, net.sites),
        **run_folder.describe_start(
            classifier, dataset, variables, skip_variables, say
        ),
    }
    with run_folder.open_run(workdir, identity, config) as (folder, finished):
        if finished:
            processes.spoken_once(say)(f"{folder} holds a trained super-network")
            return load_supernet(folder, net)
        state, evaluator, facts = run_job(
            trainer, dataset, job, workdir=str(folder), mesh=mesh, say=say
        )
        policy = Policy.uniform(net.sites, "fp32")
        save_network(folder, state, policy.formats(net.sites), classifier)
        summary = {"steps": job.steps, "seed": job.seed, **facts}
        if len(dataset.validation):
            summary["validation_accuracy"] = evaluator.validate(state, None)["accuracy"]

        def write():
            policy.save(folder / "policy.json")
            write_json(
                folder / "summary.json", {**summary, "versions": results.versions()}
            )

        processes.on_main(write)
        processes.await_file(folder / "summary.json")
    return TrainedState(params=state.params, model_state=state.model_state)


def load_supernet(path: str | os.PathLike[str], net: SuperNetwork) -> TrainedState:
    """Loads a trained super-network, all of it.

    Args:
      path: the folder that `train_supernet` wrote, or a checkpoint that
        `load_variables` reads.
      net: the super-network.

    Raises:
      FileNotFoundError: if nothing is there, or its training is not finished.
      ValueError: if the variables are another network's, or not all of them.
    """
    loaded, expected = load_variables(path), net.abstract_variables(net.model)
    if lacking := sorted(expected.keys() - loaded.keys()):
        raise ValueError(
            f"{path} has no {lacking[0]}, only {', '.join(sorted(loaded))}: give a"
            " super-network trained here, or start from these variables by training"
        )
    variables = fit_variables(loaded, expected)
    return TrainedState(variables.pop("params"), variables)
