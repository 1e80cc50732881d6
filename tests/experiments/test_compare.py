"""Which runs a comparison queues, and in what order; no run is started."""

import concurrent.futures

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import compare


class Recorder:
    """A pool that records what would run and lets everything succeed."""

    def __init__(self):
        self.runs = {}

    def submit(self, run, folder, launcher, own, needed):
        assert run is compare._run
        future = concurrent.futures.Future()
        future.set_result(None)
        future.name = folder.name
        assert needed is None or needed.name in self.runs  # queued before
        waits_for = None if needed is None else needed.name
        self.runs[folder.name] = (launcher, own, waits_for)
        return future


@pytest.fixture
def queued(tmp_path):
    def queue(*arguments):
        pool = Recorder()
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            flags.FLAGS(["compare", *arguments])
            for seed in flags.FLAGS.seeds:
                list(compare._submit(pool, tmp_path, seed))
        return pool.runs

    return queue


def test_without_options_there_are_search_uniform_random_and_retrained(queued):
    runs = queued("--seeds=3")
    assert list(runs) == [
        f"{name}-seed3"
        for name in ("search", "uniform_int3", "random_0", "random_1", "retrain")
    ]
    assert {launcher for launcher, *_ in runs.values()} == {"experiments.fliqs"}
    assert runs["retrain-seed3"][2] == "search-seed3"


def test_sensitivities_share_one_float_network_a_seed(queued, tmp_path):
    runs = queued("--seeds=0,1", "--sensitivity=loss,fisher")
    floats = [name for name in runs if name.startswith("float")]
    assert floats == ["float-seed0", "float-seed1"]
    assert "--policy=fp32" in runs["float-seed1"][1]
    for measure in ("loss", "fisher"):
        found = f"sensitivity_{measure}_untrained-seed1"
        launcher, own, needed = runs[found]
        assert launcher == "experiments.sensitivity" and needed == "float-seed1"
        assert f"--init_from={tmp_path / 'float-seed1'}" in own
        assert f"--measure={measure}" in own and "--seed=1" in own
        launcher, own, needed = runs[f"sensitivity_{measure}-seed1"]
        assert launcher == "experiments.fliqs" and needed == found
        assert f"--policy={tmp_path / found / 'policy.json'}" in own
