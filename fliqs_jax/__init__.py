"""Finds a number format for every layer of a Flax model, in about one training run.

The names that most users need. Everything else is in the subpackages, by its folder.
"""

from fliqs_jax.costs import average_bits, bops, latency_s, model_bits
from fliqs_jax.data import load_dataset, make_dataset
from fliqs_jax.formats import Format, parse_format, stack_formats
from fliqs_jax.models import create_model, model_names
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.quantizers import fake_quantize
from fliqs_jax.runs.bit_search import QBitOptSettings, search_bits
from fliqs_jax.runs.format_search import search_formats
from fliqs_jax.runs.network import Network, load_network
from fliqs_jax.runs.results import SearchResult
from fliqs_jax.runs.search_run import OptimizerSettings
from fliqs_jax.search_space import SearchSpace
from fliqs_jax.searchers.in_training.settings import FliqsSettings
from fliqs_jax.site_types import register_site_type
from fliqs_jax.sites import Site, find_sites
from fliqs_jax.train.job import JobSettings
from fliqs_jax.train.pretrained import load_variables

__all__ = [
    "FliqsSettings",
    "Format",
    "JobSettings",
    "Network",
    "OptimizerSettings",
    "Policy",
    "QBitOptSettings",
    "QuantizedModel",
    "SearchResult",
    "SearchSpace",
    "Site",
    "SiteFormats",
    "average_bits",
    "bops",
    "create_model",
    "fake_quantize",
    "find_sites",
    "latency_s",
    "load_dataset",
    "load_network",
    "load_variables",
    "make_dataset",
    "model_bits",
    "model_names",
    "parse_format",
    "register_site_type",
    "search_bits",
    "search_formats",
    "stack_formats",
]
