"""Compares the controllers on bandits of known optimum and prints the tables.

    python scripts/simulate_controller.py [--quick]

Each row is a situation, each column a controller; an entry is the mean regret of the
final policies over problems and seeds, and the standard error of that mean over the
problems (0 = optimum, 1 = the uniform 3-bit policy of the same cost). Every column's
judged policies are counted: samples a batch / training steps between such batches.
"""

import argparse
import pathlib
import sys
import time

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from controller_bandit import grade, make_problems, search

from fliqs_jax import controller

WIDE = (2, 3, 4, 5, 6, 7, 8)


def make_published(costs, warmup, end):
    def ratio(options):
        return jnp.take_along_axis(costs, options[:, None], axis=1).sum()

    return controller.published(ratio, warmup_steps=warmup, end_step=end)


def expecting(recipe, **numbers):
    """A recipe of the expected cost, as `search` wants it."""

    def make(costs, warmup, end):
        return recipe(
            lambda probabilities: (probabilities * costs).sum(),
            warmup_steps=warmup,
            end_step=end,
            **numbers,
        )

    return make


COLUMNS = {  # name: (controller, steps between judged batches)
    "published 1/1": (make_published, 1),
    "leave-one-out 4/8": (expecting(controller.leave_one_out, num_samples=4), 8),
    "default 2/4": (expecting(controller.default, num_samples=2), 4),
    "default 4/8": (expecting(controller.default, num_samples=4), 8),
    "default 8/8": (expecting(controller.default, num_samples=8), 8),
    "default 4/8, decay .99": (
        expecting(controller.default, num_samples=4, decay=0.99),
        8,
    ),
}
ROWS = {  # name: (sites, steps, of the problems, of the noise)
    "10 sites, 2,000 steps": (10, 2000, {}, {}),
    "10 sites, 4,000 steps": (10, 4000, {}, {}),
    "10 sites, 8,000 steps": (10, 8000, {}, {}),
    "22 sites, 2,000 steps": (22, 2000, {}, {}),
    "22 sites, 4,000 steps": (22, 4000, {}, {}),
    "22 sites, 8,000 steps": (22, 8000, {}, {}),
    "22 sites, 2 to 8 bits": (22, 4000, {"bits": WIDE}, {}),
    "22 sites, loss / 10": (22, 4000, {"total": 0.03}, {}),
    "22 sites, loss x 10": (22, 4000, {"total": 3.0}, {}),
    "22 sites, loss x 10, capped": (22, 4000, {"total": 3.0}, {"saturation": 1.5}),
    "22 sites, drift": (22, 4000, {"drift": 1.0}, {}),
    "22 sites, own noise x 3": (22, 4000, {}, {"individual": 0.5}),
}
QUICK = ("10 sites, 4,000 steps", "22 sites, drift")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rows, two problems")
    quick = parser.parse_args().quick
    num_problems, rows = (2, QUICK) if quick else (6, ROWS)
    started = time.monotonic()
    print("| " + " | ".join(["regret (error)", *COLUMNS]) + " |")
    print("|" + "---|" * (len(COLUMNS) + 1))
    for row in rows:
        num_sites, steps, shape, noise = ROWS[row]
        problems = make_problems(num_problems, num_sites, **shape)
        print(f"| {row} |", end="", flush=True)
        for make_controller, every in COLUMNS.values():
            scores, _, _ = search(
                make_controller, problems, steps=steps, every=every, **noise
            )
            regret = grade(problems, scores).mean(axis=1)
            error = regret.std(ddof=1) / np.sqrt(len(regret))
            print(f" {regret.mean():.2f} ({error:.2f}) |", end="", flush=True)
        print(flush=True)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
