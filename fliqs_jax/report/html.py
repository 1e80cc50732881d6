"""The report page of a run: one HTML file that needs no network and no code.

`write_report` is the way in. Sections whose data the run lacks say so in a sentence.
"""

import collections
import pathlib
from html import escape

import numpy as np

from fliqs_jax.report import choices, curves, page, probabilities, sections, words
from fliqs_jax.report.reading import read_run
from fliqs_jax.report.records import Run
from fliqs_jax.report.sensitivity import draw_sensitivity


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes a run's report.html into its workdir and returns the file's path.

    Can be called at any time, also while the run goes on: it shows what there is.

    Args:
      workdir: folder with config.json and the run's other files.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: if `workdir` holds no config.json.
      ValueError: if one of the files is not what a run writes.
    """
    run = read_run(workdir)
    return page.write(pathlib.Path(workdir), words.headline(run), _body(run))


def render_report(run: Run) -> str:
    """Returns the page of a run as text."""
    return page.document(words.headline(run), _body(run))


def _body(run: Run) -> list[str]:
    return [
        sections.head(run),
        formats_section(run),
        trade_off_section(run),
        training_section(run),
        _search(run),
        sections.site_table(run),
        sections.reproduction(run),
        sections.settings(run),
    ]


def formats_section(run: Run) -> str:
    """Returns the section on the formats of every site."""
    title = "Chosen formats"
    if run.policy is None or not run.config.sites:
        return page.section("formats", title, "<p>No policy has been written yet.</p>")
    caption = (
        "Sites in the order in which the network calls them. Left: how many bits a "
        "weight and an input number take. Right: how much of the network's arithmetic "
        "(MACs: multiply-accumulate operations per example) and of its weights the "
        "site holds. Few bits can cost accuracy at any site; they save most where the "
        "share is large."
    )
    figure = choices.draw_formats(run)
    plot = page.figure(figure, "sites", "Format of each site", caption)
    return page.section("formats", title, f"<p>{escape(_format_counts(run))}</p>", plot)


def _format_counts(run: Run) -> str:
    """Example: "2 sites. Weights: 1 × int4, 1 × int8. Inputs: 2 × uint8."."""
    sentences = []
    for side, index in (("Weights", 0), ("Inputs", 1)):
        tally = collections.Counter(pair[index] for pair in run.policy.values())
        order = sorted(tally, key=lambda name: (words.storage_bits(name) or 99, name))
        listed = ", ".join(f"{tally[name]}\u00a0×\u00a0{name}" for name in order)
        sentences.append(f"{side}: {listed}")
    total = len(run.policy)
    return f"{total} sites. " + ". ".join(sentences) + "."


def trade_off_section(run: Run) -> str:
    """Returns the section on accuracy against cost."""
    title = "Accuracy against cost"
    if not choices.has_trade_off(run):
        text = "<p>Appears when the run has finished and its cost is known.</p>"
        return page.section("trade-off", title, text)
    caption = (
        f"Up is more accurate, left is cheaper. {escape(sections.cost_meaning(run))} "
    )
    if run.summary.uniform:
        caption += (
            "Grey points give every site one and the same format, with the weights "
            "that this run ended with; they were not trained for that format, so a run "
            "of their own may do better. The dotted line joins the best of each cost."
        )
    if words.partly_fixed(run):
        caption += " Pinned sites, and inputs kept in fp32, stay as they are in all."
    if run.summary.trade_off:
        caption += (
            " Small orange points are what the method chooses for other budgets; each "
            "is a policy file in <code>trade_off/</code>, to train at or to apply."
        )
    figure = choices.draw_accuracy_cost(run)
    plot = page.figure(figure, "cost", "Test accuracy against cost", caption)
    return page.section("trade-off", title, plot, sections.uniform_table(run))


def training_section(run: Run) -> str:
    """Returns the section with the curves of the training."""
    title = "Training"
    if not curves.has_training(run):
        if _allocated(run):
            return ""
        text = "<p>No steps have been recorded yet.</p>"
        return page.section("training", title, text)
    caption = "Pale: as recorded, thinned in long runs; full colour: running mean."
    if run.config.phases is not None and run.probabilities is not None:
        caption = (
            "Shaded: the warm-up (formats drawn at random, only the weights "
            "learn) and the last phase (the policy is fixed, the weights "
            "settle on it). Between them the search. " + caption
        )
    return learning_section(run, title, caption, _warnings(run))


def learning_section(run: Run, title: str, caption: str, *above: str) -> str:
    """Returns the section of a run's curves of learning; empty where it has none."""
    if not curves.has_training(run):
        return ""
    figure = curves.draw_training(run)
    plot = page.figure(figure, "training", "Accuracy and loss", caption)
    return page.section("training", title, *above, plot)


def _warnings(run: Run) -> str:
    texts = []
    losses = run.train.get("loss")
    broken = [] if losses is None else losses.steps[~np.isfinite(losses.values)]
    if len(broken):
        texts.append(
            f"The loss was not a finite number in {len(broken)} of {len(losses.steps)} "
            f"rows, first at step {broken[0]}; the curves leave those rows out."
        )
    if run.damaged_rows:
        texts.append(
            f"metrics.jsonl has {run.damaged_rows} unreadable rows, as a killed run "
            "leaves them; they are left out."
        )
    return "".join(f'<p class="warning">{text}</p>' for text in texts)


def _search(run: Run) -> str:
    title = "How the formats were found" if _allocated(run) else "How the search went"
    parts = search_figures(run)
    if run.probabilities is not None:
        parts += probability_figures(run)
    if _allocated(run):
        parts.append(_sensitivity_figure(run))
    if not parts:
        parts = ["<p>There was no search: the run trained one fixed policy.</p>"]
    return page.section("search", title, *parts)


def _allocated(run: Run) -> bool:
    """Returns whether the formats were allocated by measured sensitivities."""
    return run.summary is not None and run.summary.sensitivities is not None


def _sensitivity_figure(run: Run) -> str:
    found, config = run.summary.sensitivities, run.config
    figure = draw_sensitivity(
        config.decisions, config.options, found.values, found.chosen, unit=found.unit
    )
    caption = (
        f"What each option costs a decision alone ({escape(found.unit)}), all others "
        "in float, on training images. The formats chosen have the least sum within "
        "the budget; nothing was trained at them. The numbers are in "
        "<code>sensitivity.csv</code>."
    )
    return page.figure(figure, "sensitivity", "Sensitivities", caption)


def search_figures(run: Run) -> list[str]:
    """Returns the figure with the curves of a search, if there was one."""
    if not curves.has_search(run):
        return []
    label, caption = _search_caption(run)
    return [page.figure(curves.draw_search(run), "search", label, caption)]


def _search_caption(run: Run) -> tuple[str, str]:
    if run.probabilities is not None and run.probabilities.certain:
        return "Cost and mean bits", (
            "Cost: that of the bits trained at each step; it never exceeds the budget, "
            "1. The means weigh each weight, and each number that enters a site, alike."
        )
    return "Expected cost, reward, entropy", (
        "Expected cost: the mean over the policies that the controller would draw; "
        "it should settle at 1. Reward: accuracy or negative loss, less the "
        "penalty for missing the target. Entropy: how undecided the controller is; "
        "0 means that every choice is made."
    )


def probability_figures(run: Run) -> list[str]:
    """Returns the figures of a controller's probabilities, or of bits that were set."""
    if run.probabilities.certain:
        caption = (
            "One row a decision: the bits that it was trained with. The white dot "
            "marks the step since which it has had those at the row's right end."
        )
        bits = probabilities.draw_expected_bits(run)
        return [page.figure(bits, "bits", "Bits over the training", caption)]
    overview = (
        "One row a decision. The dashed line ends the warm-up; the white dot marks the "
        "step since which the choice at the row's right end has been the most probable "
        "one. An arrow leads to the final policy's format where it is another, as the "
        "most probable choices together would have missed the budget."
    )
    detail = (
        "One panel a decision, one row an option, in the order of the search space. "
        "The option written beside a row is the most probable one at the end."
    )
    bits = probabilities.draw_expected_bits(run)
    options = probabilities.draw_probabilities(run)
    return [
        page.figure(bits, "bits", "Expected bits", overview),
        page.figure(options, "options", "Probabilities", detail),
    ]
