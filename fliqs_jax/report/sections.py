"""The report's text sections: headline, key numbers, tables, settings.

Everything that comes from a run's files is escaped here before it enters the page.
"""

import math
from collections.abc import Mapping
from html import escape

from fliqs_jax.report import page, words
from fliqs_jax.report.records import Run, Summary
from fliqs_jax.report.table import shape_text


def head(run: Run) -> str:
    """Returns the headline sentence, what it means, and the tiles of key numbers."""
    method = words.pretty(run.config.method) or "fliqs_jax"
    verb = "search" if run.probabilities is not None else "run"
    lead, tiles = None, ()
    if run.summary is not None:
        lead, tiles = _verdict(run), _key_numbers(run, run.summary)
    kicker = f"{method} {verb} report"
    return page.opening(kicker, words.headline(run), lead, tiles)


def _verdict(run: Run) -> str:
    summary = run.summary
    if math.isnan(summary.cost_ratio):
        text = "The run recorded no cost."
    else:
        text = f"The policy is {words.budget_verdict(summary.cost_ratio)}."
    rival = words.nearest_uniform(run)
    if rival is None or math.isnan(summary.accuracy):
        return text
    gain = 100 * (summary.accuracy - rival.accuracy)
    where = "at all that was searched" if words.partly_fixed(run) else "everywhere"
    return (
        f"{text} The same weights with {rival.format} {where}, the best uniform "
        f"policy within the target, reach {words.percent(rival.accuracy)}: "
        f"{abs(gain):.1f} points {'less' if gain >= 0 else 'more'}."
    )


def _key_numbers(run: Run, summary: Summary) -> list[page.Tile]:
    over = summary.cost_ratio >= 1 + 5e-4
    fraction = words.cost_fraction(run, summary.cost_ratio)
    tiles = [("Test accuracy", words.percent(summary.accuracy), _weights_note(run), "")]
    if math.isfinite(fraction):
        verdict = words.budget_verdict(summary.cost_ratio)
        name = f"Cost (uniform {run.config.cost_reference}: 1)"
        tiles.append((name, f"{fraction:.3f}", verdict, "bad" if over else "good"))
    if run.policy and run.config.sites:
        weight, activation = _mean_bits(run)
        remark = f"inputs: {activation:.2f} a number"
        tiles.append(("Mean bits of a weight", f"{weight:.2f}", remark, ""))
    tiles.append(("Time", words.duration(summary.seconds), _effort(summary), ""))
    if math.isfinite(summary.entropy):
        remark = "nats a decision; 0: all decided"
        tiles.append(("Entropy at the end", f"{summary.entropy:.3f}", remark, ""))
    return tiles


def _effort(summary: Summary) -> str:
    """Example: "7 000 steps, 7.1 a second, 2 compilations"."""
    parts = []
    if summary.steps:
        parts.append(f"{summary.steps:,} steps".replace(",", " "))
        if summary.seconds > 0:
            parts.append(f"{summary.steps / summary.seconds:.3g} a second")
    if summary.compile_count is not None:
        noun = "compilation" if summary.compile_count == 1 else "compilations"
        parts.append(f"{summary.compile_count} {noun}")
    return ", ".join(parts)


def _weights_note(run: Run) -> str:
    seed = run.summary.seed
    kind = "no retraining" if run.probabilities is not None else "fixed policy"
    if run.summary.sensitivities is not None:
        kind = "not trained at these formats"
    return kind if seed is None else f"{kind}, seed {seed}"


def _mean_bits(run: Run) -> tuple[float, float]:
    """Mean bits of a weight, and of a number that enters a site."""
    known = [site for site in run.config.sites if site.path in run.policy]
    bits = [[words.storage_bits(n) or 32 for n in run.policy[s.path]] for s in known]
    means = []
    for side, sizes in (
        (0, [site.weight_count for site in known]),
        (1, [site.input_size for site in known]),
    ):
        weighted = sum(b[side] * size for b, size in zip(bits, sizes, strict=True))
        means.append(weighted / max(1, sum(sizes)))
    return means[0], means[1]


def cost_meaning(run: Run) -> str:
    """Returns what the cost axis counts, in a sentence."""
    meanings = {
        "bops": "Cost: bit operations per example, the sum over sites of MACs x weight "
        "bits x input bits,",
        "size": "Cost: bits that the weights and their scales take in storage,",
        "activation_size": "Cost: bits that the inputs of all sites take, an example,",
        "mean_bits": "Cost: the mean bits of all quantizers, each weighing alike,",
        "latency": "Cost: the time that the device model, or a measured table, gives,",
    }
    start = meanings.get(run.config.cost, f"Cost: {run.config.cost},")
    return f"{start} divided by that of {run.config.cost_reference} everywhere."


def uniform_table(run: Run) -> str:
    """Returns the table of uniform policies with the run's own among them."""
    if not run.summary.uniform:
        return '<p class="note">Uniform policies were not measured in this run.</p>'
    own = run.summary
    mine = "this run’s policy"
    measured = [
        (r.cost_ratio, r.accuracy, words.uniform_name(run, r.format))
        for r in own.uniform
    ]
    measured += [(r.cost_ratio, r.accuracy, r.policy) for r in own.trade_off]
    measured.append((own.cost_ratio, own.accuracy, mine))
    measured.sort(key=lambda row: row[0])
    rows = [
        (
            escape(name),
            words.percent(accuracy),
            f"{words.cost_fraction(run, ratio):.3f}",
            words.budget_verdict(ratio),
        )
        for ratio, accuracy, name in measured
    ]
    reference = escape(run.config.cost_reference)
    columns = {
        "formats": "",
        "test accuracy": "number",
        f"cost (uniform {reference}: 1)": "number",
        "budget": "",
    }
    own_row = [name for *_, name in measured].index(mine)
    return page.table(columns, rows, marked=own_row)


def site_table(run: Run) -> str:
    """Returns the section with the table of all sites."""
    sites = run.config.sites
    if not sites:
        return page.section("sites", "All sites", "<p>config.json lists no sites.</p>")
    policy = run.policy or {}
    shares = words.cost_share(sites, policy, run.config.cost)
    largest = max(shares.values(), default=1.0) or 1.0
    known = run.config.cost in words.SHARED_COSTS
    unit = words.COST_NAMES[run.config.cost if known else "bops"]
    columns = {
        "site": "", "op": "", "weight shape": "", "MACs": "number", "weights": "number",
        "weight format": "", "input format": "", f"share of {unit}": "number",
    }  # fmt: skip
    macs = words.count(sum(site.macs for site in sites))
    weights = words.count(sum(site.weight_count for site in sites))
    table = page.table(
        columns,
        [_site_row(site, policy, shares, largest) for site in sites],
        foot=(f"{len(sites)} sites", "", "", macs, weights, "", "", ""),
    )
    return page.section("sites", "All sites", table)


def _site_row(site, policy, shares, largest: float) -> tuple[str, ...]:
    weight, activation = policy.get(site.path, ("–", "–"))
    share = shares.get(site.path, math.nan)
    shown = "–"
    if math.isfinite(share):
        shown = words.percent(share) + page.bar(share, largest)
    return (
        page.code(site.path),
        escape(site.op),
        shape_text(site.weight_shape),
        words.count(site.macs),
        words.count(site.weight_count),
        escape(weight),
        escape(activation),
        shown,
    )


def reproduction(run: Run) -> str:
    """Returns the section with the command that repeats the run and uses its result."""
    command = words.command(run)
    if command is None:
        body = "<p>The run recorded no flags.</p>"
    else:
        body = (
            "<p>This command repeats the run in a new folder DIR; given the run's own "
            f"folder, it resumes.</p><pre><code>{escape(command)}</code></pre>"
        )
    return page.section("reproduce", "How to reproduce", body)


def settings(run: Run) -> str:
    """Returns the section with every flag and the versions of the libraries."""
    parts = []
    if run.config.options:
        listed = escape(", ".join(run.config.options))
        number = len(run.config.decisions)
        parts.append(f"<p>{number} decisions over the options {listed}.</p>")
    if run.config.flags:
        flags = {f"--{k}": words.flag_text(v) for k, v in run.config.flags.items()}
        parts.append(_pairs("flag", "value", flags))
    if run.summary is not None and run.summary.versions:
        parts.append(_pairs("library", "version", run.summary.versions))
    parts = parts or ["<p>None were recorded.</p>"]
    return page.section("settings", "Settings and versions", *parts)


def _pairs(name: str, value: str, pairs: Mapping[str, str]) -> str:
    rows = [[page.code(text) for text in pair] for pair in sorted(pairs.items())]
    return page.table({name: "", value: "value"}, rows)
