"""What a super-network refuses, and which decisions it calls dead."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_supernets import SMALL, random_choice, small_supernet, stack_supernet

from fliqs_jax.models import supernets
from fliqs_jax.models.supernets import Decision, SuperNetwork


@pytest.mark.parametrize("family", [*SMALL])
def test_active_decisions_are_those_that_change_a_size(family):
    net = small_supernet(family)
    choices = np.stack([random_choice(net, seed) for seed in range(6)])
    for choice, active in zip(choices, net.active(choices), strict=True):
        sizes = net.live_sizes(choice)
        for number, count in enumerate(net.counts.values()):
            others = [k for k in range(count) if k != choice[number]]
            changed = any(
                net.live_sizes(np.r_[choice[:number], k, choice[number + 1 :]]) != sizes
                for k in others
            )
            assert active[number] == (changed or not others)


def test_dead_decisions_do_not_depend_on_dead_ones():
    net = small_supernet("resnet_cifar")
    choices = np.stack([random_choice(net, seed) for seed in range(50)])
    active = net.active(choices)
    assert not active.all()
    assert (net.active(np.where(active, choices, 0)) == active).all()


@pytest.mark.parametrize("kernel, side", [*itertools.product((3, 5), (7, 8))])
def test_centre_of_a_large_window_is_the_small_one(kernel, side):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, side, side, 2)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(kernel, kernel, 1, 2)), jnp.float32)
    border = (7 - kernel) // 2
    padded = jnp.pad(weights, ((border, border), (border, border), (0, 0), (0, 0)))

    def convolved(kernel):
        conv = nn.Conv(2, kernel.shape[:2], 2, feature_group_count=2, use_bias=False)
        return conv.apply({"params": {"kernel": kernel}}, x)

    np.testing.assert_allclose(convolved(padded), convolved(weights), atol=1e-5)


def test_sample_draws_every_option():
    net = small_supernet("resnet_cifar")
    drawn = jax.jit(jax.vmap(net.sample))(jax.random.split(jax.random.key(0), 200))
    counts = list(net.counts.values())
    for column, count in zip(np.asarray(drawn).T, counts, strict=True):
        assert set(column.tolist()) == set(range(count))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"axes": {"layers/Dense_7/kernel": ("mlp",)}}, "matches no variable.*Dense_"),
        (
            {"axes": {"layers/Dense_0/bias": ("mlp",)}},
            r"shape \(3, 8\), but dimensions",
        ),
        ({"axes": {"layers/Dense_0/bias": (None, "mpl")}}, "none of the sizes.*'mlp'"),
        (
            {"axes": {"layers/Dense_0/.*": (None, "mlp"), "layers/.*_0/b.*s": (None,)}},
            "both match",
        ),
        ({"axes": {"layers/LayerNorm_0/.*": (None, "mlp")}}, "should be|over channels"),
        (
            {"sizes": lambda o: {"length": o["length"], "mlp": o["mlp"] + 1}},
            r"shape \(3, 8\), but by `sizes` it should be \(3, 9\)",
        ),
        (
            {"decisions": (Decision(name="mlp", options=(2, 8), within="no"),)}
            | {"sizes": lambda o: {"length": 3, "mlp": o["mlp"]}},
            "within 'no'",
        ),
    ],
)
def test_what_does_not_fit_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        stack_supernet(**overrides).layout  # noqa: B018


def test_layer_norm_over_dead_channels_is_refused():
    class Net(nn.Module):
        width: int = 8

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(self.width)(x)
            x = nn.LayerNorm()(x)
            return nn.Dense(2)(x)

    net = SuperNetwork(
        model=Net(),
        decisions=(Decision(name="width", options=(4, 8)),),
        sizes=lambda o: {"width": o["width"]},
        axes={
            "Dense_0/kernel": (None, "width"),
            "(Dense_0|LayerNorm_0)/(bias|scale)": ("width",),
            "Dense_1/kernel": ("width", None),
        },
        build=lambda sizes: Net(sizes["width"]),
        image_shape=(3,),
    )
    with pytest.raises(ValueError, match="normalisation over channels.*'width'"):
        net.layout  # noqa: B018


def test_build_that_makes_another_network_is_refused():
    net = stack_supernet(build=lambda sizes: type(stack_supernet().model)(3, 8))
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape), net.abstract_variables(net.model)
    )
    with pytest.raises(ValueError, match="build: 'params/layers/Dense_0/bias'"):
        supernets.extract(net, variables, net.smallest)


@pytest.mark.parametrize("choice", [[0], [0, 3], [0, -1], [0.0, 1.0]])
def test_choice_of_another_space_is_refused(choice):
    with pytest.raises(ValueError, match=r"choice must be 2 integers.*\[3, 3\]"):
        stack_supernet().check_choice(choice)


@pytest.mark.parametrize("options", [(), (2, 1), (1, 1)])
def test_options_must_ascend(options):
    with pytest.raises(ValueError, match="ascending"):
        Decision(name="a", options=options)


def test_decisions_need_names_of_their_own():
    twice = (Decision(name="mlp", options=(8,)),) * 2
    with pytest.raises(ValueError, match="different names"):
        stack_supernet(decisions=twice)


def test_registered_super_network_is_created_by_name():
    supernets.register_supernet(
        "stack", lambda **settings: stack_supernet(**settings), defaults={}
    )
    net = supernets.create_supernet("stack", image_shape=(2, 2, 1))
    assert net.image_shape == (2, 2, 1) and "stack" in supernets.supernet_names()
    with pytest.raises(ValueError, match="'stak' is unknown; nearest: 'stack'"):
        supernets.create_supernet("stak")


def test_mobilenet_refuses_windows_without_centre_and_no_expansion():
    with pytest.raises(ValueError, match="odd"):
        supernets.create_supernet("mobilenet_v2_cifar", kernels=(3, 4))
    with pytest.raises(ValueError, match="at least 2"):
        supernets.create_supernet("mobilenet_v2_cifar", expansions=(1, 6))


def test_vit_layers_end_at_their_number():
    with pytest.raises(ValueError, match="num_layers=3"):
        supernets.create_supernet("vit_cifar", num_layers=3, layers=(1, 2))
