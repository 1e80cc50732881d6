"""A run's folder: what identifies the run in its `config.json`, and the folder opened.

All runs use the same words for their network and their job. What else tells one run
from another is its method's to say.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fliqs_jax.costs import SiteCost, cost_name
from fliqs_jax.data import Dataset
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site
from fliqs_jax.train.fitting import describe_variables, fit_variables
from fliqs_jax.train.job import JobSettings
from fliqs_jax.train.workdir import open_workdir


@contextlib.contextmanager
def open_run(
    workdir: str | os.PathLike[str],
    identity: Mapping[str, Any],
    config: Mapping[str, Any] | None,
) -> Iterator[tuple[pathlib.Path, bool]]:
    """Yields a run's folder, and whether the run is finished.

    Args:
      workdir: a new folder, or that of the same run.
      identity: what identifies the run.
      config: what else does, by its caller; mappings of the same name are joined.

    Raises:
      ValueError: if the workdir is another run's.
    """
    identity = dict(identity)
    for name, value in (config or {}).items():
        known = identity.get(name)
        identity[name] = {**known, **value} if isinstance(known, dict) else value
    with open_workdir(workdir, identity, volatile=("session",)) as folder:
        yield folder, (folder / "summary.json").exists()


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Returns which images a run is about: their name, of one's own what they are."""
    own = {"data_fingerprint": dataset.fingerprint} if dataset.fingerprint else {}
    return {"dataset": dataset.name, **own}


def check_same_images(
    config: Mapping[str, Any], dataset: Dataset, *, owner: str
) -> None:
    """Refuses images of one's own that are not those that a run was about.

    Args:
      config: the run's `config.json`.
      dataset: of the same name.
      owner: the run, for the message.

    Raises:
      ValueError: if they are others: what was held out there would not be held out.
    """
    there = config.get("data_fingerprint", "")
    if there != dataset.fingerprint:
        raise ValueError(
            f"{owner} was made on other images named {dataset.name!r} (data_fingerprint"
            f" {there!r} there, {dataset.fingerprint!r} now): give it those"
        )


def describe_network(
    dataset: Dataset, sites: Sequence[Site], *, per_channel: bool = True
) -> dict[str, Any]:
    """Returns what it takes to make a network again; its caller adds the name."""
    return {
        "name": None,
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.train.image_shape),
        "per_channel": per_channel,
        "attention_products": any(site.product for site in sites),
    }


def describe_settings(settings: Any) -> Any:
    """Returns settings as what JSON holds: dataclasses by field, functions by name.

    Example:
      >>> @dataclasses.dataclass
      ... class Settings:
      ...     steps: int = 3
      ...     measure: Callable = max
      >>> describe_settings(Settings())
      {'steps': 3, 'measure': 'max'}
    """
    if dataclasses.is_dataclass(settings):
        names = [field.name for field in dataclasses.fields(settings)]
        return {name: describe_settings(getattr(settings, name)) for name in names}
    if isinstance(settings, Mapping):
        return {name: describe_settings(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [describe_settings(value) for value in settings]
    if isinstance(settings, functools.partial):
        return {
            "function": describe_settings(settings.func),
            **describe_settings(settings.keywords),
        }
    if callable(settings):
        return getattr(settings, "__qualname__", type(settings).__name__)
    return settings


def describe_policy(policy: Policy | None) -> dict[str, str] | None:
    """Returns the formats of a policy that is given, by site."""
    if policy is None:
        return None
    return {path: "/".join(formats) for path, formats in policy.items()}


def describe_cost(
    site_cost: SiteCost, *, reference: float, least: float, most: float
) -> dict[str, Any]:
    """Returns what a run's prices are: their name, and a few of them to know them by.

    Args:
      site_cost: the price of a site.
      reference: what costs 1.
      least: lowest cost of a policy.
      most: highest.
    """
    return {"cost": cost_name(site_cost), "costs": [reference, least, most]}


def describe_job(job: JobSettings, mesh: Mesh) -> dict[str, Any]:
    """Returns what of a job changes its result."""
    return {
        "steps": job.steps,
        "batch_size": job.batch_size,
        "seed": job.seed,
        "devices": mesh.size,
    }


def describe_start(
    classifier: Any,  # `Classifier`, or one of sub-networks
    dataset: Dataset,
    variables: Mapping[str, Any] | None,
    skip: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Returns which variables a run starts from, after a look at their shapes.

    Raises:
      ValueError: if they are another model's.
    """
    if variables is None:
        return {}
    image = jax.ShapeDtypeStruct((1, *dataset.train.image_shape), jnp.uint8)
    params, model_state = jax.eval_shape(classifier.init, jax.random.key(0), image)
    fit_variables(variables, {"params": params, **model_state}, skip=skip, say=say)
    return {"initial_variables": {**describe_variables(variables), "skip": list(skip)}}
