"""Populations against extracted networks, each recalibrated and quantized alone."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_supernets import perceptron_supernet

import fliqs_jax as fq
from fliqs_jax.costs import make_site_storage, site_bops
from fliqs_jax.data import batches
from fliqs_jax.models import supernets
from fliqs_jax.quantized_model.static_weights import quantize_weights_by
from fliqs_jax.quantizers.observers import OBSERVERS
from fliqs_jax.searchers import linas
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.static_calibration import (
    InputSamples,
    PtqSettings,
    static_input_formats,
)
from fliqs_jax.searchers.joint.subnetwork_evaluation import PopulationEvaluator
from fliqs_jax.searchers.sensitivities.meter import TrainedState
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.evaluation import Evaluator

PTQ = PtqSettings(weight_observer="mse", input_observer="minmax")
COSTS = {"bops": site_bops, "bits": make_site_storage()}


@pytest.fixture(scope="module")
def problem():
    """Ridge regression on random features: accuracies that are not chance."""
    net, data = perceptron_supernet(), fq.load_dataset("digits")
    images = jnp.zeros((1, 8, 8, 1))
    variables = net.model.init(jax.random.key(0), images)
    classifier = classifier_of(net.model, data)
    batch = batches(data.train, batch_size=1024, seed=0).batch(0)
    x = classifier.normalise(batch["image"])
    _, seen = net.model.apply(
        variables,
        x,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )
    hidden = np.maximum(seen["intermediates"]["BatchNorm_1"]["__call__"][0], 0)
    targets = np.eye(10)[batch["label"]]
    gram = hidden.T @ hidden + 10 * np.eye(hidden.shape[1])
    kernel = np.linalg.solve(gram, hidden.T @ (targets - 0.1))
    params = flax.core.unfreeze(variables["params"])
    params["Dense_2"]["kernel"] = jnp.asarray(kernel, jnp.float32)
    state = TrainedState(params, {"batch_stats": variables["batch_stats"]})
    formats = fq.SearchSpace(net.sites, ["int3", "e2m1", "int8", "fp32"])
    space = JointSpace(net, formats, weight_modes=True)
    evaluator = PopulationEvaluator(
        space, state, data, costs=COSTS, ptq=PTQ, batch_size=64, recalibration_batches=3
    )
    return space, state, data, evaluator


def classifier_of(model, data):
    return Classifier(
        quantized=fq.QuantizedModel(model),
        mean=tuple(data.mean.tolist()),
        std=tuple(data.std.tolist()),
    )


def alone(space, state, data, vector):
    """Accuracy of the extracted network, by none of the evaluator's code."""
    parts = space.split(vector)
    model, small = supernets.extract(space.net, state.variables, parts.choice)
    classifier = classifier_of(model, data)
    for_ranges, evaluator = (
        Evaluator(classifier, data, batch_size=64, recalibration_batches=count)
        for count in (PTQ.batches, 3)
    )
    own = TrainedState(small["params"], {"batch_stats": small["batch_stats"]})
    own = for_ranges.recalibrated(own, None)
    images = batches(data.train, batch_size=64, seed=2**31 - 1)
    seen = [
        classifier.quantized.observe(
            own.variables, classifier.normalise(images.batch(i)["image"]), train=False
        )
        for i in range(2)
    ]
    sites = supernets.subnetwork_sites(space.net, parts.choice)
    formats = space.policy(vector).formats(sites)
    weights = quantize_weights_by(
        own.params,
        sites,
        formats.weight,
        OBSERVERS["mse"],
        symmetric=parts.symmetric,
    )
    formats = static_input_formats(InputSamples.of(seen), formats.activation, PTQ)
    own = evaluator.recalibrated(own.replace(params=weights), formats)
    return evaluator.validate(own, formats)["accuracy"]


@pytest.mark.slow
def test_population_is_each_extracted_network_alone(problem):
    space, state, data, evaluator = problem
    rng = np.random.default_rng(0)
    counts = np.array(list(space.counts.values()))
    vectors = np.stack([counts - 1, *rng.integers(0, counts, (9, len(counts)))])
    vectors[0, -3:] = 0
    values = evaluator(vectors)
    assert values.shape == (10, 3) and evaluator.objectives == ("error", "bops", "bits")
    size = len(data.validation)
    for row in (0, 1, 2):
        accuracy = alone(space, state, data, vectors[row])
        # Values halfway between two of a grid may round either way.
        assert abs(1 - values[row, 0] - accuracy) <= 1.5 / size
        sites = supernets.subnetwork_sites(space.net, space.split(vectors[row]).choice)
        policy = space.policy(vectors[row])
        assert values[row, 1] == fq.bops(sites, policy)
        assert values[row, 2] == fq.model_bits(sites, policy, scale_bits=32)
    assert values[0, 0] < 0.7 and len(np.unique(values[:, 0])) > 3
    # Alone or in company, in whatever order; what was compiled serves all.
    compiled = evaluator.compile_count
    np.testing.assert_array_equal(evaluator(vectors[3:4]), values[3:4])
    np.testing.assert_array_equal(evaluator(vectors[::-1])[::-1], values)
    assert evaluator.compile_count == compiled == 5
    assert {p._cache_size() for p in evaluator._programs.values()} == {1}


def test_search_runs_on_it(problem):
    space, _, data, evaluator = problem
    result = linas.search(
        space.counts,
        evaluator,
        evaluator.objectives,
        evaluations=16,
        population=8,
        active=space.active,
        inner_evaluations=200,
    )
    assert result.values.shape == (16, 3) and len(result.front)
    best = result.vectors[result.front[:1]]
    assert 0 <= evaluator.accuracies(best, split=data.test)[0] <= 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"per_device": 0}, "per_device must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(problem, arguments, message):
    space, state, data, _ = problem
    with pytest.raises(ValueError, match=message):
        PopulationEvaluator(space, state, data, costs={}, **arguments)


@pytest.mark.parametrize("name", ["weight_observer", "input_observer"])
def test_unknown_observer_lists_those_there_are(name):
    with pytest.raises(ValueError, match=f"{name} must be one of minmax, percentile"):
        PtqSettings(**{name: "absmax"})
