"""Reads the files that a run wrote into its workdir.

Files only: nothing here draws, and nothing touches a model or a device. A file that is
absent gives None or an empty mapping, so a run can be looked at while it goes on.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fliqs_jax.report.records import (
    BudgetResult,
    Formats,
    Phases,
    ProbabilityTrace,
    Run,
    RunConfig,
    Sensitivities,
    Series,
    SiteRecord,
    Summary,
    UniformResult,
)


def read_run(workdir: str | pathlib.Path) -> Run:
    """Reads the files of a run's workdir.

    Only config.json must be there. Where a resumed run repeated steps, the later row
    of a step counts; lines of metrics.jsonl cut short by a kill are counted, not read.

    Args:
      workdir: folder with config.json and, as far as the run has come, metrics.jsonl,
        summary.json and policy.json.

    Returns:
      The run.

    Raises:
      FileNotFoundError: if `workdir` holds no config.json.
      ValueError: if a file is not what the run writes; names the file and the place.

    Example:
      >>> import json, pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> config = {"method": "fliqs", "model": "lenet5", "dataset": "digits"}
      >>> _ = (folder / "config.json").write_text(json.dumps(config))
      >>> read_run(folder).config.model
      'lenet5'
    """
    folder = pathlib.Path(workdir)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"workdir {str(folder)!r} holds no config.json: give the folder that a run "
            "wrote, the --workdir of its command"
        )
    summary_file, policy_file = folder / "summary.json", folder / "policy.json"
    rows, damaged = _read_rows(folder / "metrics.jsonl")
    by_split: dict[str, list[dict[str, Any]]] = {}
    for row in _of_kind(rows, "evaluation"):
        by_split.setdefault(row.get("split", "evaluation"), []).append(row)
    config = _config(read_object(config_file))
    return Run(
        config=config,
        summary=_summary(summary_file) if summary_file.is_file() else None,
        policy=_policy(policy_file) if policy_file.is_file() else None,
        train=_series(_of_kind(rows, "train")),
        evaluation={
            (split, name): series
            for split, chosen in by_split.items()
            for name, series in _series(chosen).items()
        },
        probabilities=_choices(_of_kind(rows, "policy"), config),
        damaged_rows=damaged,
    )


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object that a file of a run holds."""
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} must hold a JSON object, got {type(content).__name__}"
        )
    return content


def _read_rows(file: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many lines are none: a kill can cut a line short."""
    lines = file.read_text().splitlines() if file.is_file() else []
    rows, damaged = [], 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            damaged += 1
    return rows, damaged


def _of_kind(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("kind") == kind]


# Of a session: what a run starts from, without which it is another. Where the data lie
# is the reader's own business.
_STARTS = ("init_from", "supernet_from", "download")


def _config(content: Mapping[str, Any]) -> RunConfig:
    phases = content.get("phases")
    target = content.get("cost_target")
    method, session = content.get("method", ""), content.get("session") or {}
    return RunConfig(
        method=method,
        # Of a part of a run, such as a point's fine-tuning, that of the whole.
        launcher=(session.get("command") or ["", "", f"experiments.{method}"])[2],
        model=content.get("model", ""),
        dataset=content.get("dataset", ""),
        flags={
            **(content.get("flags") or {}),
            **(content.get("adjustable") or {}),
            **{name: session[name] for name in _STARTS if session.get(name)},
        },
        sites=read_sites(content.get("sites") or ()),
        decisions=tuple(content.get("decisions") or ()),
        options=tuple(content.get("options") or ()),
        cost=content.get("cost") or "bops",
        cost_reference=content.get("cost_reference") or "int8",
        cost_target=None if target is None else float(target),
        phases=_filled(Phases, phases) if phases else None,
    )


def _filled(kind: type, content: Mapping[str, Any], **converted: Any) -> Any:
    """A record of what a file says under the names of its fields, and of no more."""
    names = {field.name for field in dataclasses.fields(kind)} & content.keys()
    return kind(**{**{name: content[name] for name in names}, **converted})


def read_sites(rows: Sequence[Mapping[str, Any]]) -> tuple[SiteRecord, ...]:
    """Returns the sites that a file of a run lists."""
    return tuple(
        _filled(SiteRecord, site, weight_shape=tuple(site["weight_shape"]))
        for site in rows
    )


def _summary(file: pathlib.Path) -> Summary:
    content = read_object(file)

    def numbers(row: Mapping[str, Any], *names: str) -> dict[str, float]:
        return {name: _number(row.get(name)) for name in names}

    return Summary(
        **numbers(content, "accuracy", "cost_ratio", "seconds", "entropy"),
        steps=content.get("steps") or 0,
        compile_count=content.get("compile_count"),
        seed=content.get("seed"),
        versions=content.get("versions") or {},
        uniform=tuple(
            UniformResult(
                format=row["format"], **numbers(row, "accuracy", "cost_ratio")
            )
            for row in content.get("uniform") or ()
        ),
        trade_off=tuple(
            BudgetResult(policy=row["policy"], **numbers(row, "accuracy", "cost_ratio"))
            for row in content.get("trade_off") or ()
        ),
        sensitivities=_sensitivities(content.get("sensitivities")),
    )


def _sensitivities(content: Mapping[str, Any] | None) -> Sensitivities | None:
    if not content:
        return None
    return Sensitivities(
        values=np.array(content["values"], np.float64),
        chosen=np.array(content["chosen"], np.int64),
        unit=content["unit"],
    )


def _policy(file: pathlib.Path) -> Formats:
    from fliqs_jax.policy import Policy  # brings jax along: only when there is one

    return dict(Policy.load(file).items())


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _series(rows: list[dict[str, Any]]) -> dict[str, Series]:
    by_step = {row["step"]: row for row in rows}  # a later row replaces an earlier one
    names = {key: None for row in rows for key in row if key not in _LABELS}
    curves = {}
    for name in names:
        points = sorted(
            (s, _number(row[name])) for s, row in by_step.items() if name in row
        )
        curves[name] = Series(
            np.array([step for step, _ in points], np.int64),
            np.array([value for _, value in points], np.float64),
        )
    return curves


_LABELS = ("step", "kind", "split")  # they name a row; every other key is a quantity


def _choices(rows: list[dict[str, Any]], config: RunConfig) -> ProbabilityTrace | None:
    """The probabilities that a controller had, or the options that were set."""
    by_step = {row["step"]: row["options"] for row in rows if row.get("options")}
    if not by_step:
        return _probabilities(rows)
    steps = sorted(by_step)
    options = np.array([by_step[step] for step in steps], np.int64)
    width = max(len(config.options), 1 + int(options.max()))
    one_hot = np.eye(width)[options]
    return ProbabilityTrace(np.array(steps, np.int64), one_hot, certain=True)


def _probabilities(rows: list[dict[str, Any]]) -> ProbabilityTrace | None:
    by_step = {
        row["step"]: row["probabilities"] for row in rows if row.get("probabilities")
    }
    if not by_step:
        return None
    steps = sorted(by_step)
    decisions = {len(by_step[step]) for step in steps}
    if len(decisions) != 1:
        raise ValueError(
            f"metrics.jsonl: policy rows with {sorted(decisions)} decisions; a workdir "
            "must hold one run"
        )
    width = max(len(options) for step in steps for options in by_step[step])
    values = np.full((len(steps), decisions.pop(), width), np.nan)
    for t, step in enumerate(steps):
        for decision, options in enumerate(by_step[step]):
            values[t, decision, : len(options)] = [_number(p) for p in options]
    return ProbabilityTrace(np.array(steps, np.int64), values)
