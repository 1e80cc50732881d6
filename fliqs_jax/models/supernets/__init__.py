"""Super-networks: many networks in one set of weights, the choice being data."""

from fliqs_jax.models.supernets.architecture import (
    ARCHITECTURE_FILE,
    SupernetRecord,
    architecture_record,
    choice_of,
    describe_choice,
    model_of_record,
)
from fliqs_jax.models.supernets.costs import (
    LiveSites,
    live_formats,
    live_mask,
    live_sites,
    subnetwork_parameters,
    subnetwork_policy,
    subnetwork_sites,
)
from fliqs_jax.models.supernets.extraction import extract
from fliqs_jax.models.supernets.mobilenet_v2 import mobilenet_v2_supernet
from fliqs_jax.models.supernets.network import Decision, SuperNetwork
from fliqs_jax.models.supernets.registry import (
    create_supernet,
    register_supernet,
    supernet_names,
)
from fliqs_jax.models.supernets.resnet import (
    cifar_resnet_supernet,
    imagenet_resnet_supernet,
)
from fliqs_jax.models.supernets.skipping import skip_dead_layers
from fliqs_jax.models.supernets.variants import (
    effect_decisions,
    site_decisions,
    site_variants,
)
from fliqs_jax.models.supernets.vit import vit_supernet

__all__ = [
    "ARCHITECTURE_FILE",
    "Decision",
    "LiveSites",
    "SuperNetwork",
    "SupernetRecord",
    "architecture_record",
    "choice_of",
    "cifar_resnet_supernet",
    "create_supernet",
    "describe_choice",
    "effect_decisions",
    "extract",
    "imagenet_resnet_supernet",
    "live_formats",
    "live_mask",
    "live_sites",
    "mobilenet_v2_supernet",
    "model_of_record",
    "register_supernet",
    "site_decisions",
    "site_variants",
    "skip_dead_layers",
    "subnetwork_parameters",
    "subnetwork_policy",
    "subnetwork_sites",
    "supernet_names",
    "vit_supernet",
]
