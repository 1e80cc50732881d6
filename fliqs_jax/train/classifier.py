"""An image classifier as training sees it: uint8 images in, logits and state out.

Joins a quantized Flax model with input normalisation and finds out how the model is
told that it is training. Knows nothing of losses or of search.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, PyTree

from fliqs_jax.data import Dataset, normalise
from fliqs_jax.nnx_adapter import NnxModel
from fliqs_jax.policy import FormatMixture, Policy, SiteFormats
from fliqs_jax.quantized_model import Observations, QuantizedModel
from fliqs_jax.sites import Site, find_sites
from fliqs_jax.training_mode import training_keywords

Augment = Callable[[Array, Array], Array]  # (key, uint8 images) -> images


def training_arguments(model: Any, train: bool) -> dict[str, bool]:
    """Returns the keyword that switches `model.__call__` to training or evaluation.

    An NNX model is switched by `train=`, whatever it takes itself.

    Example:
      >>> import flax.linen as nn
      >>> class Net(nn.Module):
      ...     def __call__(self, x, deterministic=True): ...
      >>> training_arguments(Net(), train=True)
      {'deterministic': False}
    """
    if isinstance(model, nnx.Module | NnxModel):
        return {"train": train}
    return training_keywords(type(model).__call__, train)


def image_sites(
    model: nn.Module | nnx.Module,
    image_shape: Sequence[int],
    *,
    attention_products: bool = False,
) -> tuple[Site, ...]:
    """Returns the sites of an image classifier, by shapes alone.

    Args:
      model: a linen or NNX module called with images.
      image_shape: of one image, [H, W, C].
      attention_products: with the products inside attention layers; see `find_sites`.

    Example:
      >>> from fliqs_jax.models import create_model
      >>> [site.path for site in image_sites(create_model("lenet300"), (28, 28, 1))]
      ['Dense_0', 'Dense_1', 'Dense_2']
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    arguments = training_arguments(model, train=False)
    return find_sites(model, image, attention_products=attention_products, **arguments)


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A model with its quantization and its input statistics; holds no variables.

    Model state means every collection but `params` (batch statistics, mostly).
    """

    quantized: QuantizedModel
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    augment: Augment | None = None  # of training batches, on device

    @classmethod
    def of(
        cls, quantized: QuantizedModel, dataset: Dataset, augment: Augment | None = None
    ) -> "Classifier":
        """Returns a classifier with the input statistics of a data set.

        Raises:
          ValueError: if the model returns something else than a logit for each class.
        """
        mean, std = tuple(dataset.mean.tolist()), tuple(dataset.std.tolist())
        classifier = cls(quantized, mean, std, augment)
        classifier.check_outputs(dataset)
        return classifier

    def check_outputs(self, dataset: Dataset) -> None:
        """Refuses a model without a logit for each of the data's classes."""
        image = jax.ShapeDtypeStruct((1, *dataset.train.image_shape), jnp.uint8)

        def output(image):
            params, state = self.init(jax.random.key(0), image)
            return self.quantized.apply(
                {"params": params, **state},
                self.normalise(image),
                **training_arguments(self.quantized.model, train=False),
            )

        logits = jax.eval_shape(output, image)
        wanted = f"logits [B, {dataset.num_classes}] for {dataset.name!r}"
        if not isinstance(logits, jax.ShapeDtypeStruct):
            raise ValueError(
                f"model must return {wanted}, got a {type(logits).__name__}: wrap it in"
                " a module that returns the logits alone, such as"
                " self.inner(images).logits"
            )
        if logits.shape != (1, dataset.num_classes):
            raise ValueError(
                f"model must return {wanted}, got {list(logits.shape)} for one image:"
                f" give it {dataset.num_classes} outputs"
            )

    def init(self, key: Array, images: ArrayLike) -> tuple[PyTree, PyTree]:
        """Returns freshly initialised (params, model state)."""
        variables = self.quantized.init(
            {"params": key, "dropout": jax.random.fold_in(key, 1)},
            self.normalise(images),
            **training_arguments(self.quantized.model, train=False),
        )
        state = {name: tree for name, tree in variables.items() if name != "params"}
        return variables["params"], state

    def normalise(self, images: ArrayLike) -> Float[Array, "B H W C"]:
        """Returns float32 images with zero mean and unit variance per channel."""
        return normalise(images, jnp.asarray(self.mean), jnp.asarray(self.std))

    def training_images(self, key: Array, images: ArrayLike) -> Float[Array, "B H W C"]:
        """Returns uint8 images augmented (if the classifier is to) and normalised."""
        if self.augment is not None:
            images = self.augment(key, images)
        return self.normalise(images)

    def train_forward(
        self,
        params: PyTree,
        model_state: PyTree,
        images: ArrayLike,
        *,
        formats: SiteFormats | FormatMixture | Policy | None,
        dropout_key: Array | None = None,
        gradient_zeros: Mapping[str, Float[Array, ""]] | None = None,
    ) -> tuple[Float[Array, "B C"], PyTree]:
        """Returns logits in training mode and the updated model state.

        Squared gradients of sites' inputs come as those of `gradient_zeros`; see
        `QuantizedModel.apply`.
        """
        return self.quantized.apply(
            {"params": params, **model_state},
            images,
            policy=formats,
            gradient_zeros=gradient_zeros,
            mutable=list(model_state),
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            **training_arguments(self.quantized.model, train=True),
        )

    def predict(
        self,
        params: PyTree,
        model_state: PyTree,
        images: ArrayLike,
        *,
        formats: SiteFormats | FormatMixture | Policy | None,
    ) -> Float[Array, "B C"]:
        """Returns logits of raw uint8 images in evaluation mode."""
        return self.quantized.apply(
            {"params": params, **model_state},
            self.normalise(images),
            policy=formats,
            **training_arguments(self.quantized.model, train=False),
        )

    def observe(
        self,
        params: PyTree,
        model_state: PyTree,
        images: ArrayLike,
        *,
        formats: SiteFormats | FormatMixture | Policy | None,
        dropout_key: Array | None = None,
    ) -> Observations:
        """Returns statistics of the sites' inputs in training mode."""
        return self.quantized.observe(
            {"params": params, **model_state},
            images,
            policy=formats,
            mutable=list(model_state),
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            **training_arguments(self.quantized.model, train=True),
        )
