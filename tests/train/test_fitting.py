"""Loaded variables take the place of a model's own, or all that differs is named."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fliqs_jax.train.fitting import describe_variables, fit_variables


def fresh():
    """Variables as a model's init gives them."""
    return {
        "params": {
            "Dense_0": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)},
            "BatchNorm_0": {"scale": jnp.ones(3)},
        },
        "batch_stats": {"BatchNorm_0": {"mean": jnp.zeros(3)}},
    }


def trained(dtype=np.float32):
    """Other values in the same tree, exact in bfloat16."""
    return {
        "params": {
            "Dense_0": {
                "kernel": np.arange(12.0).reshape(4, 3).astype(dtype),
                "bias": np.array([0.5, -1.0, 2.0], dtype),
            },
            "BatchNorm_0": {"scale": np.array([1.5, 2.5, 3.5], dtype)},
        },
        "batch_stats": {"BatchNorm_0": {"mean": np.array([1.0, 2.0, 3.0], dtype)}},
    }


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_values_arrive_in_the_models_types(dtype):
    fitted = fit_variables(trained(dtype), fresh())
    assert {leaf.dtype for leaf in jax.tree.leaves(fitted)} == {jnp.dtype("float32")}
    jax.tree.map(np.testing.assert_array_equal, fitted, trained())


def test_leaves_are_copies_that_training_may_donate():
    loaded = jax.tree.map(jnp.asarray, trained())
    fitted = fit_variables(loaded, fresh())
    jax.tree.map(lambda leaf: leaf.delete(), fitted)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained())


def test_message_names_every_leaf_that_does_not_fit():
    loaded = trained()
    loaded["params"]["head"] = {"kernel": np.zeros((3, 10), ml_dtypes.bfloat16)}
    del loaded["params"]["BatchNorm_0"]
    loaded["params"]["Dense_0"]["bias"] = np.zeros(5, np.float32)
    loaded["batch_stats"]["BatchNorm_0"]["mean"] = np.zeros(3, np.int8)
    with pytest.raises(ValueError) as caught:
        fit_variables(loaded, fresh())
    assert str(caught.value) == (
        "the checkpoint does not fit the model:\n"
        "  missing:\n"
        "    BatchNorm_0/scale: float32[3]\n"
        "  unexpected:\n"
        "    head/kernel: bfloat16[3, 10]\n"
        "  of another shape or kind:\n"
        "    Dense_0/bias: float32[5] in the checkpoint, float32[3] in the model\n"
        "    batch_stats/BatchNorm_0/mean: int8[3] in the checkpoint, float32[3] in "
        "the model\n"
        "Give the model that it was trained as, or skip the layers that are to start "
        "fresh, a new head for example, by a pattern such as 'Dense_0/.*' (skip, "
        "--init_skip)"
    )


def test_message_lists_ten_of_a_kind_and_counts_the_rest():
    loaded = trained()
    loaded["params"] |= {f"block{i:02}": np.zeros(1) for i in range(13)}
    with pytest.raises(ValueError) as caught:
        fit_variables(loaded, fresh())
    assert "block09: float64[1]\n    and 3 more\n" in str(caught.value)
    assert "block10" not in str(caught.value)


def test_skipped_leaves_start_fresh_whatever_the_checkpoint_has():
    loaded = trained()
    loaded["params"]["Dense_0"]["kernel"] = np.ones((4, 10), np.float32)
    loaded["params"]["aux"] = np.ones(2, np.float32)
    fitted = fit_variables(loaded, fresh(), skip=["Dense_0/.*", "aux"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(fitted["params"]["Dense_0"]))
    np.testing.assert_array_equal(
        fitted["params"]["BatchNorm_0"]["scale"], [1.5, 2.5, 3.5]
    )
    assert jax.tree.structure(fitted) == jax.tree.structure(fresh())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("Dense_0", r"'Dense_0' matches no leaf \(it must match the whole path\)"),
        ("Dens_0/kernel", "nearest: 'Dense_0/kernel'"),
        ("Dense_0/(", "'Dense_0/\\(' is no regular expression"),
    ],
)
def test_pattern_that_names_nothing_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        fit_variables(trained(), fresh(), skip=[pattern])


def test_absent_batch_statistics_start_fresh_and_are_announced():
    said = []
    params = {"params": trained()["params"]}
    fitted = fit_variables(params, fresh(), say=said.append)
    assert not fitted["batch_stats"]["BatchNorm_0"]["mean"].any()
    assert said == ["no batch_stats in the checkpoint: they start fresh"]


def test_shapes_alone_are_enough_to_check():
    expected = jax.eval_shape(fresh)
    fit_variables(trained(), expected)
    with pytest.raises(ValueError, match="missing:\n    Dense_0/bias"):
        loaded = trained()
        del loaded["params"]["Dense_0"]["bias"]
        fit_variables(loaded, expected)


def test_a_bare_tree_of_parameters_is_refused_with_what_it_holds():
    with pytest.raises(ValueError, match="'params', got .'BatchNorm_0', 'Dense_0'"):
        fit_variables(trained()["params"], fresh())


@pytest.mark.parametrize("on_disk", [True, False])
def test_boxes_of_the_model_stay_and_those_of_the_checkpoint_open(on_disk):
    kernel_init = nn.with_partitioning(nn.initializers.zeros_init(), ("in", "out"))
    model = nn.Dense(2, kernel_init=kernel_init)
    expected = model.init(jax.random.key(0), jnp.ones((1, 3)))
    ones = np.ones((3, 2), np.float32)
    kernel = {"value": ones} if on_disk else nn.Partitioned(ones, names=(None, None))
    loaded = {"params": {"kernel": kernel, "bias": np.ones(2, np.float32)}}
    fitted = fit_variables(loaded, expected)
    assert fitted["params"]["kernel"].names == ("in", "out")
    np.testing.assert_array_equal(fitted["params"]["kernel"].value, ones)
    plain = nn.meta.unbox(expected)
    np.testing.assert_array_equal(
        fit_variables(loaded, plain)["params"]["kernel"], ones
    )


def test_description_tells_values_types_and_names_apart():
    base = describe_variables(trained())
    assert base["leaves"] == 4
    assert base == describe_variables(jax.tree.map(jnp.asarray, trained()))
    one_bit = trained()
    one_bit["params"]["Dense_0"]["bias"][0] = np.nextafter(np.float32(0.5), 1)
    renamed = trained()
    renamed["params"]["Dense_1"] = renamed["params"].pop("Dense_0")
    for other in (one_bit, renamed, trained(ml_dtypes.bfloat16)):
        assert describe_variables(other) != base
