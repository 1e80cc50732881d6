"""Correlates what a search may see of NAS-Bench-201 cells with their true accuracy.

  python scripts/correlate_cell_signals.py --table=nasbench201_cifar10.csv \
      --data_dir=DIR [--cells=120] [--limit=4e5] [--search_run=runs/cell --step=2000]

Random cells within a limit on parameters; Spearman correlations of training-free scores
(searchers.training_free), of the number of parameters, of 12-epoch validation accuracy
and, with the workdir of a search network's run, of the loss that each cell has in it.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import fliqs_jax as fq
from fliqs_jax.models import cells
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.searchers.cells.training_free import SCORES, CellScorer, mean_ranks
from fliqs_jax.searchers.dca_nas import with_shares
from fliqs_jax.train.checkpoints import restore_tree
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.losses import cross_entropy

SPACE = cells.NASBENCH201


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--test_column", default="cifar10_test_accuracy_200_epochs")
    parser.add_argument("--column", default="cifar10_valid_accuracy_12_epochs")
    parser.add_argument("--cells", type=int, default=120)
    parser.add_argument("--limit", type=float, default=4e5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search_run", help="workdir; one cell a stage, bottleneck 2")
    parser.add_argument("--step", type=int, help="of its checkpoints")
    options = parser.parse_args()
    table = cells.ArchitectureTable.load(options.table)
    parameters = table.judged_values("parameters")
    allowed = [
        index
        for index, names in enumerate(cells.nasbench201_all())
        if cells.nasbench201_connected(names) and parameters[index] <= options.limit
    ]
    random = np.random.default_rng(options.seed)
    picked = random.choice(allowed, options.cells, replace=False)
    choices = np.array([SPACE.choice(int(index)) for index in picked])
    data = fq.load_dataset(
        "cifar10", data_dir=options.data_dir, validation_fraction=0.5
    )
    model = cells.NasBench201SearchNetwork(num_cells=1, bottleneck=1, share=False)
    scores = CellScorer(model, SPACE, data, seed=options.seed)(choices)
    signals = {name: scores[:, n] for n, name in enumerate(SCORES)}
    signals["mean rank of these"] = mean_ranks(scores)
    signals["parameters"] = parameters[picked]
    signals[options.column] = table.judged_values(options.column)[picked]
    if options.search_run is not None:
        losses = search_network_losses(data, choices, options.search_run, options.step)
        signals["minus loss in the search network"] = -losses
    truth = table.judged_values(options.test_column)[picked]
    print(f"{len(picked)} cells of at most {options.limit:.6g} parameters")
    for name, values in signals.items():
        print(f"{name:38}{stats.spearmanr(values, truth)[0]:7.3f}")


def search_network_losses(data, choices, workdir, step):
    """Returns the loss of each cell on 512 held-out images, with its own statistics."""
    model = cells.NasBench201SearchNetwork(num_cells=1, bottleneck=2)
    classifier = Classifier.of(QuantizedModel(model), data)
    tree = restore_tree(f"{workdir}/checkpoints", step)
    tree = tree.get("state", tree)
    images, labels = data.validation.images[:512], data.validation.labels[:512]

    @jax.jit
    def loss(shares, images, labels):
        logits, _ = classifier.train_forward(
            with_shares(tree["weights"], shares),
            tree["model_state"],
            classifier.normalise(images),
            formats=None,
        )
        return cross_entropy(logits, labels).mean()

    shares = [
        {k: jnp.asarray(v, jnp.float32) for k, v in SPACE.one_hot(choice).items()}
        for choice in choices
    ]
    return np.array([float(loss(share, images, labels)) for share in shares])


if __name__ == "__main__":
    main()
