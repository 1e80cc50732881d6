r"""How good an untrained cell is: two scores of a few gradients, by real images.

Jacobian covariance tells whether a network tells images apart before it has learned
anything: v are the eigenvalues of the correlation between examples of the gradients of
the summed logits with respect to the image.

.. math:: S_J = - \sum_i \log(v_i + k) + \frac{1}{v_i + k}, \qquad k = 10^{-5}

ZiCo tells how fast and how evenly its weights would learn: gradients of the loss over
batches, large in the mean and alike.

.. math:: S_Z = \sum_{\text{layers } l} \log \sum_{\theta \in l}
    \frac{\mathrm{mean}_b \, |\nabla_\theta|}{\mathrm{std}_b \, |\nabla_\theta|}

Their scales say nothing; `mean_ranks` joins them. Nothing is trained here, and no
accuracy is seen.

References: Mellor et al., Neural Architecture Search without Training, 2020 (first
version), https://arxiv.org/abs/2006.04647v1; Li et al., ZiCo, 2023,
https://arxiv.org/abs/2301.11300
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from scipy import stats

from fliqs_jax.data import Dataset, batches
from fliqs_jax.models.cells import ARCHITECTURE, CellSpace
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.losses import cross_entropy

SCORES = ("jacobian_covariance", "zico")
_K = 1e-5
_BATCHES = 2


def jacobian_covariance(gradients: Float[Array, "B P"]) -> Float[Array, ""]:
    """Returns S_J; larger is better.

    Args:
      gradients: of each example's summed logits with respect to its image, flat.

    Example:
      >>> alike = jacobian_covariance(jnp.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.1]]))
      >>> apart = jacobian_covariance(jnp.array([[1.0, 2.0, 4.0], [4.0, 1.0, 2.0]]))
      >>> bool(apart > alike)
      True
    """
    centred = gradients - gradients.mean(axis=1, keepdims=True)
    norms = jnp.linalg.norm(centred, axis=1)
    correlation = (centred @ centred.T) / (norms[:, None] * norms[None])
    values = jnp.maximum(jnp.linalg.eigvalsh(correlation), 0.0)
    return -(jnp.log(values + _K) + 1.0 / (values + _K)).sum()


def zico(gradients: PyTree) -> Float[Array, ""]:
    """Returns S_Z over leaves [T, ...] of T batches' gradients; larger is better.

    Vectors (biases, norms) are left out, and so are layers that got no gradient.

    Example:
      >>> round(float(zico({"kernel": jnp.array([[[1.0]], [[3.0]]])})), 4)  # log(2 / 1)
      0.6931
    """
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(gradients):
        if leaf.ndim < 3:
            continue
        size = jnp.abs(leaf)
        spread = size.std(axis=0)
        ratio = jnp.where(
            spread > 0, size.mean(axis=0) / jnp.where(spread > 0, spread, 1), 0
        )
        layer = ratio.sum()
        total += jnp.where(layer > 0, jnp.log(jnp.where(layer > 0, layer, 1.0)), 0.0)
    return total


def mean_ranks(scores: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "N"]:
    """Returns the mean over the scores of a row's rank among all, in (0, 100].

    Example:
      >>> mean_ranks(np.array([[1.0, 5.0], [2.0, 7.0]])).tolist()
      [50.0, 100.0]
    """
    worst = np.where(np.isfinite(scores), scores, -np.inf)
    return 100.0 * stats.rankdata(worst, axis=0).mean(axis=1) / len(scores)


class CellScorer:
    """Scores cells of a space; call it with choices [N, D], get scores [N, 2].

    The network is built of every operation at once and a cell is its shares, so that
    one compilation scores all cells. Weights are drawn once, images are the same.

    Args:
      model: a search network without sharing and bottleneck.
      space: its space.
      dataset: training images and labels are looked at, nothing else.
      batch_size: of each of two batches.
      seed: of weights and images.

    Attributes:
      compile_count: programs compiled so far; 1 once a cell is scored.

    Raises:
      ValueError: if the model shares operations or has a bottleneck.
    """

    def __init__(
        self, model, space: CellSpace, dataset: Dataset, *, batch_size=64, seed=0
    ):
        if model.share or model.bottleneck > 1:
            raise ValueError(
                "model must be built as cells are scored, one by one: share=False,"
                f" bottleneck=1, got share={model.share}, bottleneck={model.bottleneck}"
            )
        self.space = space
        self.compile_count = 0
        self._classifier = Classifier.of(QuantizedModel(model), dataset)
        source = batches(dataset.train, batch_size=batch_size, seed=seed)
        drawn = [source.batch(number) for number in range(_BATCHES)]
        self._batches = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
        key = jax.random.key(seed)
        self._variables = self._classifier.init(key, dataset.train.images[:1])
        self._compiled = jax.jit(self._scores)

    def __call__(self, choices: Int[np.ndarray, "N D"]) -> Float[np.ndarray, "N M"]:
        rows = [
            self._compiled(self.space.one_hot(choice), *self._variables, self._batches)
            for choice in choices
        ]
        return np.array(jax.device_get(rows), np.float64).reshape(-1, len(SCORES))

    def _scores(self, shares, weights, model_state, drawn):
        self.compile_count += 1  # runs when traced, not when executed
        weights = {k: v for k, v in weights.items() if k != ARCHITECTURE}
        images = jax.vmap(self._classifier.normalise)(drawn["image"])

        def logits_of(weights, images):
            return self._classifier.train_forward(
                {**weights, ARCHITECTURE: shares}, model_state, images, formats=None
            )[0]

        def loss(weights, images, labels):
            return cross_entropy(logits_of(weights, images), labels).mean()

        def summed(images):
            return logits_of(weights, images).sum()

        per_image = jax.grad(summed)(images[0]).reshape(images.shape[1], -1)
        # One after the other: a convolution under vmap is slow on CPU.
        gradients = [
            jax.grad(loss)(weights, x, y)
            for x, y in zip(images, drawn["label"], strict=True)
        ]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
        return jnp.stack([jacobian_covariance(per_image), zico(stacked)])
