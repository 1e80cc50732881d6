"""Of every family: a masked super-network is the small network that it stands for."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_supernets import (
    FAMILIES,
    QUICK_FAMILIES,
    random_choice,
    random_images,
    random_variables,
    small_supernet,
)

import fliqs_jax as fq
from fliqs_jax.models import supernets
from fliqs_jax.training_mode import training_keywords


def runner(model, transform=lambda params: params):
    """Everything that a network gives: logits in both modes, statistics, gradients."""
    keywords = lambda train: training_keywords(type(model).__call__, train)  # noqa: E731

    @jax.jit
    def run(variables, images, *choice):
        def train(params):
            logits, state = model.apply(
                {**variables, "params": transform(params, *choice)},
                images,
                mutable=["batch_stats"],
                **keywords(True),
            )
            return (logits * jnp.arange(logits.size).reshape(logits.shape)).sum(), (
                logits,
                state,
            )

        params = variables["params"]
        gradients, (logits, state) = jax.grad(train, has_aux=True)(params)
        masked = {**variables, "params": transform(params, *choice)}
        evaluated = model.apply(masked, images, **keywords(False))
        return evaluated, logits, state, gradients

    return run


def live(net, tree, collection, choice):
    """The parts of a full tree that the small network has."""
    sizes = {name: int(size) for name, size in net.live_sizes(choice).items()}
    flat = flax.traverse_util.flatten_dict(tree)
    return {
        leaf.path: np.asarray(flat[leaf.path])[net.slices(leaf, sizes)]
        for leaf in net.layout.leaves
        if leaf.collection == collection and 0 not in leaf.extents(sizes)
    }


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    largest = max((np.abs(want).max() for want in expected.values()), default=0.0)
    for path, want in expected.items():
        np.testing.assert_allclose(
            found[path], want, tolerance, tolerance * largest, err_msg=path
        )


def assert_masked_is_extracted(net, choices, dtype, tolerance):
    variables, images = jax.tree.map(
        lambda leaf: leaf.astype(dtype), (random_variables(net), random_images(net))
    )
    masked = runner(net.model, net.mask)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape), variables["params"])
    for choice in choices:
        model, small = supernets.extract(net, variables, choice)
        kept = jax.tree.map(np.asarray, net.mask(ones, choice))
        # What is dead may be anything, NaN too.
        poisoned = jax.tree.map(
            lambda keep, leaf: np.where(keep, leaf, np.nan).astype(dtype),
            kept,
            variables["params"],
        )
        given = {**variables, "params": poisoned}
        logits, trained, state, gradients = masked(given, images, jnp.asarray(choice))
        expected = runner(model)(small, images)
        np.testing.assert_allclose(logits, expected[0], rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(trained, expected[1], rtol=2e-4, atol=2e-4)
        for found, want, collection in (
            (
                state.get("batch_stats", {}),
                expected[2].get("batch_stats", {}),
                "batch_stats",
            ),
            (gradients, expected[3], "params"),
        ):
            want = flax.traverse_util.flatten_dict(want)
            assert_same(live(net, found, collection, choice), want, tolerance)
        dead = jax.tree.map(lambda keep, g: np.where(keep, 0, g), kept, gradients)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(dead))
    assert masked._cache_size() == 1


@pytest.mark.parametrize("family", QUICK_FAMILIES)
def test_masked_network_is_the_extracted_one(family):
    net = small_supernet(family)
    assert_masked_is_extracted(net, [random_choice(net, 0)], np.float32, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_network_is_the_extracted_one_for_many_choices(family):
    # In double precision: sums of other lengths differ in their last bits, which batch
    # norm over few examples blows up to a leak's size in single precision.
    with jax.enable_x64(True):
        net = small_supernet(family, **({} if family == "own" else {"dtype": float}))
        choices = [random_choice(net, seed) for seed in range(1, 6)]
        assert_masked_is_extracted(net, choices, np.float64, 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_live_sites_are_those_of_the_extracted_network(family):
    net = small_supernet(family)
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, *net.image_shape), jnp.float32)
    names = ["int4", "int8", "e4m3", "bf16"]
    for seed in range(4):
        choice = random_choice(net, seed) if seed else net.smallest
        small = net.build({k: int(v) for k, v in net.live_sizes(choice).items()})
        sites = fq.find_sites(small, images)
        assert supernets.subnetwork_sites(net, choice) == sites
        policy = fq.Policy(
            {site.path: tuple(rng.choice(names, 2).tolist()) for site in net.sites}
        )
        own = supernets.subnetwork_policy(net, choice, policy)
        formats = policy.formats(net.sites)
        live = supernets.live_sites(net, choice)
        weight_bits = formats.weight.storage_bits
        bops = (live.macs * weight_bits * formats.activation.storage_bits).sum()
        assert float(bops) == pytest.approx(fq.bops(sites, own), rel=1e-6)
        for scale_bits in (0, 32):
            scales = scale_bits * live.channels * formats.weight.needs_scale
            bits = (live.weight_count * weight_bits + scales).sum()
            want = fq.model_bits(sites, own, scale_bits=scale_bits)
            assert float(bits) == pytest.approx(want, rel=1e-6)
        assert float(live.macs.sum()) == sum(site.macs for site in sites)
        params = net.abstract_variables(small)["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert int(supernets.subnetwork_parameters(net, choice)) == count


@pytest.mark.parametrize("family", FAMILIES)
def test_full_choice_leaves_everything(family):
    net = small_supernet(family)
    variables = random_variables(net)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape), variables["params"])
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(net.mask(ones, net.full)))
    assert supernets.subnetwork_sites(net, net.full) == net.sites


@pytest.mark.parametrize(
    "family", ["resnet_cifar", pytest.param("vit_cifar", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "per_channel", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_quantized_with_the_scales_of_the_small_network(family, per_channel):
    net = small_supernet(family)
    variables, images = random_variables(net), random_images(net)
    choice = random_choice(net, 3)
    model, small = supernets.extract(net, variables, choice)
    policy = fq.Policy.uniform(net.sites, "int3", "fp32")
    clips = jnp.full(len(net.sites), 1.3)
    formats = policy.formats(net.sites).replace(weight_clip=clips)
    own = supernets.subnetwork_policy(net, choice, policy)
    live = fq.find_sites(model, images)
    own = own.formats(live).replace(weight_clip=clips[: len(live)])
    full = fq.QuantizedModel(net.model, per_channel=per_channel)
    extracted = fq.QuantizedModel(model, per_channel=per_channel)

    @jax.jit
    def masked_logits(params, choice, formats):
        formats = supernets.live_formats(net, choice, formats, per_channel=per_channel)
        params = net.mask(params, choice)
        return full.apply({**variables, "params": params}, images, policy=formats)

    @jax.jit
    def small_logits(variables, formats):
        return extracted.apply(variables, images, policy=formats)

    for given, expected in (
        (formats, own),
        (formats.replace(weight_clip=None), own.replace(weight_clip=None)),
    ):
        np.testing.assert_allclose(
            masked_logits(variables["params"], choice, given),
            small_logits(small, expected),
            rtol=1e-4,
            atol=1e-4,
        )
    # Inputs: the ranges that scales come from.
    masked = {**variables, "params": net.mask(variables["params"], choice)}
    seen = jax.jit(full.observe)(masked, images)
    expected = jax.jit(extracted.observe)(small, images)
    paths = {site.path for site in live}
    rows = [i for i, site in enumerate(net.sites) if site.path in paths]
    np.testing.assert_allclose(seen.absmax[np.array(rows)], expected.absmax, rtol=1e-5)


@pytest.mark.slow
def test_population_by_vmap_is_a_loop():
    net = small_supernet("vit_cifar")
    variables, images = random_variables(net), random_images(net)
    choices = np.stack([random_choice(net, seed) for seed in range(3)])
    space = fq.SearchSpace(net.sites, ["int4", "int8"])
    options = np.random.default_rng(0).integers(0, 2, (3, space.num_decisions))
    qm = fq.QuantizedModel(net.model)

    @jax.jit
    def logits(choice, options):
        params = net.mask(variables["params"], choice)
        return qm.apply({"params": params}, images, policy=space.formats(options))

    together = jax.jit(jax.vmap(logits))(choices, options)
    alone = [logits(*pair) for pair in zip(choices, options, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4, atol=1e-5)
    assert logits._cache_size() == 1
    assert not np.allclose(alone[0], alone[1])


def test_skipped_block_is_the_identity():
    net = small_supernet("resnet_cifar")
    variables, images = random_variables(net), random_images(net)
    choice = net.full.copy()
    choice[list(net.counts).index("stage1/depth")] = 0
    params = net.mask(variables["params"], choice)
    _, state = net.model.apply(
        {**variables, "params": params},
        images,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    outputs = state["intermediates"]
    before = outputs["Block_2"]["__call__"][0]
    assert (outputs["Block_3"]["__call__"][0] == before).all() and before.any()


# Published: torchvision's ResNet-50 and MobileNetV2, ViT-B/16 of its paper's code.
@pytest.mark.parametrize(
    ("name", "overrides", "options", "parameters"),
    [
        (
            "resnet_imagenet",
            {},
            {"depth": (3, 4, 6, 3), "expansion": 25},
            25_557_032,
        ),
        ("mobilenet_v2_imagenet", {}, {"kernel": 3}, 3_504_872),
        ("vit_imagenet", {}, {}, 86_567_656),
    ],
)
def test_published_parameters(name, overrides, options, parameters):
    net = supernets.create_supernet(name, **overrides)
    choice = net.full.copy()
    published = {"stem": 32, "head": 1280}
    published |= dict(
        zip(
            [f"stage{i}" for i in range(7)], (16, 24, 32, 64, 96, 160, 320), strict=True
        )
    )
    for number, decision in enumerate(net.decisions):
        place, _, kind = decision.name.rpartition("/")
        value = options.get(kind)
        if kind == "depth":
            value = value[int(place.removeprefix("stage"))]
        if kind == "channels":
            value = published[place]
        if value is not None:
            choice[number] = decision.options.index(value)
    assert int(supernets.subnetwork_parameters(net, choice)) == parameters


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet_cifar", {"depths": ((1,), (0, 1), (1,))}, "must be at least 1, got 0"),
        ("vit_cifar", {"layers": (0, 1, 2), "num_layers": 2}, "must be at least 1"),
        ("mobilenet_v2_cifar", {"kernels": (1, 3)}, "at least a stride, 2, got"),
    ],
)
def test_options_that_cannot_be_built_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        supernets.create_supernet(name, **options)
