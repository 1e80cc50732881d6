"""Predictors on closed forms and on the real search log."""

import numpy as np
import pytest
import scipy.stats
from nasbench201_problem import read_log

from fliqs_jax.searchers.multi_objective.predictors import fit_predictor, one_hot

COUNTS = np.array([3] * 10)


def additive(count, seed=0):
    random = np.random.default_rng(seed)
    vectors = random.integers(COUNTS, size=(count, 10))
    features = one_hot(vectors, COUNTS, np.ones(vectors.shape, bool))
    gains = np.random.default_rng(1).exponential(size=COUNTS.sum())
    return features, 5.0 + features @ gains


def test_additive_function_is_recovered():
    predict = fit_predictor(*additive(120))
    features, values = additive(200, seed=2)
    assert np.abs(predict(features) / values - 1.0).mean() < 0.01


@pytest.mark.parametrize("count", [12, 80])  # ridge alone, and both
def test_order_of_rows_changes_nothing_and_units_carry_over(count):
    features, values = additive(count)
    order = np.random.default_rng(3).permutation(count)
    first = fit_predictor(features, values)(features)
    shuffled = fit_predictor(features[order], values[order])(features)
    np.testing.assert_allclose(shuffled, first, rtol=1e-6)
    tenfold = fit_predictor(features, 10.0 * values)(features)
    np.testing.assert_allclose(tenfold, 10.0 * first, rtol=1e-6)


def test_few_rows_and_constant_values_are_fitted():
    features, values = additive(2)
    assert np.isfinite(fit_predictor(features, values)(features)).all()
    assert (fit_predictor(features, 0 * values + 3.0)(features) == 3.0).all()
    with pytest.raises(ValueError, match="needs 2 candidates or more, got 1"):
        fit_predictor(features[:1], values[:1])


def test_real_search_log_is_ranked(shared_data):
    counts, vectors, accuracy, latency = read_log(shared_data)
    features = one_hot(vectors, counts, np.ones(vectors.shape, bool))
    # Measured: 0.59 for the latency, whose largest values the predictors cap.
    for values, least in ((accuracy, 0.4), (latency, 0.5)):
        predict = fit_predictor(features[:250], values[:250])
        tau = scipy.stats.kendalltau(predict(features[250:]), values[250:]).statistic
        assert tau > least
