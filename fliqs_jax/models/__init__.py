"""Networks: create_model by name, and the classes behind the names."""

from fliqs_jax.models.lenet import LeNet5, LeNet300
from fliqs_jax.models.registry import create_model, model_names
from fliqs_jax.models.resnet import ResNet
from fliqs_jax.models.vit import ViT

__all__ = ["LeNet5", "LeNet300", "ResNet", "ViT", "create_model", "model_names"]
