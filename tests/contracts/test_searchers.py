"""What every search that trains keeps to, under the job that runs them all."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_searches import SEARCHES

from fliqs_jax.data import load_dataset
from fliqs_jax.train import mapping
from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.job import JobSettings, Searcher, run_job
from fliqs_jax.train.metrics import read_metrics

STEPS, SAVED = 16, 8


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@dataclasses.dataclass(frozen=True)
class Run:
    make: Any
    searcher: Searcher
    workdir: Path
    state: Any
    facts: dict

    def rows(self, kind="train"):
        return [row for row in read_metrics(self.workdir) if row["kind"] == kind]

    def losses(self):
        return [row["loss"] for row in self.rows()]

    def saved(self):
        return restore_tree(self.workdir / "checkpoints")["state"]


def run(make, digits, workdir, said=None, **changed):
    """Runs a search to its end, or from where the workdir stands."""
    searcher = make(digits)
    workdir.mkdir(exist_ok=True)
    settings = JobSettings(
        **{
            "steps": STEPS,
            "batch_size": 32,
            "log_every": 1,
            "evaluate_every": 0,
            "checkpoint_every": SAVED,
            "judge_on_validation": True,
            "recalibration_batches": 1,
            **changed,
        }
    )
    state, _, facts = run_job(
        searcher,
        digits,
        settings,
        workdir=str(workdir),
        mesh=mapping.make_mesh(),
        say=(lambda text: None) if said is None else said.append,
    )
    return Run(make, searcher, workdir, state, facts)


@pytest.fixture(scope="module")
def compiled_before(tmp_path_factory):
    """Keeps compiled programs, since each search is started several times."""
    here = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in here}

    def configure(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it reads them once

    configure(here)
    yield
    configure(before)


# FLIQNAS is FLIQS but for what it decides, and compiles longest.
FAST = [
    pytest.param(name, marks=pytest.mark.slow if name == "fliqnas" else ())
    for name in SEARCHES
]


@pytest.fixture(scope="module", params=FAST)
def whole(request, digits, tmp_path_factory, compiled_before):
    workdir = tmp_path_factory.mktemp(request.param) / "whole"
    return run(SEARCHES[request.param], digits, workdir)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_is_a_searcher_of_one_program(whole):
    assert isinstance(whole.searcher, Searcher)
    assert whole.facts["compile_count"] == 1
    assert whole.facts["seconds"] > 0


def test_step_counts_and_the_state_keeps_its_shapes(whole, digits):
    start = whole.searcher.init(jax.random.key(0), digits.train.images[:1])
    assert int(start.step) == 0 and int(whole.state.step) == STEPS

    def shapes(state):
        return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]

    assert shapes(start) == shapes(whole.state)
    assert jax.tree.structure(start) == jax.tree.structure(whole.state)


def test_work_between_steps_lies_within_the_run(whole):
    for hook in whole.searcher.hooks(STEPS, lambda step: jax.jit(step)):
        assert hook.steps <= set(range(STEPS + 1))


def test_every_step_is_told_in_numbers_that_json_holds(whole):
    rows = whole.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert np.isfinite(whole.losses()).all()
    told = set().union(*read_metrics(whole.workdir))
    assert set(whole.searcher.progress(whole.state)) <= told


def test_the_end_is_validated_in_the_formats_of_the_last_state(whole, digits):
    (row,) = whole.rows("evaluation")
    assert row["step"] == STEPS and row["examples"] == len(digits.validation)
    formats = whole.searcher.current_formats(whole.state)
    classifier = whole.searcher.classifier
    variables = jax.device_get((whole.state.params, whole.state.model_state))
    images = digits.validation.images
    logits = jax.jit(classifier.predict)(*variables, images, formats=formats)
    hits = np.argmax(logits, axis=-1) == digits.validation.labels
    assert row["accuracy"] == pytest.approx(float(hits.mean()), abs=1.5 / len(hits))


def test_resumed_in_the_middle_it_ends_bit_identical(whole, digits, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole.workdir, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    said = []
    resumed = run(whole.make, digits, workdir, said)
    assert f"resumed at step {SAVED} of {STEPS}" in said
    assert_same(resumed.saved(), whole.saved())
    assert resumed.losses() == whole.losses()
    # A run that has ended is not trained on.
    assert run(whole.make, digits, workdir).facts["compile_count"] == 0


@pytest.mark.slow
def test_seed_decides(whole, digits, tmp_path):
    again = run(whole.make, digits, tmp_path / "again")
    assert_same(again.saved(), whole.saved())
    other = run(whole.make, digits, tmp_path / "other", seed=1)
    assert other.losses() != whole.losses()


FIRST, *OTHERS = SEARCHES
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]


@pytest.mark.parametrize("whole", [FIRST, *OTHERS], indirect=True)
def test_pmap_equals_shard_map(whole, digits, tmp_path):
    mapped = run(whole.make, digits, tmp_path / "pmap", mapping="pmap")
    # From then on a rounding of the last digit may decide for another format.
    np.testing.assert_allclose(mapped.losses()[:7], whole.losses()[:7], rtol=1e-4)


@pytest.mark.slow
def test_several_steps_in_one_call_are_the_same_steps(whole, digits, tmp_path):
    at_once = run(
        whole.make, digits, tmp_path / "at_once", steps_per_call=2, log_every=2
    )
    pairs = np.reshape(whole.losses(), (-1, 2)).mean(axis=1)
    np.testing.assert_allclose(at_once.losses()[:3], pairs[:3], rtol=1e-4)
