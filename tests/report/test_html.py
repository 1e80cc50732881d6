"""The page: complete, self-contained, escaped, and there for every kind of run."""

import html.parser
import json
import re

import numpy as np
import pytest

from fliqs_jax.report import probabilities, read_run, render_report, write_report

SECTIONS = (
    "Chosen formats", "Accuracy against cost", "Training", "How the search went",
    "All sites", "How to reproduce", "Settings and versions",
)  # fmt: skip
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(html.parser.HTMLParser):
    """Checks that tags close in order; collects identifiers, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.words = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def headings(text):
    return tuple(re.findall(r"<h2>(.*?)</h2>", text))


@pytest.fixture(scope="module")
def page(make_run):
    return write_report(make_run(steps=400)).read_text(encoding="utf-8")


def test_report_lands_in_the_workdir(make_run):
    folder = make_run(blocks=1, steps=100)
    assert write_report(folder) == folder / "report.html"
    assert not list(folder.glob("*.partial"))


def test_page_is_well_formed_with_all_sections_and_unique_ids(page):
    outline = Outline(page)
    assert headings(page) == SECTIONS
    assert len(outline.ids) == len(set(outline.ids)) > 100
    assert page.count("<svg") == 6
    text = " ".join(outline.words)
    for phrase in (
        "81.2 % test accuracy at 0.140 of the cost of uniform int8 (target 0.141)",
        "uniform int3", "ResidualBlock_2/Conv_1", "3×3×32×64", "--batch_size=128",
        "0.10.2",
    ):  # fmt: skip
        assert phrase in text


def test_page_needs_nothing_from_elsewhere(page):
    assert all(a.startswith(("#", "data:image/png")) for a in Outline(page).addresses)
    rest = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    for sign in ("http://", "https://", "@import", "<script", "file:"):
        assert sign not in rest
    assert all(a.startswith("#") for a in re.findall(r"url\(([^)]*)\)", rest))


def test_every_reference_within_the_page_is_met(page):
    outline = Outline(page)
    named = [a[1:] for a in outline.addresses if a.startswith("#")]
    named += re.findall(r"url\(#([^)]*)\)", page)
    assert named and set(named) <= set(outline.ids)


def test_same_run_gives_the_same_page(make_run):
    run = read_run(make_run(blocks=1, steps=200))
    assert render_report(run) == render_report(run)


def test_private_folder_of_the_run_is_not_published(page):
    assert "/home/someone" not in page.split("Settings and versions")[0]


def test_run_without_controller(make_run):
    text = write_report(make_run(blocks=1, steps=200, controller=False)).read_text()
    assert headings(text) == SECTIONS
    assert "There was no search" in text and "fixed policy, seed 0" in text
    assert "Entropy" not in text


def test_run_of_one_row(make_run):
    text = write_report(make_run(blocks=1, steps=1, every=10)).read_text()
    assert text.count("<svg") == 6


def test_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "lenet5", "dataset": "mnist"}')
    text = write_report(tmp_path).read_text()
    Outline(text)
    assert "LeNet-5 on MNIST: the run has not finished" in text
    assert headings(text) == SECTIONS and "<svg" not in text


def test_run_without_policy_or_summary(make_run):
    folder = make_run(blocks=1, steps=200, finished=False)
    (folder / "policy.json").unlink()
    text = write_report(folder).read_text()
    Outline(text)
    assert "No policy has been written yet." in text
    assert text.count("<svg") == 4  # training, search, two views of the probabilities


def test_losses_that_are_not_finite_are_reported(make_run):
    folder = make_run(blocks=1, steps=200, every=10)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["step"] >= 150 and row["kind"] == "train":
            row |= {"loss": float("nan"), "reward": None}
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"st')
    text = write_report(folder).read_text()
    assert "not a finite number in 6 of 21 rows, first at step 150" in text
    assert "metrics.jsonl has 1 unreadable row" in text


def test_what_comes_from_files_is_escaped(make_run):
    folder = make_run(blocks=1, steps=100)
    nasty = '<script>alert("x")</script>&'
    config = json.loads((folder / "config.json").read_text())
    config |= {"model": nasty, "dataset": nasty, "method": nasty, "cost": nasty}
    config["cost_reference"] = nasty
    config["flags"] |= {nasty: nasty}
    config["sites"][0] |= {"path": nasty, "op": nasty}
    config["decisions"][0] = nasty
    (folder / "config.json").write_text(json.dumps(config))
    policy = json.loads((folder / "policy.json").read_text())
    policy["sites"][0]["path"] = nasty
    (folder / "policy.json").write_text(json.dumps(policy))
    summary = json.loads((folder / "summary.json").read_text())
    summary["versions"] = {nasty: nasty}
    summary["uniform"][0]["format"] = nasty
    (folder / "summary.json").write_text(json.dumps(summary))
    text = write_report(folder).read_text()
    Outline(text)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_many_options_and_many_sites_fit(make_run, float_formats):
    text = write_report(
        make_run(blocks=1, steps=200, options=float_formats)
    ).read_text()
    assert "e6m1" in text
    text = write_report(make_run(blocks=28, steps=200)).read_text()
    assert text.count("ResidualBlock_27/Conv_1") >= 4
    assert len(text) < 3_000_000


def changed(folder, name, **facts):
    """A run's folder with other facts in one of its files."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return folder


def test_the_command_has_what_the_run_started_from(make_run):
    command = ["python", "-m", "experiments.simq_nas", "--steps=9"]
    session = {"init_from": "runs/float", "data_dir": "/home/me", "command": command}
    page = render_report(read_run(changed(make_run(), "config.json", session=session)))
    assert "python -m experiments.simq_nas" in page and "--init_from=runs/float" in page
    assert "/home/me" not in page


def test_one_option_everywhere_is_not_uniform_where_sites_are_pinned(make_run):
    folder = make_run()
    assert "uniform int4" in render_report(read_run(folder))
    summary = json.loads((folder / "summary.json").read_text())
    for row in summary["uniform"]:
        row["cost_ratio"] *= 1.3
    page = render_report(read_run(changed(folder, "summary.json", **summary)))
    assert "uniform int4" not in page and "int4 where searched" in page
    assert "Pinned sites" in page


def test_a_page_of_sensitivities_shows_them_and_no_training(make_run):
    folder = make_run(count=3, controller=False, every=2000)
    config = json.loads((folder / "config.json").read_text())
    names = [site["path"] for site in config["sites"]]
    changed(folder, "config.json", decisions=names, method="sensitivity")
    (folder / "metrics.jsonl").write_text("")
    found = {"values": np.ones((3, 4)).tolist(), "chosen": [1, 2, 3], "unit": "nats"}
    page = render_report(
        read_run(changed(folder, "summary.json", sensitivities=found, steps=0))
    )
    assert "What each option costs a decision alone (nats)" in page
    assert "not trained at these formats" in page and "0 steps" not in page
    assert "No steps have been recorded" not in page and "no search" not in page


def test_arrows_lead_to_the_final_formats_of_separate_decisions(make_run):
    folder = make_run(count=2)
    config = json.loads((folder / "config.json").read_text())
    first = config["sites"][0]["path"]
    names = [f"{first}:weights", f"{first}:activations"]
    changed(folder, "config.json", decisions=names)
    rows = [{"path": site["path"], "weights": "int3", "activations": "uint2"}
            for site in config["sites"]]  # fmt: skip
    changed(folder, "policy.json", sites=rows)
    run = read_run(folder)
    outcomes = probabilities.outcomes(run)
    finals = probabilities.final_options(run)
    for outcome, final, chosen in zip(outcomes, finals, ("int3", "int2"), strict=True):
        assert outcome == (final if final == chosen else f"{final} → {chosen}")
    assert any("→" in outcome for outcome in outcomes)
