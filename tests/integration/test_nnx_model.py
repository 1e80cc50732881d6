"""An NNX model from search to use, and back into the user's object."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fliqs_jax as fq
from fliqs_jax import nnx_adapter

pytestmark = pytest.mark.slow


class Stranger(nnx.Module):
    """Batch norm and dropout, switched by `train()` and `eval()` alone."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(72, 32, rngs=rngs)])
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        for layer in self.layers:
            x = nnx.relu(layer(x.reshape(x.shape[0], -1)))
        return self.head(self.dropout(x))


JOB = {"steps": 96, "evaluate_every": 96, "checkpoint_every": 48}


def search(model, workdir, **job):
    data = fq.load_dataset("digits")
    sites = fq.find_sites(model, data.train.images[:1].astype("float32"), train=False)
    return fq.search_formats(
        model,
        data,
        fq.SearchSpace(sites, ["int4", "int8"]),
        workdir=str(workdir),
        cost_target=0.6,
        job=fq.JobSettings(batch_size=32, **job),
        optimizer=fq.OptimizerSettings(name="adamw", learning_rate=1e-2),
        say=lambda line: None,
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    model = Stranger(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    workdir = tmp_path_factory.mktemp("runs") / "nnx"
    result = search(model, workdir, **JOB)
    return model, before, result


def test_search_ends_with_a_policy_within_budget_and_a_trained_network(searched):
    model, _, result = searched
    saved = fq.Policy.load(f"{result.workdir}/policy.json")
    assert saved == result.policy and set(saved) == {"conv", "layers/0", "head"}
    assert result.summary["cost_ratio"] <= 1
    assert result.accuracy > 0.5  # statistics of batch norm were recomputed
    data, network = fq.load_dataset("digits"), fq.load_network(result.workdir, model)
    hits = np.asarray(jax.jit(network)(data.test.images)).argmax(1) == data.test.labels
    assert hits.mean() == pytest.approx(result.accuracy, abs=1e-6)


def test_users_model_is_unchanged_until_it_is_updated(searched):
    model, before, result = searched
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not model.norm.use_running_average and not model.dropout.deterministic
    network = fq.load_network(result.workdir, model)
    trained = nnx.clone(model)
    nnx_adapter.update_model(trained, network.variables)
    trained.eval()
    images = fq.load_dataset("digits").test.images[:8]
    x = network.classifier.normalise(images)
    want = network.classifier.quantized.apply(network.variables, x, train=False)
    np.testing.assert_allclose(trained(x), want, rtol=1e-4, atol=1e-5)
    assert not jnp.array_equal(trained.head.kernel[...], model.head.kernel[...])


def test_same_workdir_returns_the_finished_search(searched):
    model, _, result = searched
    assert search(model, result.workdir, **JOB) == result


def test_interrupted_search_ends_as_the_uninterrupted_one(searched, tmp_path):
    model, _, result = searched
    shutil.copytree(result.workdir, tmp_path / "run")
    for name in ("summary.json", "policy.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "network")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "96")
    resumed = search(model, tmp_path / "run", **JOB)
    assert resumed.policy == result.policy
    assert resumed.accuracy == pytest.approx(result.accuracy, abs=1e-6)
