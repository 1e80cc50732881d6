"""Learning-Compression under the job: one program, resume, the end, what is kept."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nnx_factories import digits_classifier

import fliqs_jax as fq
from fliqs_jax.data import load_dataset
from fliqs_jax.deploy import load_codebooks
from fliqs_jax.models import create_model
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantizers.codebook import decode_params
from fliqs_jax.runs.compression_run import (
    CompressionSettings,
    compress_network,
    weight_paths,
)
from fliqs_jax.searchers.compression.lagrangian import (
    compress,
    decode,
)
from fliqs_jax.searchers.compression.rules import (
    CompressionRule,
    find_scopes,
    parse_codebook,
)
from fliqs_jax.searchers.compression.schedule import VARIANTS, LSteps
from fliqs_jax.searchers.compression.sizes import choose_sizes, size_bits
from fliqs_jax.searchers.learning_compression import (
    LearningCompression,
)
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.sites import find_sites
from fliqs_jax.train import mapping
from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.classifier import Classifier, image_sites
from fliqs_jax.train.job import JobSettings
from fliqs_jax.train.losses import cross_entropy

RULES = [CompressionRule(pattern=".*kernel", c_step=parse_codebook("binary_scaled"))]
SETTINGS = CompressionSettings(
    lc_steps=3, mu=1e-2, mu_growth=3.0, learning_rate=0.02, tolerance=0.0
)
JOB = JobSettings(steps=40, batch_size=32, log_every=10, checkpoint_every=5, keep=20)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def reference(digits):
    """A network that any training improves: an untrained one."""
    model = create_model("lenet300")
    classifier = make_classifier(model, digits)
    images = digits.train.images[:1]
    params, _ = jax.jit(classifier.init)(jax.random.key(0), images)
    return TrainedState(params, {})


def make_classifier(model, digits):
    sites = image_sites(model, digits.train.image_shape)
    return Classifier(
        quantized=QuantizedModel(model, sites=sites),
        mean=tuple(digits.mean.tolist()),
        std=tuple(digits.std.tolist()),
    )


def launch(digits, reference, workdir, *, job=JOB, **changed):
    given = {"settings": SETTINGS, "trained": lambda: (reference, 1.0), **changed}
    model = create_model("lenet300")
    result = compress_network(
        model, digits, RULES, workdir=str(workdir), job=job, **given
    )
    return result.summary


@pytest.fixture(scope="module")
def finished(digits, reference, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(digits, reference, workdir)
    return workdir


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_all_l_steps_are_one_compiled_program(finished):
    summary = summary_of(finished)
    assert summary["compile_count"] == 1
    assert summary["l_steps"] == 3 and summary["steps_taken"] == 40


def test_network_has_the_very_values_of_the_packed_file(finished, digits):
    params = load_codebooks(finished / "codebooks.fqcb")
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        assert len(params[name]["kernel"].values) == 2
        assert params[name]["bias"].dtype == np.float32
    network = fq.load_network(finished, create_model("lenet300"))
    jax.tree.map(np.testing.assert_array_equal, network.params, decode_params(params))
    stored = restore_tree(finished / "network")["params"]
    jax.tree.map(np.testing.assert_array_equal, network.params, stored)
    hits = network(digits.test.images).argmax(-1) == digits.test.labels
    accuracy = float(np.mean(hits))
    assert accuracy == pytest.approx(summary_of(finished)["accuracy"], abs=1e-6)


def test_ratio_is_measured_on_the_file(finished):
    summary = summary_of(finished)
    weights, biases = 64 * 300 + 300 * 100 + 100 * 10, 300 + 100 + 10
    file_bytes = (finished / "codebooks.fqcb").stat().st_size
    assert summary["file_bytes"] == file_bytes
    assert summary["compression_ratio"] == 4 * (weights + biases) / file_bytes
    assert summary["cost"] == weights + 3 * 32  # a bit each, and three scales
    formula = 32 * (weights + biases) / (weights + 3 * 32 + 32 * biases)
    assert summary["compression_ratio_formula"] == pytest.approx(formula)


@pytest.mark.slow
def test_killed_in_the_middle_of_an_l_step_it_ends_bit_identical(
    finished, digits, reference, tmp_path
):
    """L steps end at 20, 30 and 40: the run goes on from the checkpoint at 25."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for name in ("summary.json", "codebooks.fqcb", "compression.json", "policy.json"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "network")
    for step in (30, 35, 40):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    said = []
    launch(digits, reference, workdir, say=said.append)
    assert "resumed at step 25 of 40" in said
    for name in ("codebooks.fqcb", "compression.json"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()
    whole, resumed = (
        restore_tree(folder / "checkpoints")["state"] for folder in (finished, workdir)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_result_is_the_best_of_the_l_steps_by_training_loss(finished):
    record = json.loads((finished / "compression.json").read_text())
    losses = record["measured"]["train_loss"]
    assert len(losses) == 4 and record["ends"] == [0, 20, 30, 40]
    assert summary_of(finished)["best_l_step"] == int(np.argmin(losses))
    assert min(losses) < losses[0]  # direct compression
    weights = [layer["weights"] for layer in record["layers"]]
    counts = np.array(record["counts"])
    assert (counts.sum(axis=2) == np.array(weights)[:, None]).all()


def test_run_ends_once_the_weights_have_met_the_codebook(digits, reference, tmp_path):
    easy = dataclasses.replace(SETTINGS, tolerance=10.0)
    summary = launch(digits, reference, tmp_path / "run", settings=easy)
    assert summary["l_steps"] == 1 and summary["steps_taken"] == 20
    again = launch(digits, reference, tmp_path / "run", settings=easy)
    assert again == summary  # finished, not continued


def make_searcher(digits, reference, variant):
    classifier = make_classifier(create_model("lenet300"), digits)
    return LearningCompression(
        classifier=classifier,
        scopes=find_scopes(reference.params, RULES),
        l_steps=LSteps(ends=(2, 4), mu=0.5, growth=2.0),
        optimizer=optax.sgd(1.0, momentum=0.9),
        learning_rate=lambda number: 0.02 * 0.5**number,
        variant=VARIANTS[variant],
        variables=reference.variables,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_l_step_starts_as_its_variant_says(variant, digits, reference):
    searcher = make_searcher(digits, reference, variant)
    state = searcher.init(jax.random.key(0), digits.train.images[:1])
    state = searcher.start(mapping.replicate(state, mapping.make_mesh()))
    moved = jax.tree.map(lambda x: x + 0.01, state.params)
    momentum = jax.tree.map(jnp.ones_like, state.opt_state)
    state = state.replace(params=moved, opt_state=momentum)
    after = searcher.end_l_step(state)
    pulled = variant in ("lc", "qp")
    assert float(after.compression.mu) == (1.0 if pulled else 0.0)
    multipliers = [np.asarray(part) for part in after.compression.multipliers]
    assert any(part.any() for part in multipliers) == (variant == "lc")
    kernel = np.asarray(after.params["Dense_0"]["kernel"])
    assert (len(np.unique(kernel)) == 2) == (variant == "idc")
    np.testing.assert_array_equal(
        after.params["Dense_0"]["bias"], moved["Dense_0"]["bias"]
    )
    fresh = searcher.optimizer.init(moved)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, fresh)


def test_straight_through_steps_by_the_gradient_at_the_codebook(digits, reference):
    searcher = make_searcher(digits, reference, "ste")
    mesh = mapping.make_mesh()
    state = searcher.init(jax.random.key(0), digits.train.images[:1])
    state = searcher.start(mapping.replicate(state, mesh))
    # Codebooks follow the weights in every step, not only between L steps.
    # With biases, no sum of +a and -a is a tie that rounding decides.
    moved = jax.tree.map(lambda x: 1.5 * x + 0.013 * (x.ndim == 1), state.params)
    state = state.replace(params=moved)
    before = jax.tree.map(np.array, state.params)
    at_codebook = decode(before, compress(before, searcher.scopes), searcher.scopes)
    batch = {"image": digits.train.images[:16], "label": digits.train.labels[:16]}

    def loss(params):
        images = searcher.classifier.training_images(jax.random.key(1), batch["image"])
        logits, _ = searcher.classifier.train_forward(
            params, {}, images, formats=None, dropout_key=jax.random.key(2)
        )
        labels = jnp.asarray(batch["label"])
        return cross_entropy(logits, labels).mean()

    gradient = jax.grad(loss)(at_codebook)
    updates, _ = searcher.optimizer.update(
        gradient, searcher.optimizer.init(before), before
    )
    expected = jax.tree.map(lambda w, u: w + 0.02 * u, before, updates)
    step = mapping.shard_map_step(searcher.step, mesh)
    after, _ = step(state, mapping.shard_batch(batch, mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        after.params,
        expected,
    )


@pytest.mark.parametrize("variant", ["lc", "ste"])
def test_pmap_takes_the_same_step(variant, digits, reference):
    searcher = make_searcher(digits, reference, variant)
    mesh = mapping.make_mesh()
    batch = {"image": digits.train.images[:16], "label": digits.train.labels[:16]}
    after = []
    for make_step in mapping.MAPPINGS.values():
        state = searcher.init(jax.random.key(0), digits.train.images[:1])
        state = searcher.start(mapping.replicate(state, mesh))
        state, _ = make_step(searcher.step, mesh)(
            state, mapping.shard_batch(batch, mesh)
        )
        after.append(state.params)
    jax.tree.map(np.testing.assert_array_equal, *after)


@pytest.mark.slow
def test_nnx_models_with_batch_norm_share_a_codebook(digits, tmp_path):
    model = digits_classifier(10)
    sites = image_sites(model, digits.train.image_shape)
    pattern = "|".join(re.escape(path) for path in weight_paths(sites))
    network = QuantizedModel(model, sites=sites)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    start = TrainedState(variables.pop("params"), dict(variables))
    result = compress_network(
        model,
        digits,
        [
            CompressionRule(
                pattern=pattern, c_step=parse_codebook("kmeans", 4), shared=True
            )
        ],
        trained=lambda: (start, 0.0),
        workdir=str(tmp_path / "run"),
        job=JOB,
        settings=SETTINGS,
    )
    params = load_codebooks(tmp_path / "run" / "codebooks.fqcb")
    first, head = params["first"]["kernel"], params["head"]["kernel"]
    np.testing.assert_array_equal(first.values, head.values)
    assert len(first.values) == 4
    loaded = fq.load_network(tmp_path / "run", digits_classifier(10))
    hits = loaded(digits.test.images).argmax(-1) == digits.test.labels
    assert float(np.mean(hits)) == pytest.approx(result.summary["accuracy"], abs=1e-6)
    assert result.summary["accuracy"] > 0.3  # 40 steps; chance is 0.1


def test_a_scanned_stack_of_layers_is_one_weight():
    model = create_model("lenet5")
    sites = find_sites(model, jnp.zeros((1, 28, 28, 1)))
    paths = weight_paths(sites)
    assert paths == tuple(f"{site.path}/kernel" for site in sites)
    twice = [dataclasses.replace(sites[0], path=f"Conv_0[{i}]") for i in range(2)]
    assert weight_paths(twice) == ("Conv_0/kernel",)


def test_sizes_meet_the_budget_as_brute_force_would_choose():
    """Layers of 1, 2 and 3 distinct magnitudes: what few values cost is by hand."""
    random = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(random.choice([-1.0, 1.0], (20, 10)), jnp.float32),
        "b": jnp.asarray(random.choice([-9.0, -1.0, 1.0, 9.0], (20, 10)), jnp.float32),
    }
    rules = [CompressionRule(pattern="a|b", c_step=parse_codebook("kmeans", 2))]
    scopes = find_scopes(params, rules)
    budget = 200 + 2 * 32 + 400 + 4 * 32
    chosen = choose_sizes(params, scopes, budget, sizes=(2, 4))
    assert [scope.c_step.num_values for scope in chosen] == [2, 4]
    assert size_bits([200, 200], (2, 4))[[0, 1], [0, 1]].sum() == budget
    with pytest.raises(ValueError, match="least reachable cost is 528"):
        choose_sizes(params, scopes, 500, sizes=(2, 4))


def test_a_size_budget_out_of_reach_is_refused_before_training(
    digits, reference, tmp_path
):
    def never():
        raise AssertionError("trained")

    with pytest.raises(ValueError, match="least reachable is 0.1255 .* Raise it"):
        launch(digits, reference, tmp_path / "run", size_budget=0.1, trained=never)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "lz"}, "method must be one of lc, qp, dc, idc, ste, got 'lz'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ],
)
def test_a_wrong_setting_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        CompressionSettings(**changed)
