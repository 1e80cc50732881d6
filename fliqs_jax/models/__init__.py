"""Networks: create_model by name, and the classes behind the names."""

from fliqs_jax.models.cells import DartsNetwork, NasBench201Network
from fliqs_jax.models.cifar_resnet import CifarResNet
from fliqs_jax.models.efficientnet import EfficientNet
from fliqs_jax.models.imagenet_resnet import ImageNetResNet
from fliqs_jax.models.inception_v3 import InceptionV3
from fliqs_jax.models.lenet import LeNet5, LeNet300
from fliqs_jax.models.mobilenet_v2 import MobileNetV2
from fliqs_jax.models.registry import create_model, input_shape, model_names
from fliqs_jax.models.vit import ViT

__all__ = [
    "CifarResNet",
    "DartsNetwork",
    "EfficientNet",
    "ImageNetResNet",
    "InceptionV3",
    "LeNet5",
    "LeNet300",
    "MobileNetV2",
    "NasBench201Network",
    "ViT",
    "create_model",
    "input_shape",
    "model_names",
]
