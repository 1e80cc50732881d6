"""Policies: mapping behaviour, pins, arrays, and the file with its errors."""

import json
import os
import pickle

import jax
import numpy as np
import pytest

from fliqs_jax.formats import stack_formats
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site


def make_site(path, **fields):
    sizes = dict(macs=8, weight_count=8, input_size=4, output_size=2, calls=1)
    return Site(path=path, op="dense", weight_shape=(4, 2), **(sizes | fields))


PATHS = ("stem/Conv_0", "Block_0/Conv_0", "Block_0/Conv_1", "head/Dense_0")
SITES = tuple(make_site(path) for path in PATHS)


@pytest.fixture
def policy():
    return Policy.uniform(SITES, "int4", "uint8", pins={"head/.*": "e4m3"})


def test_entries_are_pairs_in_site_order(policy):
    assert list(policy) == list(PATHS) and len(policy) == 4
    assert policy["Block_0/Conv_1"] == ("int4", "uint8")
    assert policy["head/Dense_0"] == ("e4m3", "e4m3")


def test_one_name_serves_weights_and_activations():
    assert set(Policy.uniform(SITES, "int8").values()) == {("int8", "int8")}


def test_equal_entries_mean_equal_policies_and_hashes(policy):
    reordered = Policy(dict(list(policy.items())[::-1]))
    assert policy == reordered and hash(policy) == hash(reordered)
    assert policy != Policy.uniform(SITES, "int4", "uint8")
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_policy_cannot_be_changed(policy):
    with pytest.raises(TypeError):
        policy["stem/Conv_0"] = ("int8", "int8")
    with pytest.raises(AttributeError):
        policy.note = "mine"


def test_repr_counts_formats_instead_of_listing_sites(policy):
    assert repr(policy) == "Policy(4 sites: 3 int4/uint8, 1 e4m3)"


def test_unknown_path_names_the_nearest(policy):
    with pytest.raises(KeyError, match=r"nearest: 'head/Dense_0'"):
        policy["head/Dense_1"]
    assert "head/Dense_1" not in policy


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"Conv_0": "int8"}, "pin 'Conv_0' matches no site .* nearest: .*Conv_0'"),
        ({"stem/.*": "int8", ".*/Conv_0": "int4"}, "'stem/.*' and '.*/Conv_0' both"),
        ({"stem/.*": "int1"}, "'stem/.*': unknown format 'int1'"),
        ({"stem/(": "int8"}, "neither a site's path nor a regular expression"),
    ],
)
def test_wrong_pin_says_what_and_where(pins, message):
    with pytest.raises(ValueError, match=message):
        Policy.uniform(SITES, "int4", pins=pins)


def test_entry_that_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="'a' needs a pair of format names"):
        Policy({"a": ("int8", "int8", "int8")})


def test_pin_of_a_pair_sets_both_sides():
    policy = Policy.uniform(SITES, "int4", pins={"stem/Conv_0": ("int8", "fp32")})
    assert policy["stem/Conv_0"] == ("int8", "fp32")


def test_scanned_layer_is_pinned_by_its_own_path():
    # As a regular expression "[1]" would be the character 1 and match nothing here.
    sites = [make_site(f"layers/Dense_0[{layer}]") for layer in range(3)]
    policy = Policy.uniform(sites, "int4", pins={"layers/Dense_0[1]": "int8"})
    assert [pair[0] for pair in policy.values()] == ["int4", "int8", "int4"]


def test_formats_follow_the_order_of_the_sites(policy):
    formats = policy.formats(SITES[::-1])
    expected = stack_formats(["e4m3", "int4", "int4", "int4"])
    assert jax.tree.all(jax.tree.map(np.array_equal, formats.weight, expected))
    assert formats.activation.storage_bits.tolist() == [8, 8, 8, 8]
    assert formats.weight_clip is None and formats.activation_clip is None


def test_policy_of_another_network_is_refused_with_the_sites(policy):
    others = (*SITES[:3], make_site("head/Dense_9"))
    with pytest.raises(ValueError) as error:
        policy.formats(others)
    assert "no entry for 'head/Dense_9'" in str(error.value)
    assert "match no site: 'head/Dense_0'" in str(error.value)
    with pytest.raises(ValueError, match="nothing to quantize"):
        policy.check([])


def test_file_is_versioned_json_with_a_row_a_site(policy, tmp_path):
    file = tmp_path / "policy.json"
    policy.save(file)
    text = file.read_text()
    assert json.loads(text)["fliqs_jax_policy"] == 1
    rows = [line for line in text.splitlines() if '"path"' in line]
    assert len(rows) == 4
    assert json.loads(rows[0].rstrip(",")) == {
        "path": "stem/Conv_0",
        "weights": "int4",
        "activations": "uint8",
    }
    loaded = Policy.load(file)
    assert loaded == policy and list(loaded) == list(policy)


def test_paths_of_any_characters_survive_the_file(tmp_path):
    policy = Policy({'Größe "3"\\[0]\n': ("int4", "fp32")})
    policy.save(tmp_path / "p.json")
    assert Policy.load(str(tmp_path / "p.json")) == policy


def test_failed_save_keeps_the_old_file_and_leaves_no_other(
    policy, tmp_path, monkeypatch
):
    file = tmp_path / "policy.json"
    policy.save(file)
    before = file.read_bytes()

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        Policy.uniform(SITES, "int2").save(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["policy.json"]


ROW = {"path": "a", "weights": "int4", "activations": "int4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        ("[]", "no key 'fliqs_jax_policy'"),
        (json.dumps({"fliqs_jax_policy": 2, "sites": []}), "version 2, .* reads 1"),
        (json.dumps({"fliqs_jax_policy": 1}), "'sites' must be a list"),
        (
            json.dumps({"fliqs_jax_policy": 1, "sites": [{"path": "a"}]}),
            "row 1 lacks 'weights', 'activations'",
        ),
        (json.dumps({"fliqs_jax_policy": 1, "sites": ["a"]}), "row 1 lacks 'path'"),
        (
            json.dumps({"fliqs_jax_policy": 1, "sites": [ROW | {"weights": "int1"}]}),
            "'a': unknown format 'int1'",
        ),
        (
            json.dumps({"fliqs_jax_policy": 1, "sites": [ROW | {"weights": 4}]}),
            "'a' needs a pair of format names",
        ),
        (
            json.dumps({"fliqs_jax_policy": 1, "sites": [ROW | {"path": 3}]}),
            "row 1: 'path' must be text, got 3",
        ),
        (
            json.dumps({"fliqs_jax_policy": 1, "sites": [ROW, ROW]}),
            "site 'a' has two rows",
        ),
    ],
)
def test_broken_file_is_named_with_its_fault(text, message, tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        Policy.load(file)
    assert str(file) in str(error.value)


def test_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Policy.load(tmp_path / "none.json")
