"""What every search leaves in its workdir besides checkpoints and metrics.

Writes `policy.json`, `summary.json` and `report.html`, and prints the table of sites.
"""

import contextlib
import dataclasses
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from jaxtyping import Int

from fliqs_jax.policy import Policy
from fliqs_jax.report import comparison_table, read_run, sites_table, write_report
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.sites import Site
from fliqs_jax.train import processes
from fliqs_jax.train.workdir import read_json, write_json

_PACKAGES = (
    "fliqs_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A finished search: what was found and where it lies."""

    policy: Policy
    accuracy: float  # test set, at the policy, in [0, 1]
    cost: float  # in the cost's own unit
    summary: Mapping[str, Any]  # as in summary.json
    workdir: str


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        # A checkout on the path that is not installed has no version.
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def describe_sites(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Returns the facts about each site that the report shows."""
    return [
        {
            "path": site.path,
            "op": site.op,
            "weight_shape": list(site.weight_shape),
            "macs": site.macs,
            "weight_count": site.weight_count,
            "input_size": site.input_size,
        }
        for site in sites
    ]


def uniform_rows(
    space: SearchSpace,
    costs: Any,
    target: float,
    accuracy: Callable[[Int[np.ndarray, "L"]], float],
    *,
    choice: Sequence[int] | Int[np.ndarray, "A"] = (),
) -> list[dict[str, Any]]:
    """Returns what each option is worth and costs where it is taken everywhere.

    Args:
      space: the decisions about formats.
      costs: with `exact_cost` of a vector of options.
      target: of the cost.
      accuracy: of a vector of options.
      choice: of an architecture, whose options come first in a vector.
    """
    rows = []
    for index, name in enumerate(space.option_names):
        options = np.array([*choice, *[index] * space.num_decisions], np.int32)
        price = costs.exact_cost(options)
        rows.append(
            {
                "format": name,
                "accuracy": accuracy(options),
                "cost": price,
                "cost_ratio": price / target,
            }
        )
    return rows


def write_results(
    workdir: pathlib.Path,
    *,
    policy: Policy,
    summary: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> None:
    """Writes the result files.

    Args:
      workdir: of the run, with its `config.json` and `metrics.jsonl`.
      policy: the formats found.
      summary: what `summary.json` should hold besides the versions.
      say: receives the table of sites and the closing lines.
    """
    policy.save(workdir / "policy.json")
    write_json(workdir / "summary.json", {**summary, "versions": versions()})
    report = write_report(workdir)
    run = read_run(workdir)
    say(sites_table(run.config.sites, run.policy, cost=run.config.cost))
    say(comparison_table(run))
    say(f"report: {report}")


def say_finished(
    folder: pathlib.Path,
    say: Callable[[str], None],
    *,
    write_page: Callable[[pathlib.Path], Any] = write_report,
) -> None:
    """Tells that a run needs no more work, and writes its page if a kill left it out.

    Args:
      folder: of the run, with its `summary.json`.
      say: receives the line.
      write_page: writes `report.html`, which the summary comes before.
    """
    say(f"{folder} holds a finished run")
    if not (folder / "report.html").exists():
        processes.on_main(lambda: write_page(folder))


def finished_result(folder: pathlib.Path) -> SearchResult:
    """Returns the result that a finished workdir holds."""
    processes.await_file(folder / "summary.json")
    summary = read_json(folder / "summary.json")
    return SearchResult(
        policy=Policy.load(folder / "policy.json"),
        accuracy=summary["accuracy"],
        cost=summary["cost"],
        summary=summary,
        workdir=str(folder),
    )
