"""LeNet-5's own pooling against Flax's."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from fliqs_jax.models import lenet


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (5, 7)])
def test_max_pooling_and_its_gradient_are_those_of_flax(size):
    images = jax.random.normal(jax.random.key(0), (3, *size, 4))

    def energy(pool):
        return jax.grad(lambda x: (pool(x) ** 2).sum())(images)

    def flax_pool(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    np.testing.assert_array_equal(lenet._max_pool(images), flax_pool(images))
    np.testing.assert_array_equal(energy(lenet._max_pool), energy(flax_pool))


def test_images_that_pools_would_use_up_are_refused():
    with pytest.raises(ValueError, match="sides of 4 at least, got"):
        jax.eval_shape(lenet.LeNet5().init, jax.random.key(0), np.zeros((1, 3, 8, 1)))
