"""Cross entropy against scipy, in any float type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from fliqs_jax.train.losses import correct, cross_entropy, distillation


def test_cross_entropy_equals_scipy():
    logits = np.random.default_rng(0).normal(0, 5, (16, 7)).astype(np.float32)
    labels = np.arange(16) % 7
    expected = -scipy.special.log_softmax(logits, axis=1)[np.arange(16), labels]
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_label_smoothing_mixes_in_the_mean_over_classes():
    logits = np.random.default_rng(1).normal(0, 2, (8, 5)).astype(np.float32)
    labels = np.arange(8) % 5
    log_p = scipy.special.log_softmax(logits, axis=1)
    expected = -(0.8 * log_p[np.arange(8), labels] + 0.2 * log_p.mean(1))
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bfloat16_logits_give_float32_losses():
    loss = cross_entropy(jnp.zeros((2, 4), jnp.bfloat16), jnp.array([0, 1]))
    assert loss.dtype == jnp.float32


def test_correct_marks_hits():
    logits = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    assert correct(logits, jnp.array([0, 0, 0])).tolist() == [1.0, 0.0, 1.0]


def test_distillation_is_zero_for_the_teacher_and_gives_it_no_gradient():
    logits = jnp.array([[0.3, -1.0, 2.0]])
    assert float(distillation(logits, logits, temperature=5.0)[0]) == 0
    gradient = jax.grad(lambda t: distillation(2 * logits, t).sum())(logits)
    assert not gradient.any()


def test_size_of_distillation_gradient_hardly_depends_on_temperature():
    student, teacher = jnp.array([[0.1, -0.2, 0.3]]), jnp.array([[0.4, 0.1, -0.5]])

    def size(temperature):
        gradient = jax.grad(
            lambda z: distillation(z, teacher, temperature=temperature).sum()
        )(student)
        return float(jnp.linalg.norm(gradient))

    assert size(20.0) == pytest.approx(size(5.0), rel=0.1)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        distillation(jnp.zeros((1, 2)), jnp.zeros((1, 2)), temperature=0.0)
