"""Test set-up: eight simulated devices, strict ranks, repeatable hypothesis."""

import os

# All must be set before jax is imported.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation, and what it computes is small.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Eight devices on two busy cores may keep each other waiting for longer than the 40 s
# after which XLA ends the process.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import pathlib

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("exact", deadline=None, derandomize=True)
hypothesis.settings.load_profile("exact")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data sets beside the checkout, named by FLIQS_TEST_DATA."""
    default = pathlib.Path(__file__).resolve().parents[1] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("FLIQS_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set FLIQS_TEST_DATA")
    return folder
