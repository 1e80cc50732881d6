"""Times the one-shot search step against the plain float step, both in one run.

  python scripts/benchmark_one_shot_step.py [--model=resnet20] [--batch_size=128]

Prints medians of interleaved rounds and their ratios: the step without the controller's
own forward passes, with them at the default amortisation, with 32 options a site
instead of 2, the published form's step, and compilation times. Synthetic images of
CIFAR-10's size: the time of a step does not depend on what they show.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

from fliqs_jax.costs import cost_table, site_bops
from fliqs_jax.models import create_model
from fliqs_jax.policy import Policy
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.fliqs import Fliqs
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.in_training.settings import PUBLISHED, FliqsSettings
from fliqs_jax.train import mapping
from fliqs_jax.train.classifier import Classifier, image_sites

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "resnet20", "Name of the network.")
flags.DEFINE_integer("batch_size", 128, "Images a step.")
flags.DEFINE_integer("rounds", 15, "Interleaved rounds.")

_SHAPE = (32, 32, 3)
_TWO = ("int4", "int8")
_MANY = tuple(
    [f"int{b}" for b in range(2, 17)]
    + [f"e{x}m{y}" for x in range(2, 6) for y in range(1, 5)]
    + ["bf16"]
)  # 32 options


class FloatClassifier(Classifier):
    """The same classifier without quantization: the formats are ignored."""

    def train_forward(self, *arguments, formats, **keywords):
        return super().train_forward(*arguments, formats=None, **keywords)


def make_step(formats, settings, *, floats=False, fixed=False):
    """Returns (step, calibration, state) of one variant, each mapped over devices."""
    model = create_model(FLAGS.model)
    sites = image_sites(model, _SHAPE)
    space = SearchSpace(sites, formats)
    costs = cost_table(space, site_bops)
    target = 0.5 * (costs.minimum() + costs.maximum())
    phases = Phases(warmup_end=0, search_end=0 if fixed else 10**6, steps=10**6)
    search = Fliqs(
        classifier=(FloatClassifier if floats else Classifier)(
            quantized=QuantizedModel(
                model,
                sites=sites,
                per_channel=settings.per_channel,
                clip_gradient=settings.clip_gradient,
            ),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
        space=space,
        costs=costs,
        target=target,
        controller=settings.recipe(costs, target, phases),
        phases=phases,
        optimizer=OptimizerSettings().make(10**6),
        settings=settings,
        policy=Policy.uniform(sites, formats[0]) if fixed else None,
    )
    mesh = mapping.make_mesh()
    images = np.zeros((1, *_SHAPE), np.uint8)
    state = mapping.replicate(search.init(jax.random.key(0), images), mesh)
    step, calibrate = (
        mapping.shard_map_step(function, mesh)
        for function in (search.step, search.calibrate)
    )
    return step, calibrate, state


def main(argv: list[str]) -> None:
    del argv
    mesh = mapping.make_mesh()
    random = np.random.default_rng(0)
    batch = mapping.shard_batch(
        {
            "image": random.integers(
                0, 256, (FLAGS.batch_size, *_SHAPE), dtype=np.uint8
            ),
            "label": random.integers(0, 10, FLAGS.batch_size, dtype=np.int32),
        },
        mesh,
    )
    default = FliqsSettings()
    variants = {
        "float": make_step(_TWO, default, floats=True, fixed=True),
        "fixed policy": make_step(_TWO, default, fixed=True),
        "search, 2 options": make_step(_TWO, default),
        "search, 32 options": make_step(_MANY, default),
        "published form": make_step(_TWO, PUBLISHED),
    }
    compiled, compile_s = {}, {}
    for name, (step, _, state) in variants.items():
        start = time.perf_counter()
        lowered = step.lower(state, batch)
        compiled[name] = lowered.compile()
        compile_s[name] = time.perf_counter() - start
    states = {name: state for name, (_, _, state) in variants.items()}
    every = default.judge_every
    seconds = {name: {True: [], False: []} for name in variants}
    for round_ in range(FLAGS.rounds * every):
        for name, step in compiled.items():
            start = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)
            seconds[name][round_ % every == 0].append(time.perf_counter() - start)
    _report(seconds, compile_s, every)
    _report_whole(seconds, variants, states, batch, default)


def _report_whole(seconds, variants, states, batch, settings) -> None:
    """Prints the time of whole searches: phases, judgements, calibrations weighted."""
    base = statistics.median(seconds["float"][False][2:])
    runs = (("search, 2 options", settings), ("published form", PUBLISHED))
    for name, own in runs:
        state, calibrations = states[name], []
        for _ in range(0 if own.dynamic_scales else 5):
            start = time.perf_counter()
            state, _ = variants[name][1](state, batch)
            jax.block_until_ready(state)
            calibrations.append(time.perf_counter() - start)
        times = seconds[name]
        plain, judging = (statistics.median(times[key][1:]) for key in (False, True))
        searching = 1.0 - own.warmup_fraction - own.final_fraction
        mean = plain + searching * (judging - plain) / own.judge_every
        if calibrations:
            mean += statistics.median(calibrations[1:]) / own.calibrate_every
        print(f"whole run, {name}: {mean / base:.2f} of the float run")


def _report(seconds, compile_s, every: int) -> None:
    plain = {
        name: statistics.median(times[False][2:]) for name, times in seconds.items()
    }
    judging = {
        name: statistics.median(times[True][1:]) for name, times in seconds.items()
    }
    mean = {
        name: ((every - 1) * plain[name] + judging[name]) / every for name in seconds
    }
    base = plain["float"]
    print(f"{FLAGS.model}, batch {FLAGS.batch_size}, {jax.device_count()} device(s)")
    print(f"{'step':<20}{'plain':>9}{'judging':>9}{'mean':>9}{'ratio':>7}{'mean':>7}"
          f"{'compile':>9}{'ratio':>7}")  # fmt: skip
    for name in seconds:
        print(
            f"{name:<20}{plain[name] * 1e3:>7.1f}ms{judging[name] * 1e3:>7.1f}ms"
            f"{mean[name] * 1e3:>7.1f}ms{plain[name] / base:>7.2f}"
            f"{mean[name] / base:>7.2f}"
            f"{compile_s[name]:>8.1f}s{compile_s[name] / compile_s['float']:>7.2f}"
        )
    many = plain["search, 32 options"] / plain["search, 2 options"]
    print(f"32 options against 2: {many:.3f}")


if __name__ == "__main__":
    app.run(main)
