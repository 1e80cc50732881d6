"""Names and overrides become models, or an error that says what would."""

import jax.numpy as jnp
import pytest

from fliqs_jax import models


def test_every_name_builds_its_family():
    families = {name: type(models.create_model(name)) for name in models.model_names()}
    assert families == {
        "lenet300": models.LeNet300,
        "lenet5": models.LeNet5,
        "resnet8": models.CifarResNet,
        "resnet20": models.CifarResNet,
        "resnet32": models.CifarResNet,
        "resnet56": models.CifarResNet,
        "resnet18": models.ImageNetResNet,
        "resnet50": models.ImageNetResNet,
        "mobilenet_v2": models.MobileNetV2,
        "inception_v3": models.InceptionV3,
        "nasbench201": models.NasBench201Network,
        "darts": models.DartsNetwork,
        "darts_imagenet": models.DartsNetwork,
        **{f"efficientnet_b{i}": models.EfficientNet for i in range(5)},
        **{f"vit_{size}": models.ViT for size in ("mini", "tiny", "small", "base")},
        **{f"deit_{size}": models.ViT for size in ("tiny", "small", "base")},
    }


@pytest.mark.parametrize("name", models.model_names())
def test_classes_and_input_shape_are_those_of_the_data_it_is_made_for(name):
    sides = {f"efficientnet_b{i}": side for i, side in enumerate((224, 240, 260, 300))}
    sides |= {"efficientnet_b4": 380, "inception_v3": 299}
    small = {"lenet300": (28, 28, 1), "lenet5": (28, 28, 1), "vit_mini": (32, 32, 3)}
    small |= {f"resnet{depth}": (32, 32, 3) for depth in (8, 20, 32, 56)}
    small |= {"nasbench201": (32, 32, 3), "darts": (32, 32, 3)}
    side = sides.get(name, 224)
    assert models.input_shape(name) == small.get(name, (side, side, 3))
    classes = 10 if name in small else 1000
    assert models.create_model(name).num_classes == classes
    assert models.create_model(name, num_classes=3).num_classes == 3


def test_input_shape_of_an_unknown_name_lists_nearest_first():
    with pytest.raises(
        ValueError, match="'deit_smal' is unknown: use one of deit_small"
    ):
        models.input_shape("deit_smal")


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
    with pytest.raises(
        ValueError, match="'resnet21' is unknown: use one of resnet18, resnet20"
    ):
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
        ("deit_tiny", "num_heads"),
        ("mobilenet_v2", "num_classes"),
        ("efficientnet_b0", "num_classes"),
        ("inception_v3", "num_classes"),
        ("resnet50", "num_classes"),
        ("nasbench201", "num_classes"),
        ("nasbench201", "width"),
        ("nasbench201", "num_cells"),
        ("darts", "num_classes"),
        ("darts", "layers"),
    ],
)
def test_zero_sizes_are_refused(name, field):
    with pytest.raises(ValueError, match=f"{field}.*at least 1"):
        models.create_model(name, **{field: 0})


def test_heads_that_do_not_divide_dim_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads, got 96 and 5"):
        models.create_model("vit_mini", num_heads=5)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet18", {"width": 0.01}, "width must be at least 1/64.*got 0.01"),
        ("inception_v3", {"width": 0.03}, "width must be at least 1/32.*got 0.03"),
        ("mobilenet_v2", {"width": 0.0}, "width must be positive, got 0.0"),
        ("efficientnet_b0", {"width": -1.0}, "width must be positive, got -1.0"),
        ("efficientnet_b0", {"depth": 0.0}, "depth must be positive, got 0.0"),
        ("resnet50", {"num_blocks": (3, 4)}, r"num_blocks must be four .*\(3, 4\)"),
        ("resnet50", {"num_blocks": (3, 4, 6, 0)}, "num_blocks .* each at least 1"),
        ("nasbench201", {"cell": 15_625}, "index must be 0 to 15624 .*got 15625"),
        ("darts", {"channels": 7}, "channels must be even.* got 7: the nearest is 8"),
        ("darts", {"drop_path": 1.0}, "drop_path must be .* below 1, got 1.0"),
        ("darts", {"genotype": "DARTS_V3"}, "'DARTS_V3' cannot be read: use DARTS_V1"),
        ("deit_small", {"dim": 100}, "dim must be a multiple of 64 or 96 .*got 100"),
    ],
)
def test_fields_that_make_no_network_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        models.create_model(name, **fields)
