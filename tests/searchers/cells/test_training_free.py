"""Scores of untrained cells, and the search on the grid that they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.data import load_dataset
from fliqs_jax.models import cells
from fliqs_jax.models.cells import NASBENCH201
from fliqs_jax.runs.scored_search import (
    predicted_ranks,
    ranks_within,
    score_some,
    search_cell_by_scores,
)
from fliqs_jax.searchers.cells.baselines import cells_within
from fliqs_jax.searchers.cells.limits import Limit
from fliqs_jax.searchers.cells.training_free import (
    CellScorer,
    jacobian_covariance,
    mean_ranks,
    zico,
)

PARAMETERS = cells.nasbench201_network_counts().cost("parameters")
SKIP = "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"


def test_jacobian_covariance_is_that_of_numpys_correlation():
    gradients = np.random.default_rng(0).normal(size=(6, 40))
    values = np.linalg.eigvalsh(np.corrcoef(gradients))
    want = -(np.log(values + 1e-5) + 1 / (values + 1e-5)).sum()
    got = jacobian_covariance(jnp.asarray(gradients, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_zico_is_its_definition_over_the_layers_that_learn():
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 3, 4)), random.normal(size=(2, 2, 2, 3, 1))
    want = sum(
        np.log((np.abs(g).mean(axis=0) / np.abs(g).std(axis=0)).sum())
        for g in (first, second)
    )
    tree = {
        "a": jnp.asarray(first),
        "b": jnp.asarray(second),
        "bias": jnp.asarray(random.normal(size=(2, 4))),
        "dead": jnp.zeros((2, 3, 3)),
    }
    np.testing.assert_allclose(zico(tree), want, rtol=1e-5)


def test_ranks_put_what_has_no_score_last():
    scores = np.array([[1.0, np.nan], [3.0, 2.0], [2.0, 1.0]])
    np.testing.assert_allclose(mean_ranks(scores), [100 / 3, 100, 200 / 3])


@pytest.fixture(scope="module")
def scorer():
    dataset = load_dataset("digits")
    model = cells.NasBench201SearchNetwork(
        width=4, num_cells=1, share=False, bottleneck=1
    )
    return CellScorer(model, NASBENCH201, dataset, batch_size=16)


@pytest.mark.slow
def test_scores_are_those_of_the_cell_alone(scorer):
    """They come from the network of the cell: nothing else has weights in them."""
    choice = NASBENCH201.choice(6111)
    (found,) = scorer(choice[None])
    cell = cells.NasBench201Network(cell=6111, width=4, num_cells=1)
    weights, state = scorer._variables
    names = jax.eval_shape(cell.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))[
        "params"
    ]
    absent = {
        f"{name}_{source}_{target}"
        for source, target in NASBENCH201.edges
        for name in ("nor_conv_1x1", "nor_conv_3x3")
    } - set(names["cell_0"])
    assert absent
    scaled = jax.tree.map_with_path(
        lambda path, leaf: 2 * leaf if path[1:] and path[1].key in absent else leaf,
        weights,
    )
    again = CellScorer.__new__(CellScorer)
    again.__dict__.update(scorer.__dict__, _variables=(scaled, state))
    np.testing.assert_allclose(again(choice[None])[0], found, rtol=1e-5)
    assert np.isfinite(found).all()
    (worse,) = scorer(NASBENCH201.choice(SKIP)[None])
    assert (worse < found).any()
    assert scorer.compile_count == 1


def test_a_network_that_shares_is_refused():
    with pytest.raises(ValueError, match="share=False, bottleneck=1"):
        CellScorer(
            cells.NasBench201SearchNetwork(), NASBENCH201, load_dataset("digits")
        )


def made_up(choices):
    """More convolutions are better, and a skip from input to output."""
    names = [[NASBENCH201.operations[o] for o in choice] for choice in choices]
    good = [sum("conv" in name for name in cell) for cell in names]
    skip = [cell[3] == "skip_connect" for cell in names]
    return np.column_stack([good, np.add(good, skip)]).astype(float)


def test_cells_are_scored_once_and_logged(tmp_path):
    asked = []

    def score(choices):
        asked.extend(map(tuple, choices.tolist()))
        return made_up(choices)

    within = NASBENCH201.usable
    first, _ = score_some(score, within, 12, log=tmp_path / "a.csv", say=len)
    assert len(first) == len(set(asked)) == 12
    # Resumed, and asked for more: the first twelve are known.
    score_some(score, within, 15, log=tmp_path / "a.csv", say=len)
    assert len(asked) == len(set(asked)) == 15
    # Another run of other limits takes what is within them.
    small = within & (ranks_within(PARAMETERS, within) < 60)
    choices, values = score_some(
        score, small, 14, log=tmp_path / "b.csv", known=[tmp_path / "a.csv"], say=len
    )
    assert len(asked) == len(set(asked)) and len(choices) == len(values) == len(asked)
    assert sum(small[tuple(choice)] for choice in choices) == 14
    with pytest.raises(FileNotFoundError, match=r"nowhere.csv: no such file"):
        score_some(
            score, small, 14, log=tmp_path / "c.csv", known=[tmp_path / "nowhere.csv"]
        )


def test_search_finds_what_scores_and_parameters_ask_for(tmp_path):
    limit = Limit(name="parameters", bound=4e5, derived=PARAMETERS)
    arguments = made_up, (limit,), PARAMETERS
    found = search_cell_by_scores(*arguments, folder=tmp_path, count=60, say=len)
    assert limit.cost(NASBENCH201, found.repair.choice) <= 4e5
    assert found.facts["scored_cells"] == 60
    # The best of the grid, which the log and the parameters give.
    within = cells_within(NASBENCH201, [limit])
    scored = score_some(made_up, within, 60, log=tmp_path / "scores.csv", say=len)
    grid = 2 / 3 * predicted_ranks(*scored) + 1 / 3 * ranks_within(PARAMETERS, within)
    assert grid[tuple(found.repair.choice)] == grid[within].max()
    with pytest.raises(ValueError, match=r"\(--scored_cells\) must be 10 or more"):
        search_cell_by_scores(*arguments, folder=tmp_path, count=9)
    names = [NASBENCH201.operations[o] for o in found.repair.choice]
    assert sum("conv" in name for name in names) >= 4
