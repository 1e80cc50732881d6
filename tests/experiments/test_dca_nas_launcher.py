"""The launcher of cell searches: both signals, limits, refusals, resuming."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from killing import assert_same_end, kill_and_resume
from launcher_contract import LauncherContract
from launching import launch

import fliqs_jax as fq
from experiments import common, dca_nas, evaluate, fliqs
from fliqs_jax import costs
from fliqs_jax.models import cells
from fliqs_jax.train.classifier import image_sites

PARAMETERS = cells.nasbench201_network_counts(10, image_shape=(8, 8, 1))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Made up: larger cells are better, skips are quick."""
    file = tmp_path_factory.mktemp("table") / "table.csv"
    rows = ["index,valid_accuracy,test_accuracy,latency_ms_chip"]
    for index, names in enumerate(cells.nasbench201_all()):
        good = 3 * names.count("nor_conv_3x3") + 2 * names.count("nor_conv_1x1")
        slow = 0.1 + names.count("nor_conv_3x3") + 0.5 * names.count("avg_pool_3x3")
        rows.append(f"{index},{40 + good},{50 + good},{slow}")
    file.write_text("\n".join(rows))
    return file


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def by_table(table, *flags):
    return (
        "--signal=table",
        f"--table={table}",
        "--accuracy_column=valid_accuracy",
        "--test_column=test_accuracy",
        "--steps=200",
        *flags,
    )


@pytest.fixture(scope="module")
def limited(table):
    limits = ("--latency_column=latency_ms_chip", "--latency_limit=2.5")
    return by_table(table, "--parameter_limit=0.6e6", *limits)


@pytest.fixture(scope="module")
def finished(limited, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    launch(dca_nas, f"--workdir={workdir}", *limited)
    return workdir


class TestContract(LauncherContract):
    launcher = dca_nas

    @pytest.fixture
    def arguments(self, limited):
        return limited

    def test_evaluate_gives_the_accuracy_of_the_summary(self, finished):
        with pytest.raises(FileNotFoundError, match="finished, but trained no network"):
            launch(evaluate, f"--workdir={finished}")


def test_table_search_holds_its_limits_and_reports_the_cell(finished):
    found = summary_of(finished)
    assert found["violations"] == [] and found["parameters"] <= 0.6e6
    index = cells.nasbench201_index(found["genotype"])
    choice = cells.NASBENCH201.choice(index)
    assert found["index"] == index
    parameters = PARAMETERS.cost("parameters").of(cells.NASBENCH201, choice)
    assert found["parameters"] == found["costs"]["parameters"] == parameters
    assert found["costs"]["latency_ms_chip"] == found["table"]["latency_ms_chip"] <= 2.5
    assert found["accuracy"] == pytest.approx(found["table"]["test_accuracy"] / 100)
    assert found["accuracy_source"] == "table, test_accuracy"
    assert found["limits"] == {"parameters": 0.6e6, "latency_ms_chip": 2.5}
    assert set(found["multipliers"]) == set(found["limits"])
    assert found["latency_fit_r2"] == pytest.approx(1.0)
    others = found["baselines"]
    assert others["oracle"] >= found["table"]["test_accuracy"] > others["mean_cell"]
    page = (finished / "report.html").read_text()
    assert "Expected and derived cost" in page and found["genotype"] in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parameter_limit=7e4"], "the smallest cell has 7"),
        (["--accuracy_column=test_accuracy"], "for judging what was found"),
        (["--latency_limit=2"], "need each other"),
        (["--space=darts"], "is for --space=nasbench201"),
        (["--bops_limit=1e9"], "give the formats to choose from"),
        (["--stage_formats=int4,int8", "--bops_limit=1e9"], "the others are of float"),
    ],
)
def test_what_no_search_can_do_is_refused(table, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        launch(dca_nas, f"--workdir={tmp_path}/run", *by_table(table, *flags))


def test_table_of_another_network_is_refused(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("index,valid_accuracy,parameters\n0,60,129306\n1,61,802426")
    with pytest.raises(ValueError, match="cell 0 has 129306 parameters"):
        launch(
            dca_nas,
            f"--workdir={tmp_path}/run",
            "--signal=table",
            f"--table={file}",
            "--accuracy_column=valid_accuracy",
        )


@pytest.mark.slow
def test_network_search_trains_what_it_derived_and_resumes(tmp_path, capsys):
    flags = (
        "--space=nasbench201",
        "--model_options=width=4,num_cells=1",
        "--search_options=bottleneck=2",
        "--parameter_limit=8000",
        "--macs_limit=200000",
        "--skip_limit=3",
        "--size_bits_limit=60000",
        "--size_format=int8",
        "--steps=12",
        "--checkpoint_every=4",
        "--batch_size=64",
        "--validation_fraction=0.5",
        "--final_steps=6",
        "--evaluate_every=0",
        "--log_every=2",
        "--architecture_learning_rate=0.1",
    )
    launch(dca_nas, f"--workdir={tmp_path}/a", *flags)
    found = summary_of(tmp_path / "a")
    assert found["violations"] == []
    for name, bound in found["limits"].items():
        assert found["costs"][name] <= bound
    assert found["accuracy_source"].startswith("test set")
    derived = summary_of(tmp_path / "a" / "derived")
    assert found["accuracy"] == derived["accuracy"]
    capsys.readouterr()
    launch(evaluate, f"--workdir={tmp_path}/a")
    evaluated = json.loads(capsys.readouterr().out)["accuracy"]
    assert evaluated == pytest.approx(found["accuracy"], abs=1e-9)
    # Killed after the search: the derived network is trained again, nothing else.
    (tmp_path / "a" / "summary.json").unlink()
    launch(dca_nas, f"--workdir={tmp_path}/a", *flags)
    again = summary_of(tmp_path / "a")
    assert again["genotype"] == found["genotype"]
    np.testing.assert_equal(again["multipliers"], found["multipliers"])
    # Killed in the search, with architecture weights and multipliers on their way.
    output = kill_and_resume(dca_nas, tmp_path / "killed", *flags)
    assert "resumed at step" in output
    assert_same_end(tmp_path / "a", tmp_path / "killed")
    assert summary_of(tmp_path / "killed")["genotype"] == found["genotype"]


@pytest.mark.slow
def test_formats_of_stages_are_searched_with_the_operations(tmp_path):
    flags = (
        "--space=nasbench201",
        "--model_options=width=4,num_cells=1",
        "--search_options=bottleneck=2",
        "--stage_formats=int4,int6,int8",
        "--bops_limit=4e6",
        "--steps=12",
        "--batch_size=64",
        "--validation_fraction=0.5",
        "--final_steps=6",
        "--evaluate_every=0",
        "--log_every=2",
        "--architecture_learning_rate=0.1",
    )
    folder = tmp_path / "run"
    launch(dca_nas, f"--workdir={folder}", *flags)
    found = summary_of(folder)
    assert found["violations"] == [] and found["costs"]["bops"] <= 4e6
    assert len(found["stage_formats"]) == 3
    # The derived network was trained at the policy found, which costs as much.
    trained = fq.Policy.load(folder / "derived" / "policy.json")
    policy = fq.Policy.load(folder / "policy.json")
    assert [w for w, _ in trained.values()] == [w for w, _ in policy.values()]
    model = fq.create_model("nasbench201", cell=found["genotype"], width=4, num_cells=1)
    sites = image_sites(model, (8, 8, 1))
    cost = costs.policy_cost(costs.site_bops, sites, policy)
    assert found["costs"]["bops"] == cost
    assert "format of stage 3" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_training_free_search_scores_once_and_hands_its_network_on(tmp_path):
    flags = (
        "--signal=training_free",
        "--model_options=width=4",
        "--parameter_limit=2e4",
        "--scored_cells=10",
        "--steps=8",
        "--batch_size=64",
        "--evaluate_every=0",
    )
    folder = tmp_path / "run"
    launch(dca_nas, f"--workdir={folder}", *flags)
    found = summary_of(folder)
    assert found["violations"] == [] and found["parameters"] <= 2e4
    assert found["compile_count"] == 1
    scores = (folder / "scores.csv").read_text()
    assert len(scores.splitlines()) == 11 == 1 + found["scored_cells"]
    # Another limit takes the scores that are there, and passes them on.
    other = (
        "--parameter_limit=1e5",
        f"--scores={folder}/scores.csv",
        "--final_steps=0",
    )
    launch(dca_nas, f"--workdir={tmp_path}/other", *flags, *other)
    assert (tmp_path / "other" / "scores.csv").read_text() == scores
    # The derived network starts a search of formats.
    launch(
        fliqs,
        f"--workdir={tmp_path}/formats",
        "--model=nasbench201",
        f"--model_options=width=4,cell={found['index']}",
        f"--init_from={folder}/derived",
        "--steps=8",
        "--batch_size=64",
        "--evaluate_every=0",
    )
    assert summary_of(tmp_path / "formats")["accuracy"] > 0


def test_scores_of_another_seed_or_of_nothing_known_are_refused(tmp_path):
    flags = ("--signal=training_free", f"--scores={tmp_path}/scores.csv", "--seed=1")
    with pytest.raises(ValueError, match="config.json is not beside it"):
        launch(dca_nas, f"--workdir={tmp_path}/run", *flags)
    theirs = dict.fromkeys(dca_nas.SCORED_BY) | {"dataset": "digits"}
    theirs |= {"validation_fraction": 0.1, "dtype": "float32", "seed": 0}
    theirs |= {"model_options": [], "search_options": []}
    (tmp_path / "config.json").write_text(json.dumps({"flags": theirs}))
    with pytest.raises(ValueError, match="are of --seed=0, this run's is 1"):
        launch(dca_nas, f"--workdir={tmp_path}/run", *flags)
    assert not (tmp_path / "run").exists()


def test_scores_of_all_cells_are_not_predicted_in_darts(tmp_path):
    with pytest.raises(ValueError, match="which darts has too many of"):
        launch(
            dca_nas,
            f"--workdir={tmp_path}/run",
            "--space=darts",
            "--signal=training_free",
            "--parameter_limit=2e6",
        )


def test_a_found_genotype_is_given_back_as_an_option():
    """Quotes keep its commas together, as in any CSV."""
    genotype = cells.darts_genotype("DARTS_V2")
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["x", f'--model_options="genotype={genotype}",layers=3'])
        options = common.model_options()
    assert options["layers"] == 3
    assert cells.darts_genotype(options["genotype"]) == genotype
