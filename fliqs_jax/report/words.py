"""Numbers and names as people read them, and a run's result in a sentence.

Text only: shared by the HTML page and the terminal's tables.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fliqs_jax.formats import parse_format
from fliqs_jax.report.records import Run, SiteRecord, UniformResult
from fliqs_jax.sites import Site

COST_NAMES = {
    "bops": "bit operations",
    "size": "model size",
    "activation_size": "bits of the inputs",
    "mean_bits": "mean bits",
    "latency": "latency",
}
# Those of which a site's share is known without the device or the user's function.
SHARED_COSTS = ("bops", "size", "activation_size", "mean_bits")
_LEAST_PART = 4  # characters of a path's part that is cut: "M…_0" still has its number


def storage_bits(name: str) -> int | None:
    """Returns a format's bits, or None where `name` is no format (a layer width)."""
    try:
        return int(parse_format(name).storage_bits)
    except ValueError:
        return None


def pretty(name: str) -> str:
    """Returns the usual spelling of a model or data set: "resnet20" is "ResNet-20"."""
    for pattern, spelling in _SPELLINGS:
        if match := re.fullmatch(pattern, name):
            return match.expand(spelling)
    return name


_SPELLINGS = (
    (r"resnet_(?:cifar|imagenet)", r"ResNet"),  # super-networks
    (r"mobilenet_v2(?:_cifar|_imagenet)?", r"MobileNetV2"),
    (r"vit_(?:cifar|imagenet)", r"ViT"),
    (r"resnet_?(\d+)", r"ResNet-\1"),
    (r"lenet_?(\d+)", r"LeNet-\1"),
    (r"vit_?(\w+)", r"ViT-\1"),
    (r"vit", r"ViT"),
    (r"cifar(\d+)", r"CIFAR-\1"),
    (r"mnist", r"MNIST"),
    (r"imagenet2012", r"ImageNet"),
    (r"fliqs", r"FLIQS"),
    (r"fliqnas", r"FLIQNAS"),
)


def percent(fraction: float, digits: int = 1) -> str:
    """Returns 0.812 as "81.2 %", and what is not a number as "not recorded"."""
    return "not recorded" if math.isnan(fraction) else f"{100 * fraction:.{digits}f} %"


def count(number: float | int) -> str:
    """Returns a count in three digits and a prefix: 4_710_000 is "4.71 M"."""
    if math.isnan(number):
        return "not recorded"
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + prefix
    return f"{number:.3g}"


def duration(seconds: float | int) -> str:
    """Returns a time span in the two units that matter: "3 min 5 s"."""
    if math.isnan(seconds):
        return "not recorded"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shorten(text: str, width: int) -> str:
    """Returns `text` with its middle left out where it is longer than `width`.

    Of a site's path the longest part is cut, where that is enough: the others tell one
    layer from another.

    Example:
      >>> shorten("EncoderLayer_0/MultiHeadDotProductAttention_0/query", 34)
      'EncoderLayer_0/Mult…ention_0/query'
    """
    if len(text) <= width:
        return text
    parts = text.split("/")
    longest = max(range(len(parts)), key=lambda number: len(parts[number]))
    room = len(parts[longest]) - (len(text) - width)
    if room < _LEAST_PART:
        return _without_middle(text, width)
    parts[longest] = _without_middle(parts[longest], room)
    return "/".join(parts)


def _without_middle(text: str, width: int) -> str:
    """Cuts to `width`; the end tells most, so two thirds of the room go to it."""
    tail = max(1, 2 * (width - 1) // 3)
    return text[: max(0, width - 1 - tail)] + "…" + text[-tail:]


def cost_fraction(run: Run, cost_ratio: float) -> float:
    """Returns a cost as a fraction of the reference's, from its ratio to the target."""
    target = run.config.cost_target
    return math.nan if target is None else cost_ratio * target


def headline(run: Run) -> str:
    """Returns the run's result in one sentence.

    Example: "ResNet-8 on CIFAR-10: 81.2 % test accuracy at 0.141 of the cost of uniform
    int8 (target 0.141)".
    """
    config, summary = run.config, run.summary
    subject = pretty(config.model) or "A network"
    if config.dataset:
        subject += f" on {pretty(config.dataset)}"
    if summary is None:
        steps = [int(series.steps[-1]) for series in run.train.values()]
        total = f" of {config.phases.steps}" if config.phases else ""
        done = f" (step {max(steps)}{total})" if steps else ""
        return f"{subject}: the run has not finished{done}"
    fraction = cost_fraction(run, summary.cost_ratio)
    result = f"{subject}: {percent(summary.accuracy)} test accuracy"
    if math.isnan(fraction):
        return result
    return (
        f"{result} at {fraction:.3f} of the cost of uniform {config.cost_reference} "
        f"(target {config.cost_target:.3f})"
    )


def budget_verdict(cost_ratio: float) -> str:
    """Returns how a cost stands to its target, in words."""
    if math.isnan(cost_ratio):
        return "no budget recorded"
    if abs(cost_ratio - 1) < 5e-4:  # would read 0.0 %
        return "on the target"
    if cost_ratio > 2:
        shown = f"{cost_ratio:#.3g}".removesuffix(".")
        return f"{shown} times the target"
    side = "over" if cost_ratio > 1 else "under"
    return f"{percent(abs(cost_ratio - 1))} {side} the target"


def nearest_uniform(run: Run) -> UniformResult | None:
    """Returns the best uniform policy that costs no more than the target (+0.5 %)."""
    if run.summary is None:
        return None
    affordable = [
        row
        for row in run.summary.uniform
        if row.cost_ratio <= 1.005 and not math.isnan(row.accuracy)
    ]
    return max(affordable, key=lambda row: row.accuracy, default=None)


def partly_fixed(run: Run) -> bool:
    """Returns whether one option everywhere is no uniform policy, as far as costs tell.

    Pinned sites, and inputs kept in fp32, stay as they are.
    """
    reference = run.config.cost_reference
    rows = run.summary.uniform if run.summary is not None else ()
    own = [cost_fraction(run, r.cost_ratio) for r in rows if r.format == reference]
    return any(abs(fraction - 1.0) > 1e-6 for fraction in own)


def uniform_name(run: Run, fmt: str) -> str:
    """Returns what a row with one option everywhere is called: "uniform int8"."""
    return f"{fmt} where searched" if partly_fixed(run) else f"uniform {fmt}"


def cost_share(
    sites: Sequence[Site | SiteRecord], policy: Mapping[str, tuple[str, str]], cost: str
) -> dict[str, float]:
    """Returns each site's share of the policy's cost, 0 to 1, by site path.

    BOPs of a site are MACs x weight bits x input bits, its size is weights x bits, the
    few scales aside. The share of a latency needs the device, so bit operations stand
    in for it, as for any cost that is none of `SHARED_COSTS`.
    """
    unit = {
        "size": lambda site, w, a: site.weight_count * w,
        "activation_size": lambda site, w, a: site.input_size * a,
        "mean_bits": lambda site, w, a: w + a,
    }.get(cost, lambda site, w, a: site.macs * w * a)
    prices = {}
    for site in sites:
        if site.path not in policy:
            continue
        weight, activation = (storage_bits(name) or 32 for name in policy[site.path])
        prices[site.path] = float(unit(site, weight, activation))
    total = sum(prices.values()) or 1.0
    return {path: price / total for path, price in prices.items()}


def command(run: Run) -> str | None:
    """Returns the command that repeats the run, or None where its flags are unknown."""
    if not run.config.flags:
        return None
    flags = [
        _flag(name, value)
        for name, value in sorted(run.config.flags.items())
        if name != "workdir" and value is not None and value != []
    ]
    return " ".join(["python -m", run.config.launcher, "--workdir=DIR", *flags])


def flag_text(value: Any) -> str:
    """Returns a flag's value as it is typed: a list joined by commas."""
    if value is None or value == []:
        return "not set"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value)


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return shlex.quote(f"--{name}={flag_text(value)}")
