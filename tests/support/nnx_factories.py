"""An NNX model by a factory, as --model=package.module:factory takes it."""

from flax import nnx


class Classifier(nnx.Module):
    def __init__(self, width, num_classes, rngs):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.first(images.reshape(images.shape[0], -1)))
        return self.head(nnx.relu(x))


def digits_classifier(num_classes, width=16):
    return Classifier(width, num_classes, nnx.Rngs(0))
