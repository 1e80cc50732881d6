"""Fresh batch statistics of models as their authors wrote them."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import numpy as np

from fliqs_jax.data import load_dataset
from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.evaluation import Evaluator


class Normalised(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(3)(x.reshape(x.shape[0], -1))
        return nn.BatchNorm(not train, axis_name=self.axis_name)(x)


@flax.struct.dataclass
class State:
    params: Any
    model_state: Any


def test_model_that_averages_over_devices_is_recalibrated():
    data = load_dataset("digits")
    statistics = []
    for model in (Normalised("data"), Normalised()):
        classifier = Classifier(QuantizedModel(model), mean=(0.3,), std=(0.4,))
        images = data.train.images[:1]
        state = State(*classifier.init(jax.random.key(0), images))
        evaluator = Evaluator(classifier, data, batch_size=32, recalibration_batches=2)
        fresh = evaluator.recalibrated(state, None).model_state["batch_stats"]
        statistics.append(fresh["BatchNorm_0"])
    assert (statistics[0]["var"] > 0.1).all()
    for name in ("mean", "var"):
        np.testing.assert_allclose(statistics[0][name], statistics[1][name], rtol=1e-5)
