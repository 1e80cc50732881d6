"""A model that the project has never seen, from search to use, as the README shows."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import fliqs_jax as fq


class Stranger(nn.Module):
    """Group norm, dropout, an attention block, and another word for training."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.relu(nn.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3), strides=2)(x)))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x)
        x = nn.Dropout(0.1, deterministic=deterministic)(x.mean(1))
        return nn.Dense(10, name="head")(x)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("runs") / "mine")
    data, model = fq.load_dataset("digits"), Stranger()
    sites = fq.find_sites(model, data.train.images[:1].astype("float32"))
    space = fq.SearchSpace(sites, ["int2", "int4", "int8"], pins={"head": "int8"})
    result = fq.search_formats(
        model,
        data,
        space,
        workdir=workdir,
        cost_target=0.3,
        job=fq.JobSettings(steps=48, batch_size=32, evaluate_every=24),
        optimizer=fq.OptimizerSettings(name="adamw", learning_rate=3e-3),
        say=lambda line: None,
    )
    return data, model, sites, result


def test_policy_covers_every_site_keeps_pins_and_meets_the_budget(searched):
    _, _, sites, result = searched
    assert set(result.policy) == {site.path for site in sites}
    assert len(sites) == 6  # conv, four projections of the attention, head
    assert result.policy["head"][0] == "int8"
    reference = fq.bops(sites, fq.Policy.uniform(sites, "int8"))
    assert fq.bops(sites, result.policy) == result.cost <= 0.3 * reference


def test_network_is_used_in_one_line(searched):
    data, model, _, result = searched
    network = fq.load_network(result.workdir, model)
    logits = jax.jit(network)(data.test.images)
    hits = np.asarray(logits).argmax(1) == data.test.labels
    assert hits.mean() == pytest.approx(result.accuracy, abs=1e-6)


def test_own_model_must_be_handed_over(searched):
    with pytest.raises(ValueError, match="pass model="):
        fq.load_network(searched[3].workdir)


def test_unfinished_workdir_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        fq.load_network(tmp_path)
