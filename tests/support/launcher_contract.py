"""What every launcher that leaves a run keeps to: files, summary, resuming, evaluation.

Each launcher's test file has a subclass, and a fixture `finished`: the folder of a run
that its launcher made of the flags `arguments`.
"""

import json

import pytest
from launching import launch

import fliqs_jax as fq
from experiments import evaluate

FILES = ("config.json", "policy.json", "summary.json", "metrics.jsonl", "report.html")


class LauncherContract:
    launcher = None
    flags = ()
    files = FILES
    has_budget = True
    most_programs = 1  # compiled for its steps

    @pytest.fixture
    def arguments(self):
        return self.flags

    def summary(self, finished):
        return json.loads((finished / "summary.json").read_text())

    def test_a_run_leaves_the_promised_files(self, finished):
        names = {entry.name for entry in finished.iterdir()}
        assert {*self.files} <= names
        assert not [name for name in names if name.endswith(".tmp")]
        assert len(fq.Policy.load(finished / "policy.json"))

    def test_summary_has_the_promised_numbers(self, finished):
        summary = self.summary(finished)
        for name in ("accuracy", "cost", "steps", "seconds", "seed"):
            assert isinstance(summary[name], int | float), name
        assert 0 <= summary["accuracy"] <= 1 and summary["seconds"] > 0
        assert summary["compile_count"] <= self.most_programs
        assert {"fliqs_jax", "jax", "flax", "python"} <= summary["versions"].keys()
        if self.has_budget:
            ratio = summary["cost"] / summary["cost_target"]
            assert summary["cost_ratio"] == pytest.approx(ratio)
            assert summary["cost_ratio"] <= 1
        else:
            assert summary["cost_target"] is summary["cost_ratio"] is None

    def test_config_has_the_command_that_made_it(self, finished, arguments):
        config = json.loads((finished / "config.json").read_text())
        module = self.launcher.__name__
        command = ["python", "-m", module, f"--workdir={finished}"]
        assert config["session"]["command"] == [*command, *arguments]

    def test_report_is_one_page_that_fetches_nothing(self, finished):
        page = (finished / "report.html").read_text()
        assert "http" not in page.replace("http://www.w3.org", "")
        assert 'src="data:' in page or "<svg" in page
        assert self.launcher.__name__ in page  # how to make it again

    def test_finished_run_is_reported_not_repeated(self, finished, arguments, capsys):
        before = (finished / "summary.json").stat().st_mtime_ns
        launch(self.launcher, f"--workdir={finished}", *arguments)
        assert "finished run" in capsys.readouterr().out
        assert (finished / "summary.json").stat().st_mtime_ns == before

    def test_other_settings_are_refused_and_named(self, finished, arguments):
        with pytest.raises(ValueError, match="flags.seed: 0 there, 7 now"):
            launch(self.launcher, f"--workdir={finished}", *arguments, "--seed=7")

    def test_evaluate_gives_the_accuracy_of_the_summary(self, finished, capsys):
        launch(evaluate, f"--workdir={finished}")
        result = json.loads(capsys.readouterr().out)
        accuracy = self.summary(finished)["accuracy"]
        assert result["accuracy"] == pytest.approx(accuracy, abs=1e-9)
