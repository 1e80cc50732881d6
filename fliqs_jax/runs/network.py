"""The trained network of a finished run: saved, and loaded for use.

An orbax checkpoint of what inference needs and nothing else: float weights, batch
statistics, clip bounds, input statistics. The formats are in `policy.json` beside it.
Weights with codebooks are read from their packed file, where a run wrote one. Grids
that no name tells (zero points, of post-training quantization) are stored themselves.
"""

import dataclasses
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, PyTree

from fliqs_jax.deploy import load_codebooks
from fliqs_jax.formats import Format
from fliqs_jax.models import create_model, supernets
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantizers.codebook import decode_params
from fliqs_jax.searchers.joint.static_calibration import no_quantization
from fliqs_jax.sites import Site
from fliqs_jax.train.checkpoints import Checkpoints, restore_tree
from fliqs_jax.train.classifier import Classifier, image_sites
from fliqs_jax.train.pretrained import NETWORK, network_run
from fliqs_jax.train.workdir import read_json

CODEBOOK_FILE = "codebooks.fqcb"  # of a run that compressed its weights


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained, quantized network: raw images in, logits out.

    `classifier.quantized` and `variables` are for your own `apply`.
    """

    classifier: Classifier
    params: PyTree
    model_state: PyTree
    policy: Policy
    formats: SiteFormats  # of the policy, with the clip bounds of training
    # Quantized after training: weights are on grids of their own, their formats fp32.
    static: bool = False

    def __call__(self, images: ArrayLike) -> Float[Array, "B C"]:
        """Returns logits of uint8 images [B, H, W, C]."""
        return self.predict(self.variables, images)

    @property
    def variables(self) -> PyTree:
        return {"params": self.params, **self.model_state}

    def predict(self, variables: PyTree, images: ArrayLike) -> Float[Array, "B C"]:
        """Returns logits for other variables of the same network, for `jit`."""
        others = dict(variables)
        params = others.pop("params")
        return self.classifier.predict(params, others, images, formats=self.formats)


def save_network(
    workdir: pathlib.Path,
    state: PyTree,
    formats: SiteFormats,
    classifier: Classifier,
    *,
    static: bool = False,
) -> None:
    """Saves what inference needs of a state with `params` and `model_state`.

    Args:
      workdir: of the run.
      state: what was trained; with `static`, its weights are on their grids already.
      formats: as run, with their clip bounds.
      classifier: the network.
      static: save the grids of the inputs, too, which the names in `policy.json` do not
        tell (see `static_input_formats`).
    """
    clips = {
        "weight_clip": formats.weight_clip,
        "activation_clip": formats.activation_clip,
    }
    tree = {
        "params": state.params,
        "model_state": state.model_state,
        "clips": {name: clip for name, clip in clips.items() if clip is not None},
        "mean": jnp.asarray(classifier.mean),
        "std": jnp.asarray(classifier.std),
    }
    if static:
        tree["input_grids"] = {
            field.name: jnp.asarray(getattr(formats.activation, field.name))
            for field in dataclasses.fields(Format)
        }
    with Checkpoints(workdir / NETWORK, keep=1) as checkpoints:
        checkpoints.save(0, tree)


def load_network(
    workdir: str | os.PathLike, model: nn.Module | nnx.Module | None = None
) -> Network:
    """Loads the trained network of a finished run.

    Args:
      workdir: of the run; of one that found many networks, it is the chosen one's.
      model: the Flax module that was trained; None makes it anew where the run's
        launcher created it by name.

    Raises:
      FileNotFoundError: if the workdir holds no finished run.
      ValueError: if `model` is needed, or does not fit the run's policy.
    """
    folder = network_run(pathlib.Path(workdir).absolute())
    config = read_json(folder / "config.json")
    network = config["network"]
    if model is None and (folder / supernets.ARCHITECTURE_FILE).exists():
        file = folder / supernets.ARCHITECTURE_FILE  # a part of a super-network
        model = supernets.model_of_record(read_json(file), file)
    if model is None:
        model = _recreate(network, folder)
    policy = Policy.load(folder / "policy.json")
    tree = jax.tree.map(jnp.asarray, restore_tree(folder / NETWORK))
    if (folder / CODEBOOK_FILE).exists():  # what is deployed, and so what is used
        params = decode_params(load_codebooks(folder / CODEBOOK_FILE))
        tree["params"] = jax.tree.map(jnp.asarray, params)
    sites = image_sites(
        model,
        network["image_shape"],
        attention_products=network.get("attention_products", False),
    )
    classifier = Classifier(
        quantized=QuantizedModel(
            model, sites=sites, per_channel=network["per_channel"]
        ),
        mean=tuple(tree["mean"].tolist()),
        std=tuple(tree["std"].tolist()),
    )
    return Network(
        classifier=classifier,
        params=tree["params"],
        model_state=tree.get("model_state", {}),
        policy=policy,
        formats=_formats(policy, sites, tree),
        static="input_grids" in tree,
    )


def _formats(policy: Policy, sites: tuple[Site, ...], tree: PyTree) -> SiteFormats:
    policy.check(sites)
    clips = tree.get("clips", {})
    if "input_grids" in tree:  # weights are on their grids
        static = no_quantization(len(sites))
        return static.replace(activation=Format(**tree["input_grids"]), **clips)
    return policy.formats(sites).replace(**clips)


def _recreate(network: dict[str, Any], folder: pathlib.Path) -> nn.Module:
    if "supernet" in network:
        net = supernets.create_supernet(
            network["supernet"],
            num_classes=network["num_classes"],
            image_shape=tuple(network["image_shape"]),
            **network["options"],
        )
        return net.subnetwork(network["choice"])
    if network["name"] is None:
        raise ValueError(
            f"the network of {folder} was not created by name: pass model= (to a"
            " launcher, --factory=package.module:factory)"
        )
    return create_model(
        network["name"], num_classes=network["num_classes"], **network["options"]
    )
