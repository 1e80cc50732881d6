"""The result in words and numbers as people read them."""

import dataclasses
import math
import shlex

import pytest

from fliqs_jax.costs import bops, model_bits
from fliqs_jax.policy import Policy
from fliqs_jax.report import SiteRecord, read_run, words
from fliqs_jax.sites import Site


def test_headline_says_accuracy_cost_and_target(make_run):
    run = read_run(make_run(steps=100))
    assert words.headline(run) == (
        "ResNet-8 on CIFAR-10: 81.2 % test accuracy at 0.140 of the cost of uniform "
        "int8 (target 0.141)"
    )


def test_headline_of_a_network_without_a_name(make_run):
    run = read_run(make_run(steps=100))
    config = dataclasses.replace(run.config, model="")
    text = words.headline(dataclasses.replace(run, config=config))
    assert text.startswith("A network on CIFAR-10: 81.2 %")


def test_headline_of_an_unfinished_run_says_how_far_it_came(make_run):
    run = read_run(make_run(steps=100, finished=False))
    assert words.headline(run).endswith("the run has not finished (step 100 of 100)")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "on the target"),
        (0.9996, "on the target"),
        (0.93, "7.0 % under the target"),
        (1.013, "1.3 % over the target"),
        (4.0, "4.00 times the target"),
        (math.nan, "no budget recorded"),
    ],
)
def test_budget_verdict(ratio, text):
    assert words.budget_verdict(ratio) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (640, "640"),
        (999.6, "1.00 k"),
        (4_710_000, "4.71 M"),
        (2.5e11, "250 G"),
        (0, "0"),
    ],
)
def test_counts_take_three_digits_and_a_prefix(number, text):
    assert words.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.2, "5.2 s"), (185, "3 min 5 s"), (3 * 3600 + 90, "3 h 1 min")],
)
def test_durations_take_two_units(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [("resnet20", "ResNet-20"), ("cifar10", "CIFAR-10"), ("digits", "digits")],
)
def test_pretty_names(name, text):
    assert words.pretty(name) == text


def test_storage_bits_know_formats_and_nothing_else():
    names = ("int4", "uint8", "e4m3", "bf16", "fp32", "width 64")
    assert [words.storage_bits(name) for name in names] == [4, 8, 8, 16, 32, None]


def test_cost_shares_match_a_hand_count():
    shape = {"op": "dense", "weight_shape": (1,)}
    sites = (
        SiteRecord(path="a", macs=100, weight_count=10, **shape),
        SiteRecord(path="b", macs=50, weight_count=30, **shape),
    )
    policy = {"a": ("int2", "uint4"), "b": ("int8", "int8")}
    by_operations = words.cost_share(sites, policy, "bops")  # 800 and 3200
    assert by_operations == {"a": 0.2, "b": 0.8}
    by_size = words.cost_share(sites, policy, "size")  # 20 and 240
    assert by_size["a"] == pytest.approx(1 / 13)


def test_cost_shares_agree_with_the_costs_that_a_search_pays():
    sizes = {"op": "dense", "input_size": 8, "output_size": 8, "calls": 1}
    sites = [
        Site(path="a", weight_shape=(8, 8), macs=64, weight_count=64, **sizes),
        Site(path="b", weight_shape=(8, 9), macs=72, weight_count=72, **sizes),
    ]
    policy = Policy({"a": ("int3", "uint5"), "b": ("e4m3", "bf16")})
    by_operations = words.cost_share(sites, policy, "bops")
    assert by_operations["a"] == pytest.approx(64 * 3 * 5 / bops(sites, policy))
    by_size = words.cost_share(sites, policy, "size")
    assert by_size["b"] == pytest.approx(72 * 8 / model_bits(sites, policy))


def test_command_survives_the_shell(make_run):
    run = read_run(make_run(steps=100))
    assert shlex.split(words.command(run)) == [
        "python", "-m", "experiments.fliqs", "--workdir=DIR", "--augment=crop, flip",
        "--batch_size=128", "--cost_target=0.1406", "--dataset=cifar10",
        "--formats=int2,int3,int4,int8", "--model=resnet8", "--noprofile", "--resume",
        "--seed=0", "--steps=100",
    ]  # fmt: skip


def test_nearest_uniform_keeps_the_target(make_run):
    run = read_run(make_run(steps=100))
    assert words.nearest_uniform(run).format == "int3"  # int4 is better but dearer
    dear = tuple(row for row in run.summary.uniform if row.cost_ratio > 1.1)
    summary = dataclasses.replace(run.summary, uniform=dear)
    assert words.nearest_uniform(dataclasses.replace(run, summary=summary)) is None


def test_long_paths_lose_of_their_longest_part():
    path = "EncoderLayer_7/MultiHeadDotProductAttention_0/query"
    for width in (25, 26, 34, 50):
        short = words.shorten(path, width)
        assert len(short) == width
        first, middle, last = short.split("/")
        assert (first, last) == ("EncoderLayer_7", "query")
        assert middle.startswith("M") and middle.endswith("_0") and "…" in middle


def test_longer_paths_keep_their_end():
    assert words.shorten("encoder/layers_11/attention/query", 16) == "encod…tion/query"
    assert words.shorten("Conv_0", 6) == "Conv_0"
