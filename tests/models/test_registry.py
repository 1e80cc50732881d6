"""Names and overrides become models, or an error that says what would."""

import jax.numpy as jnp
import pytest

from fliqs_jax import models


def test_every_name_builds_its_family():
    families = {name: type(models.create_model(name)) for name in models.model_names()}
    assert families == {
        "lenet300": models.LeNet300,
        "lenet5": models.LeNet5,
        "resnet8": models.ResNet,
        "resnet20": models.ResNet,
        "resnet32": models.ResNet,
        "resnet56": models.ResNet,
        "vit_mini": models.ViT,
    }


@pytest.mark.parametrize(
    "name, blocks", [("resnet8", 1), ("resnet20", 3), ("resnet32", 5), ("resnet56", 9)]
)
def test_resnet_depth_is_six_n_plus_two(name, blocks):
    assert models.create_model(name).num_blocks == blocks
    assert int(name.removeprefix("resnet")) == 6 * blocks + 2


def test_overrides_replace_fields():
    model = models.create_model(
        "resnet20", num_classes=7, width=8, num_blocks=2, dtype=jnp.bfloat16
    )
    fields = (model.num_classes, model.width, model.num_blocks, model.dtype)
    assert fields == (7, 8, 2, jnp.bfloat16)


def test_unknown_name_lists_nearest_first():
    with pytest.raises(ValueError, match="'resnet21' is unknown: use one of resnet20"):
        models.create_model("resnet21")


def test_unknown_override_lists_fields_nearest_first():
    with pytest.raises(
        ValueError, match=r"no field 'widht' \(got widht=8\).*are width"
    ):
        models.create_model("resnet20", widht=8)


@pytest.mark.parametrize("field", ["parent", "name"])
def test_fields_of_linen_are_no_overrides(field):
    if field == "name":  # taken by create_model's own argument
        with pytest.raises(TypeError):
            models.create_model("lenet5", **{"name": "x"})
        return
    with pytest.raises(ValueError, match="no field 'parent'"):
        models.create_model("lenet5", parent=None)


@pytest.mark.parametrize(
    "name, field",
    [
        ("resnet8", "num_classes"),
        ("resnet8", "width"),
        ("resnet8", "num_blocks"),
        ("lenet300", "num_classes"),
        ("lenet5", "hidden"),
        ("vit_mini", "patch_size"),
    ],
)
def test_zero_sizes_are_refused(name, field):
    with pytest.raises(ValueError, match=f"{field}.*at least 1"):
        models.create_model(name, **{field: 0})


def test_heads_that_do_not_divide_dim_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads, got 96 and 5"):
        models.create_model("vit_mini", num_heads=5)
