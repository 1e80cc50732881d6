"""What makes a run from Python another run, what it refuses, what it can mend."""

import json

import flax.linen as nn
import jax
import pytest
from launching import launch

import fliqs_jax as fq
from experiments import evaluate
from fliqs_jax.costs import cost_name, make_site_latency, make_site_storage
from fliqs_jax.costs.latency import DEVICES


class Small(nn.Module):
    outputs: int = 10

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(x.reshape((len(x), -1)))


class Frozen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jax.lax.stop_gradient(nn.Dense(8)(x.reshape((len(x), -1))))
        return nn.Dense(10)(nn.relu(x))


class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"logits": Small()(x)}


JOB = fq.JobSettings(steps=2, batch_size=8, evaluate_every=0)


@pytest.fixture(scope="module")
def digits():
    return fq.load_dataset("digits")


@pytest.fixture(scope="module")
def space(digits):
    sites = fq.find_sites(Small(), digits.train.images[:1].astype("float32"))
    return fq.SearchSpace(sites, ["int4", "int8"])


@pytest.fixture(scope="module")
def search(digits, space):
    def run(workdir, method=fq.search_formats, model=None, **changed):
        arguments = {
            "cost_target": 1.0,
            "job": JOB,
            "policy": fq.Policy.uniform(space.sites, "int8"),
            "say": lambda text: None,
            **changed,
        }
        model = model or Small()
        return method(model, digits, space, workdir=str(workdir), **arguments)

    return run


@pytest.fixture(scope="module")
def finished(search, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "mine"
    search(folder)
    return folder


@pytest.mark.parametrize(
    "name, changed",
    [
        ("fixed_policy.Dense_0", {"policy": "int4"}),
        ("optimizer.learning_rate", {"optimizer": {"learning_rate": 0.2}}),
        ("settings.dynamic_scales", {"fliqs": {"dynamic_scales": True}}),
        ("cost: ", {"cost": make_site_storage()}),
        ("augment", {"augment": lambda key, images: images}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_change_the_result_make_another_run(
    search, finished, space, name, changed
):
    made = {
        "policy": lambda fmt: fq.Policy.uniform(space.sites, fmt),
        "optimizer": lambda fields: fq.OptimizerSettings(**fields),
        "fliqs": lambda fields: fq.FliqsSettings(**fields),
    }
    changed = {key: made.get(key, lambda x: x)(value) for key, value in changed.items()}
    with pytest.raises(ValueError, match=f"other settings(?s:.*){name}"):
        search(finished, **changed)


def test_the_same_arguments_find_the_result_and_a_lost_report_again(search, finished):
    (finished / "report.html").unlink()
    before = (finished / "summary.json").read_text()
    assert search(finished).cost == json.loads(before)["cost"]
    assert (finished / "summary.json").read_text() == before
    assert "digits" in (finished / "report.html").read_text()


def test_a_run_from_python_can_be_evaluated(search, finished, capsys, monkeypatch):
    monkeypatch.setattr(f"{__name__}.made", lambda num_classes: Small(), raising=False)
    factory = f"--factory={__name__}:made"
    capsys.readouterr()
    launch(evaluate, f"--workdir={finished}", factory)
    accuracy = json.loads((finished / "summary.json").read_text())["accuracy"]
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(accuracy)
    with pytest.raises(ValueError, match="made from Python.*--split=test"):
        launch(evaluate, f"--workdir={finished}", factory, "--split=validation")


@pytest.mark.parametrize("method", [fq.search_formats, fq.search_bits])
@pytest.mark.parametrize(
    "changed, message",
    [
        ({"cost_target": 0.0}, "cost_target must be positive, got 0.0"),
        ({"model": Small(9)}, r"logits \[B, 10\] for 'digits', got \[1, 9\]"),
        ({"model": Wrapped()}, "got a dict: wrap it"),
    ],
    ids=["no budget", "outputs", "no array"],
)
def test_what_cannot_end_well_does_not_begin(
    search, method, changed, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        search(tmp_path / "run", method, **changed)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: fq.OptimizerSettings(learning_rate=-1.0),
        lambda: fq.OptimizerSettings(name="lion"),
        lambda: fq.FliqsSettings(label_smoothing=1.5),
        lambda: fq.FliqsSettings(label_smoothing=float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_a_report_names_the_cost_of_a_run_from_python(search, tmp_path):
    search(tmp_path / "run", cost=make_site_storage())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cost"] == "size"
    assert "model size" in (tmp_path / "run" / "report.html").read_text()
    assert cost_name(make_site_latency(DEVICES["h100"])) == "latency"
    assert cost_name(lambda site, w, a: 1) == "cost"


@pytest.fixture(scope="module")
def search_frozen(digits):
    sites = fq.find_sites(Frozen(), digits.train.images[:1].astype("float32"))

    def run(workdir, method, formats, pins=None, **changed):
        space = fq.SearchSpace(sites, formats, pins=pins)
        arguments = {"cost_target": 1.0, "job": JOB, "workdir": str(workdir), **changed}
        return method(Frozen(), digits, space, say=lambda text: None, **arguments)

    return run


METHODS = pytest.mark.parametrize(
    "method",
    [fq.search_formats, pytest.param(fq.search_bits, marks=pytest.mark.slow)],
)


@METHODS
def test_sites_that_cannot_be_observed_are_named(search_frozen, method, tmp_path):
    with pytest.raises(ValueError, match="inputs of 'Dense_0' cannot be observed"):
        search_frozen(tmp_path / "run", method, ["int4", "int8"])


@pytest.mark.slow
@METHODS
def test_sites_that_cannot_be_observed_may_stay_in_float(
    search_frozen, method, tmp_path
):
    options, pins = ["int4", "int8", "fp32"], {"Dense_0": "fp32"}
    search_frozen(tmp_path / "pinned", method, options, pins, cost_target=16.0)
    policy = fq.Policy({"Dense_0": ("fp32", "fp32"), "Dense_1": ("fp32", "fp32")})
    search_frozen(tmp_path / "float", method, ["int8", "fp32"], policy=policy)
    if method is fq.search_formats:
        absmax = fq.FliqsSettings(dynamic_scales=True)
        search_frozen(tmp_path / "absmax", method, ["int4", "int8"], fliqs=absmax)
