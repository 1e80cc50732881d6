"""The table of sensitivities by name of a measure, and kept while it is measured.

What is measured and how is in `meter` and `fisher`; this is for runs that want a
table in their folder, whichever measure they were told.
"""

import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.calibration import Calibration
from fliqs_jax.searchers.sensitivities.fisher import FisherMeter
from fliqs_jax.searchers.sensitivities.meter import (
    SensitivityMeter,
    TrainedState,
    kl_divergence,
    logit_error,
    loss_change,
)
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.metrics import ProgressLine
from fliqs_jax.train.workdir import read_json, write_json

_BY_RUNNING = {"loss": loss_change, "kl": kl_divergence, "mse": logit_error}
# What a value is, and its unit.
MEASURES = {
    "loss": "loss change (nats)",
    "kl": "KL divergence of the predictions (nats)",
    "mse": "mean squared error of the logits",
    "fisher": "Fisher estimate of the loss change (nats)",
}
_ROWS = "sensitivity_rows.json"  # measured so far, by decision

Meter = SensitivityMeter | FisherMeter


def make_meter(
    measure: str,
    classifier: Classifier,
    state: TrainedState,
    space: SearchSpace,
    calibration: Calibration,
    batches: Sequence[dict],
) -> Meter:
    """Returns the meter of a measure, one of `MEASURES`."""
    given = (classifier, state, space, calibration, batches)
    if measure == "fisher":
        return FisherMeter(*given)
    return SensitivityMeter(*given, measure=_BY_RUNNING[measure])


def measured_table(
    meter: Meter, space: SearchSpace, folder: pathlib.Path, say: Callable[[str], None]
) -> tuple[Float[np.ndarray, "L K"], float]:
    """Returns the whole table, rows known from before read from the folder.

    Args:
      meter: of the measure.
      space: decisions and options.
      folder: of the run; every row is written there when measured.
      say: receives a line on resuming.

    Returns:
      The sensitivities, and the seconds that they took in all sessions.
    """
    start, file = time.monotonic(), folder / _ROWS
    known = read_json(file) if file.exists() else {"seconds": 0.0, "rows": {}}
    before, rows = known["seconds"], known["rows"]
    if rows:
        say(f"resumed with {len(rows)} of {space.num_decisions} decisions measured")
    with ProgressLine(space.num_decisions) as line:
        for decision, name in enumerate(space.decision_names):
            if name not in rows:
                rows[name] = meter.row(decision).tolist()
                seconds = before + time.monotonic() - start
                write_json(file, {"seconds": seconds, "rows": rows})
            line.update(decision + 1, {})
    table = np.array([rows[name] for name in space.decision_names])
    return table, before + time.monotonic() - start
