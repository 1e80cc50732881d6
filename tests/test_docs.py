"""The documentation names what exists: files, sections, flags; its lines run."""

import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags

from experiments import (  # noqa: F401
    compare,
    dca_nas,
    evaluate,
    export,
    fliqnas,
    simq_nas,
)
from fliqs_jax.models.supernets import extract
from fliqs_jax.searchers import linas

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@every_page
def test_flags_exist(page):
    text = re.sub(
        r"`(python )?scripts/[^`]*`|XLA_FLAGS=\S+|pip [^\n]*", "", page.read_text()
    )
    text = re.sub(r"```.*?```", _without_scripts, text, flags=re.DOTALL)
    for name in re.findall(r"(?<![\w-])--([a-z]\w*)", text):
        known = name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS
        assert known or name in ("flagfile", "helpfull"), name


def _without_scripts(block):
    """Leaves out commands of scripts, which have arguments of their own."""
    commands = block[0].replace("\\\n", " ").splitlines()
    return "\n".join(line for line in commands if "scripts/" not in line)


def test_arrays_become_a_data_set_by_the_lines_of_the_page(capsys):
    page = (ROOT / "docs" / "data.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out == "360 40 100 10\n"


def test_linas_searches_by_the_lines_of_its_page():
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "linas.md").read_text(), re.DOTALL
    )
    block = block.replace('log="log.csv"', "log=None")

    def objectives(vectors):
        return np.stack([-vectors.sum(axis=1), vectors @ [1, 2, 3]], axis=1)

    names = {"linas": linas, "evaluate": objectives}
    exec(block, names)
    assert names["result"].exhausted and len(names["result"].vectors) == 18


def test_own_supernet_of_the_page_extracts_what_it_masks(monkeypatch):
    page = (ROOT / "docs" / "simq_nas.md").read_text()
    (block,) = re.findall(r"```python\n# my_nets.py\n(.*?)```", page, re.DOTALL)
    module = types.ModuleType("my_nets")
    monkeypatch.setitem(sys.modules, "my_nets", module)  # dataclasses look it up
    exec(block, vars(module))
    net = module.supernet(num_classes=10, image_shape=(8, 8, 1))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = net.model.init(jax.random.key(1), images)
    for choice in np.array([[0, 0, 0], [1, 1, 2], [2, 2, 2]]):
        model, small = extract(net, variables, choice)
        params = net.mask(variables["params"], choice)
        masked = net.model.apply({**variables, "params": params}, images)
        np.testing.assert_allclose(model.apply(small, images), masked, atol=1e-5)
