"""Which runs the comparison's flags ask for, in what order, with which commands."""

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import compare
from experiments.comparison.execution import command
from experiments.comparison.results import read_rows


@pytest.fixture
def planned(tmp_path):
    """Gives the runs and the shared flags that a command line asks for."""

    def plan(*arguments):
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            flags.FLAGS(["compare", *arguments])
            shared = compare.shared_flags()
            return {run.name: run for run in compare.plan(tmp_path)}, shared

    return plan


def test_without_options_there_are_search_uniform_random_and_retrained(planned):
    runs, shared = planned("--seeds=3")
    assert list(runs) == [
        f"{name}-seed3"
        for name in ("search", "uniform_int3", "random_0", "random_1", "retrain")
    ]
    assert {run.launcher for run in runs.values()} == {"experiments.fliqs"}
    assert runs["retrain-seed3"].needs == ("search-seed3",)
    # Flags identify a run that is resumed, so these spellings are kept.
    assert runs["search-seed3"].flags == ("--seed=3",)
    assert runs["random_1-seed3"].flags == ("--policy=random:3001", "--seed=3")
    assert shared == []


def test_sensitivities_share_one_float_network_a_seed(planned, tmp_path):
    runs, _ = planned("--seeds=0,1", "--sensitivity=loss,fisher")
    floats = [name for name in runs if name.startswith("float")]
    assert floats == ["float-seed0", "float-seed1"]
    assert "--policy=fp32" in runs["float-seed1"].flags
    for measure in ("loss", "fisher"):
        found = f"sensitivity_{measure}_untrained-seed1"
        run = runs[found]
        assert run.launcher == "experiments.sensitivity" and run.needs == (
            "float-seed1",
        )
        assert f"--init_from={tmp_path / 'float-seed1'}" in run.flags
        assert f"--measure={measure}" in run.flags and "--seed=1" in run.flags
        run = runs[f"sensitivity_{measure}-seed1"]
        assert run.launcher == "experiments.fliqs" and run.needs == (found,)
        assert f"--policy={tmp_path / found / 'policy.json'}" in run.flags


def test_qbitopt_and_its_uniform_baselines_run_by_its_launcher(planned):
    runs, _ = planned("--seeds=0", "--qbitopt", "--qbitopt_uniform=int3,int4")
    assert [run.name for run in runs.values() if "qbitopt" in run.launcher] == [
        *("qbitopt-seed0", "qbitopt_uniform_int3-seed0", "qbitopt_uniform_int4-seed0")
    ]
    assert "--policy=int4" in runs["qbitopt_uniform_int4-seed0"].flags


def test_codebooks_of_every_size_start_from_one_float_network_a_seed(planned, tmp_path):
    runs, shared = planned(
        *("--seeds=0,1", "--nosearch", "--uniform=", "--random_policies=0"),
        *("--compression=lc,idc", "--codebook_sizes=2,16", "--steps=900"),
        *("--reference_steps=300", "--reference_learning_rate=0.05"),
    )
    assert [name for name in runs if name.endswith("seed0")] == [
        f"{name}-seed0" for name in ("float", "lc_k2", "lc_k16", "idc_k2", "idc_k16")
    ]
    # The reference has a length and a learning rate of its own.
    assert shared == ["--steps=900"]
    own = {"--steps=300", "--learning_rate=0.05"}
    assert own <= set(runs["float-seed1"].flags)
    run = runs["idc_k16-seed1"]
    assert run.launcher == "experiments.learning_compression"
    assert run.needs == ("float-seed1",)
    assert set(run.flags) == {
        *("--method=idc", "--codebook_size=16", "--seed=1"),
        f"--init_from={tmp_path / 'float-seed1'}",
    }


def test_networks_are_searched_whole_and_in_parts_at_one_budget(planned, tmp_path):
    runs, _ = planned(
        *("--seeds=0", "--nosearch", "--uniform=", "--random_policies=0"),
        *("--fliqnas", "--cost_targets=0.05"),
    )
    assert [name.removesuffix("-seed0") for name in runs] == [
        *("fliqnas", "full_formats", "architecture-at0.05", "architecture_formats")
    ]
    assert all(run.launcher == "experiments.fliqnas" for run in runs.values())
    first, then = (
        runs[f"{name}-seed0"]
        for name in ("architecture-at0.05", "architecture_formats")
    )
    assert {"--policy=int8", "--cost_target=0.2"} <= set(first.flags)
    assert then.needs == ("architecture-at0.05-seed0",)
    folder = tmp_path / "architecture-at0.05-seed0"
    assert {f"--architecture={folder}", "--cost_target=0.05"} <= set(then.flags)


def test_networks_need_budgets(planned):
    with pytest.raises(ValueError, match="--fliqnas needs --cost_targets"):
        planned("--seeds=0", "--fliqnas")


def test_direct_compression_is_of_the_float_network_itself(planned):
    runs, _ = planned("--seeds=0", "--compression=dc", "--codebook_sizes=2")
    assert {"--steps=1", "--lc_steps=1"} <= set(runs["dc_k2-seed0"].flags)


def test_from_float_all_fine_tune_the_network_that_is_trained_first(planned, tmp_path):
    runs, _ = planned(
        *("--seeds=1", "--from_float", "--reference_steps=700", "--steps=90"),
        *("--random_policies=1", "--sensitivity=loss", "--qbitopt"),
    )
    assert next(iter(runs)) == "float-seed1"
    assert "--steps=700" in runs["float-seed1"].flags
    start = f"--init_from={tmp_path / 'float-seed1'}"
    for name, run in runs.items():
        assert run.flags.count(start) == (name != "float-seed1")
    assert runs["retrain-seed1"].needs == ("search-seed1", "float-seed1")
    assert runs["sensitivity_loss-seed1"].needs == (
        *("sensitivity_loss_untrained-seed1", "float-seed1"),
    )


def test_budgeted_methods_run_at_every_budget_the_others_once(planned, tmp_path):
    runs, _ = planned(
        *("--seeds=0,1", "--cost_targets=0.098,0.14", "--random_policies=1"),
        *("--qbitopt", "--qbitopt_uniform=int3", "--published", "--sensitivity=kl"),
    )
    budgeted = (
        *("search", "qbitopt", "random_0", "retrain", "published"),
        *("sensitivity_kl_untrained", "sensitivity_kl"),
    )
    expected = {f"{name}-at{b}" for name in budgeted for b in ("0.098", "0.14")}
    expected |= {"uniform_int3", "qbitopt_uniform_int3", "float"}
    for seed, names in ((0, list(runs)[:17]), (1, list(runs)[17:])):
        assert set(names) == {f"{name}-seed{seed}" for name in expected}
    retrained = runs["retrain-at0.14-seed1"]
    assert retrained.needs == ("search-at0.14-seed1",)
    found = tmp_path / "search-at0.14-seed1" / "policy.json"
    assert retrained.flags == ("--cost_target=0.14", f"--policy={found}", "--seed=1")
    assert runs["sensitivity_kl_untrained-at0.14-seed1"].needs == ("float-seed1",)


def test_a_single_budget_keeps_the_plain_names(planned):
    runs, _ = planned("--seeds=0", "--cost_targets=0.2")
    assert "search-seed0" in runs and "retrain-seed0" in runs
    assert "--cost_target=0.2" in runs["search-seed0"].flags


def test_flags_of_the_launchers_reach_every_run_whoever_defines_them(planned, tmp_path):
    preset = tmp_path / "preset.flags"
    preset.write_text("--model=lenet300\n--steps=70\n--nodownload\n--seeds=4\n")
    runs, shared = planned(
        f"--preset={preset}", "--steps=60", "--policy_every=4", "--pins=",
        "--data_dir=a folder", "--extra=keep=1,batches=2,update_every=9,formats=int2",
    )  # fmt: skip
    assert list(runs)[0] == "search-seed4"  # the preset may hold compare's flags, too
    assert sorted(shared) == [
        *("--batches=2", "--data_dir=a folder", "--formats=int2", "--keep=1"),
        *("--model=lenet300", "--nodownload", "--pins=", "--policy_every=4"),
        *("--steps=60", "--update_every=9"),
    ]
    launched = command(runs["search-seed4"], tmp_path, shared)
    assert launched[1:3] == ["-m", "experiments.fliqs"]
    # A launcher with fewer flags takes the same command.
    few = flags.FlagValues()
    for name in ("workdir", "model"):
        flags.DEFINE_string(name, None, "", flag_values=few)
    flags.DEFINE_integer("seed", None, "", flag_values=few)
    assert few(launched[2:]) == ["experiments.fliqs"]
    assert (few.model, few.seed) == ("lenet300", 4)
    assert few.workdir == str(tmp_path / "search-seed4")


def test_own_flags_of_a_run_prevail(planned, tmp_path):
    runs, shared = planned("--pins=Conv_0=int8", "--sensitivity=kl", "--form=default")
    launched = command(runs["float-seed0"], tmp_path, shared)
    assert launched.index("--pins=") > launched.index("--pins=Conv_0=int8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extra=batch_sise=3"], "Unknown command line flag 'batch_sise'"),
        (["--preset=nowhere.flags"], "--preset or --extra: .*nowhere.flags"),
        (["--policy=int4"], "--policy is set for each run: use --uniform"),
        (["--extra=seed=4"], "--seed is set for each run: use --seeds"),
        (["--compression=lz"], "--compression=lz: use lc, qp, dc, idc, ste"),
        (["--codebook_size=3"], "--codebook_size is set .* use --codebook_sizes"),
        (["--cost_targets=0.1,0.10"], "--cost_targets must differ, got 0.1,0.1"),
        (["--cost_targets=0"], "--cost_targets must be positive, got 0.0"),
        (["--seeds=1,1"], "--seeds must differ"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(arguments, message, planned):
    with pytest.raises(ValueError, match=message):
        planned(*arguments)


def test_a_folder_holds_one_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "execute", lambda *_, **__: {})

    def compared(*arguments):
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            flags.FLAGS(["compare", f"--workdir={tmp_path / 'c'}", *arguments])
            compare.run()

    compared("--steps=10", "--seeds=0")
    (tmp_path / "c" / "float-seed0.log").touch()
    compared("--steps=10", "--seeds=0,1", "--qbitopt", "--jobs=2", "--keep=1")
    with pytest.raises(ValueError, match='flags.steps: "--steps=10" there'):
        compared("--steps=20", "--seeds=0")
    with pytest.raises(ValueError, match="flags.cost_targets"):
        compared("--steps=10", "--seeds=0", "--cost_targets=0.2")
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        compared("--steps=10", "--seeds=0", "--jobs=0")


@pytest.mark.slow
def test_launchers_take_the_flags_that_they_are_handed(tmp_path):
    arguments = (
        *("--dataset=digits", "--model=lenet300", "--formats=int2,int4,int8"),
        *("--steps=20", "--batch_size=32", "--learning_rate=0.05", "--policy_every=2"),
        *("--batches=2", "--evaluate_every=0", "--seeds=1", "--uniform=int4"),
        *("--random_policies=0", "--sensitivity=loss", "--cost_targets=0.2"),
        *("--noretrain", "--qbitopt", "--update_every=5"),
        f"--workdir={tmp_path}",
    )
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["compare", *arguments])
        compare.run()
    rows = read_rows(tmp_path, cost="bops")
    assert len(rows) == 6
    assert {row.budget for row in rows} == {None, 0.2}
    for row in rows:
        assert row.accuracy > 0.2  # 20 steps; chance is 0.1
        assert row.seed == 1 and row.steps in (0, 20)
        assert row.budget is None or row.cost_of_reference <= row.budget
