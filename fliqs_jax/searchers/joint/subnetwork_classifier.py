"""A super-network as training and evaluation see a classifier: which part is data.

Takes a `Subnetwork` where a `Classifier` takes formats, so the one-shot step, the
recalibration and the evaluation of the ordinary searches serve sub-networks, too.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fliqs_jax.models.supernets import SuperNetwork, live_formats, subnetwork_sites
from fliqs_jax.policy import SiteFormats
from fliqs_jax.quantized_model import Observations
from fliqs_jax.train.classifier import Classifier


@flax.struct.dataclass
class Subnetwork:
    """What is run: an architecture, and formats of the full network's sites."""

    choice: Int[Array, "A"]
    formats: SiteFormats  # weight clips in units of the live weights' RMS


@dataclasses.dataclass(frozen=True, eq=False)
class SubnetworkClassifier:
    """All sub-networks of a super-network, run masked in the full network's arrays.

    Args:
      classifier: of the full network.
      net: the super-network.

    Raises:
      ValueError: if the classifier is of another model.
    """

    classifier: Classifier
    net: SuperNetwork

    def __post_init__(self):
        if self.classifier.quantized.model is not self.net.model:
            raise ValueError(
                "classifier must be of the full network:"
                " Classifier(quantized=QuantizedModel(net.model), ...)"
            )

    def init(self, key: Array, images: ArrayLike) -> tuple[PyTree, PyTree]:
        """Returns freshly initialised (params, model state) of the full network."""
        return self.classifier.init(key, images)

    def normalise(self, images: ArrayLike) -> Float[Array, "B H W C"]:
        """Returns float32 images with zero mean and unit variance per channel."""
        return self.classifier.normalise(images)

    def training_images(self, key: Array, images: ArrayLike) -> Float[Array, "B H W C"]:
        """Returns uint8 images augmented (if they are to be) and normalised."""
        return self.classifier.training_images(key, images)

    def train_forward(
        self, params: PyTree, *args: Any, formats: Subnetwork, **options: Any
    ) -> tuple[Float[Array, "B C"], PyTree]:
        """Returns logits in training mode, by the batch's statistics, and the state."""
        return self._masked(
            self.classifier.train_forward, params, formats, *args, **options
        )

    def predict(
        self, params: PyTree, *args: Any, formats: Subnetwork
    ) -> Float[Array, "B C"]:
        """Returns logits of raw uint8 images in evaluation mode."""
        return self._masked(self.classifier.predict, params, formats, *args)

    def observe(
        self, params: PyTree, *args: Any, formats: Subnetwork, **options: Any
    ) -> Observations:
        """Returns statistics of the full network's sites' inputs in training mode."""
        return self._masked(self.classifier.observe, params, formats, *args, **options)

    def _masked(self, run, params, subnetwork, *args, **options):
        """Runs the full network's method with the sub-network's weights and formats."""
        params = self.net.mask(params, subnetwork.choice)
        formats = live_formats(
            self.net,
            subnetwork.choice,
            subnetwork.formats,
            per_channel=self.classifier.quantized.per_channel,
        )
        return run(params, *args, formats=formats, **options)


def extracted_formats(
    net: SuperNetwork, choice: Int[ArrayLike, "A"], formats: SiteFormats
) -> SiteFormats:
    """Returns the formats and clip bounds of the small network's own sites.

    Args:
      net: the super-network.
      choice: concrete option indices.
      formats: of the full network's sites.
    """
    kept = {site.path for site in subnetwork_sites(net, choice)}
    rows = [number for number, site in enumerate(net.sites) if site.path in kept]
    return jax.tree.map(lambda leaf: leaf[np.asarray(rows)], formats)
