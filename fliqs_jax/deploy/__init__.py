"""Deployment: what a compressed network takes on disk, and its file."""

from fliqs_jax.deploy.codebook_file import load_codebooks, save_codebooks
from fliqs_jax.deploy.compression import (
    codebook_bits,
    compressed_bits,
    compression_ratio,
    published_ratio,
)
from fliqs_jax.deploy.packing import index_bits, pack_indices, unpack_indices

__all__ = [
    "codebook_bits",
    "compressed_bits",
    "compression_ratio",
    "index_bits",
    "load_codebooks",
    "pack_indices",
    "published_ratio",
    "save_codebooks",
    "unpack_indices",
]
