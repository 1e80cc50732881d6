"""SimQ-NAS: a joint search of sub-network and formats, from plain objects to its front.

Puts the pieces together: a trained super-network, the joint space, first candidates by
sensitivity, LINAS (or a rival) on the validation split, and the front on the test split
beside uniform policies. Training the super-network is `supernet_training`'s; which
point to take is in `joint.front`, taking it in `runs.extracted_point`.

Reference: SimQ-NAS, 2023, https://arxiv.org/abs/2312.13301
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, PyTree

from fliqs_jax.checks import check_at_least, check_one_of, check_within
from fliqs_jax.costs import SiteCost
from fliqs_jax.data import Dataset, batches
from fliqs_jax.models.supernets import SuperNetwork
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers import linas
from fliqs_jax.searchers.joint.front import Point
from fliqs_jax.searchers.joint.seeds import (
    sensitivity_features,
    sensitivity_seeds,
    uniform_vectors,
)
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.static_calibration import PtqSettings
from fliqs_jax.searchers.joint.subnetwork_evaluation import PopulationEvaluator
from fliqs_jax.searchers.multi_objective.decisions import Decisions
from fliqs_jax.searchers.multi_objective.log import SearchLog, evaluate_new
from fliqs_jax.searchers.sensitivities.meter import TrainedState, calibrate_inputs
from fliqs_jax.searchers.sensitivities.table import MEASURES, make_meter, measured_table
from fliqs_jax.train import processes
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.metrics import ProgressLine
from fliqs_jax.train.phase_clock import PhaseClock

SEARCHERS = {"linas": linas.search, "nsga2": linas.nsga2, "random": linas.random_search}
REFERENCES = ("int8", "fp32")  # uniform policies that every run has
_SEARCH_LOG = "search.csv"
_WORST = 1.1  # of the largest price in the space, in the hypervolume's reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimqSettings:
    """How architecture and formats are searched, and how candidates are quantized."""

    searcher: str = "linas"
    evaluations: int = 250
    population: int = 50
    sensitivity: str = "fisher"  # a measure of `sensitivities.table`, or "none"
    sensitivity_batches: int = 4  # of training images
    seeded_fraction: float = 0.5  # of the first generation; needs a sensitivity
    sensitivity_features: bool = True  # columns for the predictors of LINAS
    inner_evaluations: int = 20_000  # of the predictors, a generation
    # Percentage points of validation accuracy that candidates may lose against the full
    # network at `reference_format` to be searched for; None searches the whole front.
    searched_loss: float | None = None
    reference_format: str = "int8"
    weight_modes: bool = False  # also choose asymmetric grids for weights
    ptq: PtqSettings = PtqSettings()
    recalibration_batches: int = 4
    recalibrate_quantized: bool = True
    per_device: int | None = None  # candidates at a time; see `PopulationEvaluator`
    reference_networks: int = 8  # of the front, judged at uniform formats, too

    def __post_init__(self):
        check_one_of(SEARCHERS, searcher=self.searcher)
        check_one_of([*MEASURES, "none"], sensitivity=self.sensitivity)
        check_at_least(1, evaluations=self.evaluations)
        check_at_least(2, population=self.population)
        check_at_least(1, sensitivity_batches=self.sensitivity_batches)
        check_at_least(1, inner_evaluations=self.inner_evaluations)
        check_at_least(0, reference_networks=self.reference_networks)
        if self.searched_loss is not None and not self.searched_loss >= 0.0:
            raise ValueError(
                "searched_loss must be 0 or more percentage points, got"
                f" {self.searched_loss}"
            )
        check_within("[0, 1]", seeded_fraction=self.seeded_fraction)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FoundFront:
    """What a search left: its evaluations, and points judged on both splits."""

    space: JointSpace  # with the formats of REFERENCES as further options
    result: linas.ParetoResult
    points: tuple[Point, ...]  # of the front, cheapest first
    full: Mapping[str, Point]  # the full network, by its uniform format
    # Some of the front's sub-networks at uniform formats, by format.
    subnetworks: Mapping[str, tuple[Point, ...]]
    reference: Float[np.ndarray, "M"]  # of the hypervolume
    curve: Float[np.ndarray, "N"]  # hypervolume after each evaluation, of the whole box
    # From a vector to the full network's variables and formats, as they were evaluated.
    quantized: Callable[[np.ndarray], tuple[PyTree, SiteFormats]]
    seconds: Mapping[str, float]  # by phase
    compile_count: int  # of the evaluation's programs, in this process


def joint_spaces(
    net: SuperNetwork,
    make_space: Callable[[Sequence[str]], SearchSpace],
    formats: Sequence[str],
    *,
    weight_modes: bool,
) -> tuple[JointSpace, JointSpace]:
    """Returns the space to search, and one that has the references' formats as well.

    A vector of the first means the same in the second: options are added at the end.
    """
    added = [name for name in REFERENCES if name not in formats]
    narrow, wide = (
        JointSpace(net, make_space(names), weight_modes=weight_modes)
        for names in (list(formats), [*formats, *added])
    )
    return narrow, wide


def check_objectives(objectives: Sequence[str], prices: Mapping[str, SiteCost]) -> None:
    """Refuses objectives that are no search: none of a price, or unknown ones."""
    wrong = [name for name in objectives if name not in ("error", *prices)]
    doubled = len(set(objectives)) < len(objectives)
    if wrong or doubled or "error" not in objectives or len(objectives) < 2:
        raise ValueError(
            "objectives must be 'error' and one or more different ones of"
            f" {', '.join(prices)}, got {', '.join(objectives)}"
        )


def search_front(
    spaces: tuple[JointSpace, JointSpace],
    state: TrainedState,
    dataset: Dataset,
    *,
    prices: Mapping[str, SiteCost],
    objectives: Sequence[str],
    folder: pathlib.Path,
    batch_size: int,
    seed: int,
    settings: SimqSettings = SimqSettings(),
    say: Callable[[str], None] = print,
) -> FoundFront:
    """Searches, then judges the front on the test split beside uniform policies.

    Every evaluation is in a log of the folder (`search.csv`; `references.csv` and
    `test.csv` for what is judged): a killed run goes on with nothing evaluated twice,
    a finished one with more `evaluations`. Several processes evaluate together, each
    its share of the candidates.

    Args:
      spaces: from `joint_spaces`.
      state: trained variables of the full network.
      dataset: validation images for the search, test images for its front, training
        images for batch statistics and ranges.
      prices: what points cost, by name.
      objectives: "error" and names of prices, from `check_objectives`.
      folder: of the run, claimed already.
      batch_size: of all passes.
      seed: of the search.
      settings: of the method.
      say: receives what a person wants to read.

    Raises:
      ValueError: if a log is another search's, or an evaluation not finite.
      Preempted: if one of several processes was told to terminate.
    """
    check_objectives(objectives, prices)
    say = processes.spoken_once(say)
    narrow, wide = spaces
    clock = PhaseClock(folder / "seconds.json")
    own = [name for name in objectives if name != "error"]
    evaluator = PopulationEvaluator(
        wide,
        state,
        dataset,
        costs={name: prices[name] for name in own},
        ptq=settings.ptq,
        batch_size=batch_size,
        recalibration_batches=settings.recalibration_batches,
        recalibrate_quantized=settings.recalibrate_quantized,
        per_device=settings.per_device,
    )
    table = None
    if settings.sensitivity != "none":
        images = batches(dataset.train, batch_size=batch_size, seed=seed)
        table = processes.on_main(
            lambda: _sensitivities(
                narrow, state, dataset, images, folder, settings, say
            )
        )
        clock.lap("sensitivity")
    guided = _guided(narrow, table, prices[own[0]], settings)
    judge = _Judge(evaluator, dataset, prices, folder, narrow)
    guided["limits"] = _limits(judge, settings)
    result = _searched(narrow, judge, guided, clock, folder, seed, settings, say)
    front = result.vectors[result.front]
    say(f"judging the {len(front)} points of the front on the test split")
    points = sorted(judge(front), key=lambda p: p.prices[own[0]])
    say("judging uniform formats on it, of the full network and of the front's")
    full = {name: judge(_uniform(wide, name))[0] for name in wide.space.option_names}
    subnetworks = _uniform_subnetworks(judge, wide, narrow, points, settings)
    clock.lap("judging")
    reference = _worst(full, narrow, own, dataset)
    curve = linas.hypervolume_curve(result.values, reference) / np.prod(reference)
    return FoundFront(
        space=wide,
        result=result,
        points=tuple(points),
        full=full,
        subnetworks=subnetworks,
        reference=reference,
        curve=curve,
        quantized=evaluator.quantized,
        seconds=dict(clock.seconds),
        compile_count=evaluator.compile_count,
    )


def _guided(space, table, cost, settings) -> dict[str, Any]:
    """Returns what a searcher is told beside what all are told."""
    told: dict[str, Any] = {}
    if table is not None:
        told["initial"] = _first_vectors(space, table, cost, settings)
    if settings.searcher == "linas":
        told["inner_evaluations"] = settings.inner_evaluations
        if table is not None and settings.sensitivity_features:
            told["features"] = sensitivity_features(space, table)
    return told


def _uniform(space, name) -> Int[np.ndarray, "1 D"]:
    """The full network at one format."""
    return uniform_vectors(
        space, space.net.full, [space.space.option_names.index(name)]
    )


def _limits(judge, settings) -> dict[str, float]:
    """The largest error that is searched for, if one is asked for."""
    if settings.searched_loss is None:
        return {}
    reference = judge.validation(_uniform(judge.space, settings.reference_format))
    return {"error": float(reference[0, 0] + settings.searched_loss / 100.0)}


def _searched(space, judge, guided, clock, folder, seed, settings, say):
    """Searches to the end, or goes on where the log ends."""
    looks = itertools.count()
    with ProgressLine(settings.evaluations) as line:
        done = len(judge.log.read()[0])

        def evaluate(vectors):
            nonlocal done
            if processes.preempted(next(looks)):
                raise processes.Preempted(
                    f"told to stop (SIGTERM) after {done} of {settings.evaluations}"
                    " evaluations: start the same command again to go on"
                )
            values = judge.objectives(vectors)
            clock.lap("search")
            done += len(vectors)
            line.update(done, {"accuracy": float(1.0 - values[:, 0].min())})
            return values

        return SEARCHERS[settings.searcher](
            space.counts,
            evaluate,
            judge.evaluator.objectives,
            evaluations=settings.evaluations,
            population=settings.population,
            seed=seed,
            active=space.active,
            log=folder / _SEARCH_LOG,
            batch_size=judge.evaluator.chunk_size,
            say=say,
            **guided,
        )


def _sensitivities(space, state, dataset, source, folder, settings, say):
    """Returns what each format costs each decision of the full network alone."""
    classifier = Classifier.of(
        QuantizedModel(space.net.model, sites=space.net.sites, per_channel=True),
        dataset,
    )
    images = [source.batch(number) for number in range(settings.sensitivity_batches)]
    calibration = calibrate_inputs(classifier, state, space.space, images)
    meter = make_meter(
        settings.sensitivity, classifier, state, space.space, calibration, images
    )
    return measured_table(meter, space.space, folder, say)[0]


def _first_vectors(space, table, cost, settings) -> Int[np.ndarray, "N D"]:
    """Both ends at every uniform format, then candidates by sensitivity."""
    count = round(settings.seeded_fraction * settings.population)
    options = list(range(space.space.num_options))
    ends = [
        uniform_vectors(space, choice, options)
        for choice in (space.net.full, space.net.smallest)
    ]
    uniform = np.concatenate(ends)[:count]
    seeds = sensitivity_seeds(space, table, cost, count=count - len(uniform))
    return np.concatenate([uniform, seeds])


class _Judge:
    """Points of vectors, on both splits; what was evaluated before is not again."""

    def __init__(self, evaluator, dataset, prices, folder, searched):
        space = evaluator.space
        decisions = Decisions(space.counts, space.active)
        self.space, self.evaluator, self._prices = space, evaluator, prices
        self._references = SearchLog(
            folder / "references.csv", decisions, evaluator.objectives
        )
        self.log = SearchLog(
            folder / _SEARCH_LOG,
            Decisions(searched.counts, searched.active),
            evaluator.objectives,
        )
        self._test = functools.partial(
            SearchLog(folder / "test.csv", decisions, ["error"]).evaluated,
            evaluate=lambda vectors: (
                1.0 - evaluator.accuracies(vectors, split=dataset.test)[:, None]
            ),
            batch_size=evaluator.chunk_size,
        )

    def validation(self, vectors: np.ndarray) -> Float[np.ndarray, "N M"]:
        """Returns the objectives by the validation split, of references as well."""
        return self._references.evaluated(
            vectors,
            self.evaluator,
            known=self.log.read(),
            batch_size=self.evaluator.chunk_size,
        )

    def objectives(self, vectors: np.ndarray) -> Float[np.ndarray, "N M"]:
        """Evaluates for the search, which keeps a log of its own."""
        return evaluate_new(vectors, self.evaluator, self._references.read())

    def __call__(self, vectors: np.ndarray) -> list[Point]:
        validation, test = self.validation(vectors), self._test(vectors)
        return [
            Point(
                vector=vector,
                validation_accuracy=float(1.0 - seen[0]),
                test_accuracy=float(1.0 - unseen[0]),
                prices=self.space.prices(vector, self._prices),
            )
            for vector, seen, unseen in zip(vectors, validation, test, strict=True)
        ]


def _uniform_subnetworks(judge, wide, narrow, points, settings):
    """Judges sub-networks of the front, spread evenly along it, at uniform formats."""
    choices = np.array([wide.split(point.vector).choice for point in points])
    _, first = np.unique(choices, axis=0, return_index=True)
    choices = choices[np.sort(first)]
    count = min(settings.reference_networks, len(choices))
    some = choices[np.linspace(0, len(choices) - 1, count).round().astype(int)]
    names = dict.fromkeys([*narrow.space.option_names, "int8"])
    found = {}
    for name in names if count else ():
        option = [wide.space.option_names.index(name)]
        vectors = np.concatenate([uniform_vectors(wide, c, option) for c in some])
        found[name] = tuple(judge(vectors))
    return found


def _worst(full, narrow, own, dataset) -> Float[np.ndarray, "M"]:
    """The hypervolume's reference, known before the search: chance, and the dearest."""
    chance = 1.0 - 1.0 / dataset.num_classes
    dearest = [
        max(full[option].prices[name] for option in narrow.space.option_names)
        for name in own
    ]
    return np.array([chance, *(_WORST * np.array(dearest))])


def front_summary(found: FoundFront) -> dict[str, Any]:
    """Returns what `summary.json` says of a search, apart from the point taken."""
    size = len(found.curve)
    at = np.unique(np.linspace(1, size, min(size, 100)).round().astype(int))
    return {
        "evaluations": size,
        "exhausted": found.result.exhausted,
        "objectives": list(found.result.objectives),
        "hypervolume": float(found.curve[-1]),
        "hypervolume_reference": found.reference.tolist(),
        "hypervolume_curve": [[int(n), float(found.curve[n - 1])] for n in at],
    }
