"""Architecture and formats in one vector."""

import numpy as np
import pytest
from small_supernets import small_supernet

import fliqs_jax as fq
from fliqs_jax.models import supernets
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.multi_objective.decisions import Decisions


@pytest.fixture(scope="module")
def space():
    net = small_supernet("vit_cifar")
    groups = {"EncoderLayer_[12]/Dense_0": "late"}
    formats = fq.SearchSpace(
        net.sites, ["int4", "int8"], groups=groups, pins={"Conv_0": "int8"}
    )
    return JointSpace(net, formats, weight_modes=True)


def test_vectors_come_apart(space):
    arch, formats = len(space.net.counts), space.space.num_decisions
    assert list(space.counts.values()) == (
        list(space.net.counts.values()) + [2] * formats + [2] * formats
    )
    vector = np.arange(arch + 2 * formats)
    vector[-1] = 1
    vector[arch + formats : -1] = 0
    parts = space.split(vector)
    assert parts.choice.tolist() == list(range(arch))
    assert parts.options.tolist() == list(range(arch, arch + formats))
    last = space.space.weight_decision == formats - 1
    assert (parts.symmetric == ~last).all() and last.any()


def test_formats_of_missing_layers_are_dead(space):
    names = list(space.counts)
    vectors = np.stack([np.array(list(space.counts.values())) - 1] * 3)
    vectors[:, names.index("layers")] = [0, 1, 2]  # one, two, three layers
    dead = [
        {n for n, on in zip(names, row, strict=True) if not on}
        for row in space.active(vectors)
    ]
    assert not dead[2]
    assert {name.split("/")[0] for name in dead[1]} == {"layer2", "EncoderLayer_2"}
    # The group lives as long as one of its sites.
    assert "late" in dead[0] and "late" not in dead[1]
    assert "late/asymmetric" in dead[0]


def test_canonical_vectors_for_a_search(space):
    decisions = Decisions(space.counts, space.active)
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, list(space.counts.values()), (40, len(space.counts)))
    canonical = decisions.canonical(vectors)  # raises where dead depends on dead
    for before, after in zip(vectors, canonical, strict=True):
        assert space.policy(before) == space.policy(after)
        sites = [
            supernets.subnetwork_sites(space.net, space.split(v).choice)
            for v in (before, after)
        ]
        assert sites[0] == sites[1]


def test_policy_is_about_the_sub_network(space):
    vector = np.zeros(len(space.counts), np.int64)
    policy = space.policy(vector)
    sites = supernets.subnetwork_sites(space.net, space.split(vector).choice)
    policy.check(sites)
    assert policy["Conv_0"] == ("int8", "int8") and len(sites) < len(space.net.sites)


def test_space_of_other_sites_is_refused(space):
    other = small_supernet("own")
    with pytest.raises(ValueError, match="sites of the full network"):
        JointSpace(other, space.space)
