"""Searches on the digits small enough for tests, one of every method that trains."""

import functools

import flax.linen as nn
import jax
import optax
from small_supernets import perceptron_supernet

import fliqs_jax as fq
from fliqs_jax.controller import default
from fliqs_jax.costs import cost_table, site_bops
from fliqs_jax.models.batch_norm import BatchNorm
from fliqs_jax.models.cells import (
    ARCHITECTURE,
    NASBENCH201,
    MixedEdges,
    nasbench201_network_counts,
)
from fliqs_jax.searchers.cells.architecture import Architecture, ArchitectureSettings
from fliqs_jax.searchers.cells.limits import Limit
from fliqs_jax.searchers.compression.rules import (
    CompressionRule,
    find_scopes,
    parse_codebook,
)
from fliqs_jax.searchers.compression.schedule import LSteps
from fliqs_jax.searchers.dca_nas import DcaNas
from fliqs_jax.searchers.fliqnas import Fliqnas
from fliqs_jax.searchers.fliqs import Fliqs
from fliqs_jax.searchers.in_training.controllers import recipe
from fliqs_jax.searchers.in_training.phases import Phases
from fliqs_jax.searchers.in_training.settings import FliqsSettings
from fliqs_jax.searchers.joint.cost import JointCost
from fliqs_jax.searchers.joint.space import JointSpace
from fliqs_jax.searchers.joint.subnetwork_classifier import SubnetworkClassifier
from fliqs_jax.searchers.learning_compression import LearningCompression
from fliqs_jax.searchers.qbitopt import QBitOpt, UpdateSteps
from fliqs_jax.train.classifier import Classifier, image_sites

PHASES = Phases(warmup_end=4, search_end=12, steps=16)
UPDATES = UpdateSteps(every=2, first=4, last=10)


def classifier_of(digits, model, sites=None, **options):
    return Classifier(
        quantized=fq.QuantizedModel(model, sites=sites, **options),
        mean=tuple(digits.mean.tolist()),
        std=tuple(digits.std.tolist()),
    )


def fliqs_search(digits, chosen=None, policy=None, judge_every=2, **settings):
    model = fq.create_model("lenet300")
    sites = image_sites(model, digits.train.image_shape)
    space = fq.SearchSpace(sites, ["int2", "int4", "int8"])
    costs = cost_table(space, site_bops)
    target = 0.3 * costs.reference("int8")
    phases = PHASES if policy is None else Phases(warmup_end=0, search_end=0, steps=16)
    chosen = chosen or recipe(default, num_samples=4)
    return Fliqs(
        classifier=classifier_of(digits, model, sites, per_channel=True),
        space=space,
        costs=costs,
        target=target,
        controller=chosen(costs, target, phases),
        phases=phases,
        optimizer=optax.sgd(0.05),
        settings=FliqsSettings(judge_every=judge_every, calibrate_every=5, **settings),
        policy=policy,
    )


def fliqnas_search(
    digits,
    *,
    fixed=None,
    chosen=None,
    phases=PHASES,
    optimizer=None,
    judge_every=2,
    **settings,
):
    net = perceptron_supernet(digits.train.image_shape)
    space = fq.SearchSpace(net.sites, ["int2", "int4", "int8"])
    costs = JointCost(JointSpace(net, space), site_bops)
    target = 0.1 * costs.reference("int8")
    chosen = chosen or recipe(default, num_samples=3)
    classifier = classifier_of(digits, net.model, net.sites)
    return Fliqnas(
        classifier=SubnetworkClassifier(classifier, net),
        costs=costs,
        target=target,
        controller=chosen(costs, target, phases),
        phases=phases,
        optimizer=optimizer or optax.sgd(0.05),
        fixed=fixed,
        settings=FliqsSettings(judge_every=judge_every, calibrate_every=5, **settings),
    )


def qbitopt_search(
    digits,
    *,
    model=None,
    cost=site_bops,
    budget=0.2,
    formats=("int2", "int3", "int4", "int8"),
    **changed,
):
    model = model or fq.create_model("lenet300")
    sites = image_sites(model, digits.train.image_shape)
    space = fq.SearchSpace(sites, formats, separate=True)
    table = cost_table(space, cost)
    return QBitOpt(
        classifier=classifier_of(
            digits, model, sites, per_channel=True, learned_clips=True
        ),
        space=space,
        costs=table,
        target=budget * table.reference("int8"),
        updates=changed.pop("updates", UPDATES),
        optimizer=optax.sgd(0.05),
        clip_optimizer=optax.adam(optax.constant_schedule(1e-3)),
        **changed,
    )


def compression_search(digits):
    model = fq.create_model("lenet300")
    classifier = classifier_of(digits, model, image_sites(model, (8, 8, 1)))
    example = digits.train.images[:1]
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0), example)
    rule = CompressionRule(pattern=".*kernel", c_step=parse_codebook("binary_scaled"))
    return LearningCompression(
        classifier=classifier,
        scopes=find_scopes(params, [rule]),
        l_steps=LSteps(ends=(6, 12, 16), mu=0.5, growth=2.0),
        optimizer=optax.sgd(1.0, momentum=0.9),
        learning_rate=lambda number: 0.02 * 0.5**number,
        tolerance=0.0,
    )


class OneCell(nn.Module):
    """A search network of a single cell, which compiles in seconds."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        norm = functools.partial(BatchNorm, use_running_average=not train, affine=False)
        shares = self.param(ARCHITECTURE, lambda key: NASBENCH201.equal_shares())
        edges = MixedEdges(NASBENCH201, norm, lambda source: 1)
        nodes = edges([nn.Dense(4)(images)], shares["cell"])
        return nn.Dense(self.num_classes)(nodes[-1].mean((1, 2)))


def cell_search(digits):
    counts = nasbench201_network_counts(10, width=4, num_cells=1, image_shape=(8, 8, 1))
    limit = Limit(name="parameters", bound=2000.0, derived=counts.cost("parameters"))
    settings = ArchitectureSettings(learning_rate=0.1)
    return DcaNas(
        classifier=classifier_of(digits, OneCell(10)),
        space=NASBENCH201,
        architecture=Architecture((limit,), settings),
        optimizer=optax.sgd(0.05, momentum=0.9),
        steps=16,
        warmup_steps=4,
    )


SEARCHES = {
    "fliqs": fliqs_search,
    "fliqnas": fliqnas_search,
    "qbitopt": qbitopt_search,
    "learning_compression": compression_search,
    "dca_nas": cell_search,
}
