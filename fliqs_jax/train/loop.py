"""Dispatches training steps between host events, and stops when numbers go wrong.

Host events (logging, calibration, a checkpoint, fixing the policy) happen at known step
numbers; between two of them the host only feeds batches. Nothing here knows the method.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from fliqs_jax.checks import check_at_least, check_one_of
from fliqs_jax.train.mapping import MAPPINGS, Step, scan_steps, shard_batch

# Calls that may be on their way at once. XLA lets 32 wait for a device of the CPU; the
# next one then blocks a thread that the all-reduce of several devices may need.
_CALLS_AHEAD = 16


@runtime_checkable  # the tests check annotations while running
class Source(Protocol):
    """Batches by step number."""

    def batch(self, step: int) -> dict[str, np.ndarray]: ...


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


def segments(start: int, stop: int, events: set[int]) -> Iterator[tuple[int, int]]:
    """Yields the stretches of steps from `start` to `stop`, cut at the events.

    Example:
      >>> list(segments(2, 10, {0, 5, 10, 15}))
      [(2, 5), (5, 10)]
    """
    cuts = sorted({start, stop} | {event for event in events if start < event < stop})
    yield from zip(cuts[:-1], cuts[1:], strict=True)


class Dispatcher:
    """Runs the compiled step over stretches of training and counts its compilations.

    Args:
      step: per-device step, see `fliqs_jax.train.mapping`.
      mesh: the devices.
      mapping: "shard_map" or "pmap".
      steps_per_call: steps inside one compiled call. 1 on CPU, where convolutions are
        20 to 35 times slower inside `lax.scan`.
    """

    def __init__(
        self,
        step: Step,
        mesh: Mesh,
        *,
        mapping: str = "shard_map",
        steps_per_call: int = 1,
    ):
        check_one_of(MAPPINGS, mapping=mapping)
        check_at_least(1, steps_per_call=steps_per_call)
        if steps_per_call > 1 and mapping == "pmap":
            raise ValueError(
                f"steps_per_call={steps_per_call} needs mapping shard_map, got pmap"
            )
        self._mesh = mesh
        self._steps_per_call = steps_per_call
        self.compile_count = 0
        self._one = MAPPINGS[mapping](self._counted(step), mesh)
        self._many = MAPPINGS["shard_map"](
            self._counted(scan_steps(step)), mesh, leading=1
        )

    def _counted(self, step: Step) -> Step:
        def counted(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
            self.compile_count += 1  # runs when traced, not when executed
            return step(state, batch)

        return counted

    def __call__(
        self, state: PyTree, source: Source, start: int, stop: int
    ) -> tuple[PyTree, dict[str, np.ndarray]]:
        """Takes the steps `start`…`stop - 1`; returns the state and metrics by step.

        Raises:
          TrainingDiverged: if a loss was not finite, naming the first such step.
        """
        collected, at = [], start
        while at < stop:
            if self._steps_per_call > 1 and stop - at >= self._steps_per_call:
                taken = self._steps_per_call
                batches = [source.batch(step) for step in range(at, at + taken)]
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
                batch = shard_batch(stacked, self._mesh, leading=1)
                state, metrics = self._many(state, batch)
            else:
                taken = 1
                batch = shard_batch(source.batch(at), self._mesh)
                state, metrics = self._one(state, batch)
                metrics = jax.tree.map(lambda leaf: leaf[None], metrics)
            collected.append(metrics)
            if len(collected) >= _CALLS_AHEAD:
                jax.block_until_ready(collected[-_CALLS_AHEAD])
            at += taken
        collected = jax.device_get(collected)
        metrics = {
            name: np.concatenate([chunk[name] for chunk in collected])
            for name in collected[0]
        }
        check_finite(metrics["loss"], start)
        return state, metrics


def check_finite(losses: np.ndarray, start: int) -> None:
    """Raises TrainingDiverged naming the first step whose loss is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise TrainingDiverged(
            f"loss is {losses[bad[0]]} at step {start + bad[0]}: lower the learning "
            "rate or leave out the narrowest formats; the last checkpoint is kept"
        )
