"""The report page of a search for a network: its architecture and its formats."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fliqs_jax.report import architecture, html, page, probabilities, sections, words
from fliqs_jax.report.reading import read_object, read_run, read_sites
from fliqs_jax.report.records import ProbabilityTrace, Run


def write_network_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes the report.html of a finished network search and returns its path.

    Args:
      workdir: with config.json, architecture.json, summary.json and metrics.jsonl.

    Raises:
      FileNotFoundError: if one of these is missing.
    """
    folder = pathlib.Path(workdir)
    whole = read_run(folder)
    config, found, summary = (
        read_object(folder / f"{name}.json")
        for name in ("config", "architecture", "summary")
    )
    options = config["architecture_options"]
    run = dataclasses.replace(
        whole,
        config=dataclasses.replace(
            whole.config,
            sites=read_sites(found["sites"]),
            cost_reference=f"{whole.config.cost_reference} in the full network",
        ),
    )
    count = len(options)
    # One option is no decision: it would stand in the maps as the largest, too.
    several = [number for number, own in enumerate(options.values()) if len(own) > 1]
    about = _part(run, several, ())
    formats = _part(run, range(count, len(run.config.decisions)), run.config.options)
    gone = {site.path: ("left out",) * 2 for site in whole.config.sites}
    formats = dataclasses.replace(formats, policy={**gone, **run.policy})
    body = [
        sections.head(run),
        f"<p>{escape(_sizes_sentence(summary))}</p>",
        _architecture(options, found["architecture"]),
        html.formats_section(run),
        html.trade_off_section(run),
        html.training_section(run),
        _search(run, about, formats, options, found["architecture"]),
        sections.site_table(run),
        sections.reproduction(whole),
        sections.settings(formats),
    ]
    return page.write(folder, words.headline(run), body)


def _part(run: Run, rows: Sequence[int], options: tuple[str, ...]) -> Run:
    """Returns the run with some of its decisions only, if they were searched.

    Args:
      run: the whole one.
      rows: numbers of the decisions.
      options: of each of them; empty where they have options of their own.
    """
    decisions = tuple(run.config.decisions[row] for row in rows)
    trace = run.probabilities
    if trace is not None:
        values = trace.values[:, list(rows)]
        if options:
            values = values[:, :, : len(options)]
        # Made beforehand, they have probabilities of 0 and 1 from the first row on.
        searched = np.isfinite(values[0]) & (values[0] > 0) & (values[0] < 1)
        trace = ProbabilityTrace(trace.steps, values) if searched.any() else None
    config = dataclasses.replace(run.config, decisions=decisions, options=options)
    return dataclasses.replace(run, config=config, probabilities=trace)


def _sizes_sentence(summary: Mapping[str, Any]) -> str:
    small, full = (
        (words.count(summary[f"parameters{of}"]), words.count(summary[f"macs{of}"]))
        for of in ("", "_of_full")
    )
    gap = summary["selection_gap"]
    exact = "No other choice within the budget is more probable"
    if gap > 1e-5:
        exact = f"Another choice may be better by {gap:.2g} of the controller's score"
    return (
        f"The network found has {small[0]} of the full network's {full[0]} parameters,"
        f" and {small[1]} of its {full[1]} MACs. {exact}."
    )


def _architecture(options: architecture.Options, chosen: Mapping[str, int]) -> str:
    note = '<p class="note">Channels, sides of kernels and so on; bold is chosen.</p>'
    table = architecture.architecture_table(options, chosen)
    return page.section("architecture", "Chosen architecture", note, table)


def _search(
    run: Run,
    about: Run,
    formats: Run,
    options: architecture.Options,
    chosen: Mapping[str, int],
) -> str:
    title = "How the search went"
    if run.probabilities is None:
        text = "<p>There was no search: the run trained one network in one policy.</p>"
        return page.section("search", title, text)
    plain = dataclasses.replace(
        run,
        # The decisions have different numbers of options: no entropy is the largest.
        config=dataclasses.replace(run.config, options=()),
        # That of the controller's updates is the expected one once more.
        train={name: s for name, s in run.train.items() if name != "cost_ratio"},
    )
    parts = html.search_figures(plain)
    if about.probabilities is not None:
        parts += _architecture_figures(about, options, chosen)
    if formats.probabilities is not None:
        parts += html.probability_figures(formats)
    return page.section("search", title, *parts)


def _architecture_figures(
    run: Run, options: architecture.Options, chosen: Mapping[str, int]
) -> list[str]:
    overview = (
        "One row a decision about the architecture; colour is the expected option"
        " between the smallest and the largest. The dashed line ends the warm-up; the"
        " white dot marks the step since which the choice at the row's right end has"
        " been the most probable one. An arrow leads to the final choice where it is"
        " another, as the most probable choices together would have missed the budget."
    )
    detail = (
        "One panel a decision, one row an option. The option written beside a row is "
        "the most probable one at the end."
    )
    listed = [options[name] for name in run.config.decisions]
    names = [[str(option) for option in own] for own in listed]
    sizes = architecture.draw_sizes(run, options, chosen)
    panels = probabilities.draw_probabilities(run, names)
    return [
        page.figure(sizes, "sizes", "Expected size of each part", overview),
        page.figure(panels, "parts", "Probabilities of the architecture", detail),
    ]
