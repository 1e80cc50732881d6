"""Made-up runs that look like real ones: a controller that settles, noisy curves."""

import json
import math

import numpy as np
import pytest

FORMATS_BITS = {"bf16": 16, "fp16": 16, "fp32": 32}


def bits_of(name):
    if name in FORMATS_BITS:
        return FORMATS_BITS[name]
    if "int" in name:
        return int(name.split("int")[1])
    return 1 + int(name[1]) + int(name[3])


def resnet_sites(blocks, width=16):
    """Stem, `blocks` residual blocks with shortcuts where they widen, classifier."""
    sites, channels, side = [], 3, 32

    def add(path, op, shape, positions):
        count = math.prod(shape)
        row = {"path": path, "op": op, "weight_shape": list(shape)}
        sites.append(row | {"macs": count * positions, "weight_count": count})

    add("Conv_0", "conv", (3, 3, 3, width), side * side)
    channels = width
    for block in range(blocks):
        out = width * 2 ** (3 * block // blocks)
        side = 32 // (out // width)
        name = f"ResidualBlock_{block}"
        add(f"{name}/Conv_0", "conv", (3, 3, channels, out), side * side)
        add(f"{name}/Conv_1", "conv", (3, 3, out, out), side * side)
        if out != channels:
            add(f"{name}/Conv_2", "conv", (1, 1, channels, out), side * side)
        channels = out
    add("Dense_0", "dense", (channels, 10), 1)
    return sites


def write_run(
    folder, *, sites, options, steps=2000, every=10, policy_every=40, controller=True,
    seed=0, finished=True,
):  # fmt: skip
    """Writes config.json, metrics.jsonl, policy.json and summary.json into `folder`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    warmup, search_end = (steps // 5, 4 * steps // 5) if controller else (0, 0)
    decisions = [site["path"] for site in sites]
    config = {
        "method": "fliqs", "model": "resnet8", "dataset": "cifar10",
        "flags": {
            "model": "resnet8", "dataset": "cifar10", "formats": list(options),
            "cost_target": 0.1406, "steps": steps, "batch_size": 128, "seed": seed,
            "resume": True, "profile": False, "policy_file": None,
            "workdir": "/home/someone/run", "augment": "crop, flip",
        },
        "sites": sites, "decisions": decisions if controller else [],
        "options": list(options), "cost": "bops", "cost_reference": "int8",
        "cost_target": 0.1406,
        "phases": {"warmup_end": warmup, "search_end": search_end, "steps": steps},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    favourites = rng.integers(0, len(options), len(sites))
    favourites[0] = len(options) - 1
    speeds = rng.uniform(1.5, 9, len(sites))
    detours = rng.integers(0, len(options), len(sites))
    rows = []
    for step in range(0, steps + 1, every):
        progress = np.clip((step - warmup) / max(1, search_end - warmup), 0, 1)
        logits = np.zeros((len(sites), len(options)))
        index = np.arange(len(sites))
        logits[index, favourites] += speeds * progress * 1.6
        logits[index, detours] += 3 * np.sin(math.pi * min(1, 2 * progress)) * progress
        table = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        entropy = float(-(table * np.log(table)).sum(1).mean())
        learned = 1 - math.exp(-3.5 * step / steps)
        loss = 2.3 - 1.75 * learned + rng.normal(0, 0.09) * (0.4 + learned)
        accuracy = float(np.clip(0.1 + 0.72 * learned + rng.normal(0, 0.035), 0, 1))
        row = {"step": step, "kind": "train", "loss": loss, "accuracy": accuracy}
        row |= {
            "learning_rate": 0.1 * (1 - step / (steps + 1)),
            "steps_per_second": 9.1,
        }
        if controller:
            ratio = 1 + 0.9 * math.exp(-6 * progress) + rng.normal(0, 0.012)
            row |= {"reward": accuracy - 0.3 * abs(ratio - 1), "entropy": entropy}
            row |= {"expected_cost_ratio": ratio}
        rows.append(row)
        if controller and step % policy_every == 0 and step <= search_end:
            policy_row = {"step": step, "kind": "policy"}
            rows.append(policy_row | {"probabilities": table.round(5).tolist()})
        if step and step % max(every, steps // 10) == 0:
            row = {"step": step, "kind": "evaluation", "split": "validation"}
            rows.append(row | {"accuracy": accuracy - 0.02, "loss": loss + 0.06})
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    (folder / "metrics.jsonl").write_text(text)
    names = [options[k] for k in favourites] if controller else ["int4"] * len(sites)
    entries = [
        {
            "path": path,
            "weights": name,
            "activations": name.replace("int", "uint", i > 0),
        }
        for i, (path, name) in enumerate(zip(decisions, names, strict=True))
    ]
    policy = {"fliqs_jax_policy": 1, "sites": entries}
    (folder / "policy.json").write_text(json.dumps(policy))
    if finished:
        summary = _summary(sites, options, steps, seed, controller)
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _summary(sites, options, steps, seed, controller):
    macs = sum(site["macs"] for site in sites)
    target = 0.1406 * 64 * macs
    uniform = [
        {
            "format": name, "cost": macs * bits_of(name) ** 2,
            "accuracy": 0.835 - 1.1 * 2.0 ** (-1.25 * bits_of(name)) - 0.002 * (i % 3),
            "cost_ratio": macs * bits_of(name) ** 2 / target,
        }
        for i, name in enumerate(options)
    ]  # fmt: skip
    summary = {
        "accuracy": 0.8123, "cost": 0.998 * target, "cost_target": target,
        "cost_ratio": 0.998, "steps": steps, "seconds": 1283.0, "compile_count": 1,
        "seed": seed, "versions": {"jax": "0.10.2", "flax": "0.12.0"},
        "uniform": uniform,
    }  # fmt: skip
    return summary | ({"entropy": 0.0213} if controller else {})


INTS = ("int2", "int3", "int4", "int8")
FLOATS = (
    "e2m1", "e2m2", "e3m1", "e2m3", "e3m2", "e4m1", "e2m4", "e3m3", "e4m2", "e5m1",
    "e2m5", "e3m4", "e4m3", "e5m2", "e6m1", "bf16",
)  # fmt: skip


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """Returns a function that writes the run of a ResNet, or of its first layers."""

    def make(blocks=3, options=INTS, count=None, **words):
        folder = tmp_path_factory.mktemp("run")
        sites = resnet_sites(blocks)[:count]
        return write_run(folder, sites=sites, options=options, **words)

    return make


@pytest.fixture
def float_formats():
    """Sixteen formats of 4 to 16 bits."""
    return FLOATS
