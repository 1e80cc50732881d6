"""InstaTune's step against its equation, and a short training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_supernets import perceptron_supernet

import fliqs_jax as fq
from fliqs_jax.runs.supernet_training import (
    SupernetSettings,
    SupernetTrainer,
    supernet_loss,
    train_supernet,
)
from fliqs_jax.train.classifier import Classifier
from fliqs_jax.train.mapping import make_mesh, replicate, shard_batch, shard_map_step


def make_trainer(settings):
    net = perceptron_supernet(image_shape=(2, 2, 1))
    classifier = Classifier(
        quantized=fq.QuantizedModel(net.model, sites=net.sites), mean=(0.4,), std=(0.3,)
    )
    return SupernetTrainer(
        classifier=classifier, net=net, optimizer=optax.sgd(0.1), settings=settings
    )


def by_hand(trainer, params, model_state, batch, choices):
    """The loss as in the paper, written for one device."""
    net, images = trainer.net, trainer.classifier.normalise(batch["image"])

    def logits(params):
        variables = {"params": params, **model_state}
        return net.model.apply(variables, images, train=True, mutable=["batch_stats"])[
            0
        ]

    def entropy(z):
        log_p = jax.nn.log_softmax(z)
        return -log_p[np.arange(len(z)), batch["label"]].mean()

    full, temperature = logits(params), trainer.settings.temperature
    small = [logits(net.mask(params, choice)) for choice in choices]
    p = jax.lax.stop_gradient(jax.nn.softmax(full / temperature))
    divergences = [
        (p * (jnp.log(p) - jax.nn.log_softmax(z / temperature))).sum(-1).mean()
        for z in small
    ]
    mean = sum(map(entropy, [full, *small])) / (1 + len(small))
    return mean + temperature**2 * sum(divergences) / len(small)


@pytest.mark.parametrize(
    "settings",
    [
        SupernetSettings(),
        SupernetSettings(subnetworks=2, sandwich=True, temperature=2.0),
    ],
    ids=["instatune", "sandwich"],
)
def test_step_descends_the_published_loss_averaged_over_devices(settings):
    trainer, mesh = make_trainer(settings), make_mesh()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4 * mesh.size, 2, 2, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, 4 * mesh.size).astype(np.int32),
    }
    state = trainer.init(jax.random.key(1), batch["image"][:1])
    params, model_state = jax.device_get((state.params, state.model_state))
    run_key = state.key

    @jax.jit
    def of_device(params, index, batch):
        own = jax.random.fold_in(jax.random.fold_in(run_key, 0), index)
        choices = trainer.choices(jax.random.split(own, 3)[0])
        return by_hand(trainer, params, model_state, batch, choices)

    losses, gradients = [], []
    for device in range(mesh.size):
        part = {name: x[4 * device :][:4] for name, x in batch.items()}
        loss, gradient = jax.value_and_grad(of_device)(params, device, part)
        losses.append(loss)
        gradients.append(gradient)
    step = shard_map_step(trainer.step, mesh)
    state, metrics = step(replicate(state, mesh), shard_batch(batch, mesh))
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    mean = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *gradients)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, mean)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        state.params,
        expected,
    )


def test_full_network_as_its_own_student_has_the_plain_loss():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    labels = jnp.arange(6) % 4
    loss, parts = supernet_loss(logits, [logits, logits], labels, SupernetSettings())
    assert float(parts["distillation"]) == pytest.approx(0, abs=1e-5)
    assert float(loss) == pytest.approx(float(parts["cross_entropy"]), rel=1e-5)


def test_sandwich_has_the_smallest_network():
    trainer = make_trainer(SupernetSettings(subnetworks=0, sandwich=True))
    (choice,) = trainer.choices(jax.random.key(0))
    assert choice.tolist() == [0, 0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"subnetworks": 0}, "subnetworks must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"clip_norm": -1.0}, "clip_norm must be positive, or 0 for none, got -1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SupernetSettings(**settings)


@pytest.mark.parametrize("clip_norm, norm", [(5.0, 5.0), (50.0, 13.0), (0.0, 13.0)])
def test_gradients_are_clipped_by_their_norm_over_all_weights(clip_norm, norm):
    optimizer = SupernetSettings(clip_norm=clip_norm).clipped(optax.sgd(1.0))
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]])}
    updates, _ = optimizer.update(gradients, optimizer.init(gradients))
    assert float(optax.tree.norm(updates)) == pytest.approx(norm)


@pytest.mark.slow
def test_training_lowers_the_loss_and_is_found_finished(tmp_path):
    net, data = perceptron_supernet(), fq.load_dataset("digits")
    job = fq.JobSettings(
        steps=60, batch_size=64, log_every=20, evaluate_every=0, recalibration_batches=2
    )
    lines = []
    train = lambda: train_supernet(  # noqa: E731
        net, data, workdir=str(tmp_path / "run"), job=job, say=lines.append
    )
    first = train()
    again = train()
    assert lines[-1].endswith("run holds a trained super-network")
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    rows = [
        float(line.split('"loss": ')[1].split(",")[0].split("}")[0])
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if '"loss": ' in line
    ]
    assert rows[-1] < 0.7 * rows[0]
