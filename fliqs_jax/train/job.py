"""The training job around a searcher: data, devices, checkpoints, logs, resume.

A searcher says what a step does and what happens between steps; the job feeds it, saves
it and continues it where it stopped. Nothing here knows how a search decides.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Int, PyTree

from fliqs_jax.checks import check_at_least, check_not_negative, check_one_of
from fliqs_jax.data import BatchSource, Dataset, batches
from fliqs_jax.data.batches import BatchOrder
from fliqs_jax.train import processes
from fliqs_jax.train._leaves import digest
from fliqs_jax.train.checkpoints import Checkpoints
from fliqs_jax.train.evaluation import Evaluable, Evaluator
from fliqs_jax.train.journal import Journal, Timer
from fliqs_jax.train.loop import Dispatcher, Source, segments
from fliqs_jax.train.mapping import (
    MAPPINGS,
    Step,
    check_batch_size,
    local_rows,
    replicate,
    shard_batch,
)
from fliqs_jax.train.metrics import MetricsWriter


@dataclasses.dataclass(frozen=True)
class Hook:
    """Work between steps: `run(state, batch)` before each of `steps`."""

    steps: frozenset[int]
    run: Callable[[PyTree, PyTree], PyTree]
    # Whether training ends here, ahead of its last step, asked after `run`.
    ends_run: Callable[[PyTree], bool] = lambda state: False


@runtime_checkable  # the tests check annotations while running
class Searcher(Protocol):
    """What a method gives to the job. States are pytrees of arrays with a `step`."""

    classifier: Evaluable

    def init(self, key: Array, images: ArrayLike) -> PyTree:
        """Returns the state before step 0."""

    def step(self, state: PyTree, batch: PyTree) -> tuple[PyTree, dict[str, Array]]:
        """Takes one training step on one device; metrics hold a scalar `loss`."""

    def hooks(self, steps: int, compile: Callable[[Step], Step]) -> list[Hook]:
        """Returns the work between steps; `compile` maps a step over the devices."""

    def current_formats(self, state: PyTree) -> PyTree:
        """Returns the formats that an evaluation at this moment should use."""

    def progress(self, state: PyTree) -> dict[str, Any]:
        """Returns what to log of the state: scalars, and lists for the report."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How a job runs: how long, on what batches, and what is kept of it."""

    steps: int
    batch_size: int = 128
    seed: int = 0
    mapping: str = "shard_map"
    steps_per_call: int | None = None  # None: 1 on CPU, up to 20 elsewhere
    log_every: int = 50  # steps
    evaluate_every: int = 1000  # steps, on the validation split; 0 is never
    checkpoint_every: int = 500  # steps
    keep: int = 3  # checkpoints
    judge_on_validation: bool = False  # each batch also holds held-out `judge_…`
    recalibration_batches: int = 20  # for batch statistics, before every evaluation
    profile_dir: str | None = None  # trace of a few steps, for TensorBoard

    def __post_init__(self):
        check_at_least(1, steps=self.steps, batch_size=self.batch_size, keep=self.keep)
        check_at_least(1, log_every=self.log_every)
        check_at_least(1, checkpoint_every=self.checkpoint_every)
        check_not_negative(evaluate_every=self.evaluate_every)
        check_not_negative(recalibration_batches=self.recalibration_batches)
        check_one_of(MAPPINGS, mapping=self.mapping)
        if self.mapping == "pmap" and processes.are_several():
            raise ValueError(
                "mapping pmap is for one process, got "
                f"{jax.process_count()}: use shard_map, which gives the same result"
            )

    def make_evaluator(
        self, classifier: Evaluable, dataset: Dataset, mesh: Mesh
    ) -> Evaluator:
        """Returns an evaluator of the job's batches, on the devices."""
        return Evaluator(
            classifier,
            dataset,
            batch_size=self.batch_size,
            recalibration_batches=self.recalibration_batches,
            mesh=mesh,
        )


def run_job(
    searcher: Searcher,
    dataset: Dataset,
    settings: JobSettings,
    *,
    workdir: str,
    mesh: Mesh,
    say: Callable[[str], None] = print,
) -> tuple[PyTree, Evaluator, dict[str, Any]]:
    """Trains to the end, from the last checkpoint where the workdir has one.

    Args:
      searcher: the method.
      dataset: train and validation splits are used; the test split is not touched.
      settings: how to run.
      workdir: holds `checkpoints/` and `metrics.jsonl`; already claimed by this run.
      mesh: the devices.
      say: receives the few lines that a person wants to read.

    Returns:
      The last state (with statistics recalibrated for its formats; also the last
      checkpoint), the evaluator, and facts for the summary: `seconds` of training over
      all sessions, and `compile_count`, the programs compiled for the step in this one.

    Raises:
      TrainingDiverged: if the loss became NaN or infinite.
      Preempted: if one of several processes was told to terminate.
    """
    check_batch_size(settings.batch_size, mesh)
    say = processes.spoken_once(say)
    source = _source(dataset, settings, local_rows(settings.batch_size, mesh))
    key = jax.random.key(settings.seed)
    state = searcher.init(key, _first_image(dataset, settings))
    processes.check_same(lambda: digest(state), "initial state")
    state = replicate(state, mesh)
    dispatch = Dispatcher(
        searcher.step,
        mesh,
        mapping=settings.mapping,
        steps_per_call=settings.steps_per_call or _steps_per_call(settings.mapping),
    )
    hooks = searcher.hooks(
        settings.steps, functools.partial(MAPPINGS[settings.mapping], mesh=mesh)
    )
    evaluator = settings.make_evaluator(searcher.classifier, dataset, mesh)
    timer, start = Timer(), 0
    checkpoints = Checkpoints(
        f"{workdir}/checkpoints", keep=settings.keep, every=settings.checkpoint_every
    )
    with checkpoints:
        restored = checkpoints.restore(_saved(state, timer))
        if restored is not None:
            start, saved = restored
            state, timer.before = saved["state"], float(saved["seconds"])
            say(f"resumed at step {start} of {settings.steps}")
        resume_step = None if restored is None else start
        with MetricsWriter(workdir, resume_step=resume_step) as writer:
            journal = Journal(
                searcher.progress, writer, start=start, steps=settings.steps
            )
            session = _Session(
                searcher=searcher,
                settings=settings,
                source=source,
                mesh=mesh,
                dispatch=dispatch,
                hooks=hooks,
                evaluator=evaluator,
                validates=len(dataset.validation) > 0,
                checkpoints=checkpoints,
                journal=journal,
                timer=timer,
            )
            if start < settings.steps:
                state = session.finish(*session.train(state, start))
            journal.close()
    facts = {"seconds": timer.total(), "compile_count": dispatch.compile_count}
    return state, evaluator, facts


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Session:
    """The steps that one process takes of a run, and what happens between them."""

    searcher: Searcher
    settings: JobSettings
    source: Source
    mesh: Mesh
    dispatch: Dispatcher
    hooks: list[Hook]
    evaluator: Evaluator
    validates: bool  # there is a validation split
    checkpoints: Checkpoints
    journal: Journal
    timer: Timer

    def train(self, state: PyTree, start: int) -> tuple[PyTree, bool]:
        """Returns the state after the last step, and whether a hook ended the run."""
        steps = self.settings.steps
        cuts = list(segments(start, steps, _events(self.hooks, self.settings)))
        profiled = cuts[min(1, len(cuts) - 1)]  # the second, once compiled
        for look, (begin, end) in enumerate(cuts):
            state = self._run_hooks(begin, state)
            if any(h.ends_run(state) for h in self.hooks if begin in h.steps):
                return state, True
            with _profile(self.settings.profile_dir, active=(begin, end) == profiled):
                state, metrics = self.dispatch(state, self.source, begin, end)
            self.journal.add(metrics)
            if end % self.settings.log_every == 0 or end == steps:
                self.journal.write(end, state, self.timer)
            if end < steps:
                self._look_after(state, end, look)
        return state, False

    def finish(self, state: PyTree, ended: bool) -> PyTree:
        """Returns the state with fresh batch statistics, judged and saved."""
        steps = self.settings.steps
        if not ended:
            state = self._run_hooks(steps, state)
        formats = self.searcher.current_formats(state)
        state = self.evaluator.recalibrated(state, formats)
        self._validate(state, formats, steps)
        self.checkpoints.save(steps, _saved(state, self.timer))
        return state

    def _look_after(self, state: PyTree, step: int, look: int) -> None:
        """Evaluates and saves where it is time to, and stops where it was told to."""
        every = self.settings.evaluate_every
        if every and step % every == 0:
            formats = self.searcher.current_formats(state)
            judged = self.evaluator.recalibrated(state, formats)
            self._validate(judged, formats, step)
        self.checkpoints.maybe_save(step, _saved(state, self.timer))
        if processes.preempted(look):
            self.checkpoints.save(step, _saved(state, self.timer))
            raise processes.Preempted(
                f"told to stop (SIGTERM), saved step {step} of {self.settings.steps}:"
                " start the same command again to go on"
            )

    def _validate(self, state: PyTree, formats: PyTree, step: int) -> None:
        if self.validates:
            self.journal.evaluation(step, self.evaluator.validate(state, formats))

    def _run_hooks(self, step: int, state: PyTree) -> PyTree:
        for hook in self.hooks:
            if step in hook.steps:
                batch = shard_batch(self.source.batch(step), self.mesh)
                state = hook.run(state, batch)
        return state


class _PairedSource:
    """Training batches, each with a batch of held-out examples beside it."""

    def __init__(self, training: BatchSource, held_out: BatchSource):
        self._training, self._held_out = training, held_out

    def batch(self, step: int) -> dict[str, np.ndarray]:
        judged = self._held_out.batch(step)
        renamed = {f"judge_{name}": array for name, array in judged.items()}
        return {**self._training.batch(step), **renamed}


def _first_image(dataset: Dataset, settings: JobSettings) -> np.ndarray:
    """The same in every process: the variables of some models depend on it."""
    order = BatchOrder(
        num_examples=len(dataset.train),
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    images, _ = dataset.train.read(order.indices(0)[:1])
    return images


def _source(
    dataset: Dataset,
    settings: JobSettings,
    rows: Int[np.ndarray, "rows"] | slice,
) -> Source:
    """Returns this process's part of the training batches."""
    drawn = {"batch_size": settings.batch_size, "seed": settings.seed, "rows": rows}
    training = batches(dataset.train, **drawn)
    if not settings.judge_on_validation:
        return training
    if len(dataset.validation) < settings.batch_size:
        raise ValueError(
            f"judge_on_validation needs {settings.batch_size} held-out examples, the "
            f"validation split has {len(dataset.validation)}: raise validation_fraction"
        )
    return _PairedSource(training, batches(dataset.validation, **drawn))


def _saved(state: PyTree, timer: Timer) -> dict[str, PyTree]:
    return {"state": state, "seconds": np.float64(timer.total())}


def _steps_per_call(mapping: str) -> int:
    # Convolutions inside lax.scan are 20 to 35 times slower on CPU.
    return 1 if jax.default_backend() == "cpu" or mapping == "pmap" else 20


def _events(hooks: list[Hook], settings: JobSettings) -> set[int]:
    """Steps at which the host has something to do."""
    periods = {settings.log_every, settings.checkpoint_every, settings.evaluate_every}
    regular = {
        step for period in periods - {0} for step in range(0, settings.steps, period)
    }
    return regular.union(*(hook.steps for hook in hooks))


@contextlib.contextmanager
def _profile(directory: str | None, *, active: bool) -> Iterator[None]:
    if directory is None or not active:
        yield
        return
    with jax.profiler.trace(directory):
        yield
