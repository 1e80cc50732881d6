"""Writes a finished run's network for deployment: packed weights, and a program.

  python -m experiments.export --workdir=runs/digits

Into WORKDIR/export (or --output): weights.safetensors, each weight in as many bits as
its format has, with scales; network.jax_export, the whole network for
`jax.export.deserialize`, uint8 images in, logits out; export.json, formats and ranges
of every site. Reads both files back, evaluates them on the test split and prints one
JSON object. Nothing else in the workdir changes.
"""

import json
import pathlib

import jax
from absl import flags

from experiments import finished_run, program
from fliqs_jax.data import evaluation_batches
from fliqs_jax.deploy.program import PLATFORMS, check_exportable
from fliqs_jax.runs.export import export_network, load_program, loaded_weights
from fliqs_jax.runs.network import CODEBOOK_FILE
from fliqs_jax.train.evaluation import evaluate
from fliqs_jax.train.workdir import read_json

FLAGS = flags.FLAGS

finished_run.define_flags()
flags.DEFINE_string("output", None, "Folder for the files (default: WORKDIR/export).")
flags.DEFINE_bool(
    "program", None, "Write the program (default: if flatbuffers is installed)."
)
flags.DEFINE_list("platforms", [*PLATFORMS], "That the program shall run on.")
flags.DEFINE_integer(
    "fixed_batch", None, "Images a call of the program (default: any number)."
)


def run() -> None:
    """Loads, writes, reads back, prints."""
    with_program = writes_program()
    if FLAGS.fixed_batch is not None and FLAGS.fixed_batch < 1:
        raise ValueError(f"--fixed_batch must be at least 1, got {FLAGS.fixed_batch}")
    workdir = pathlib.Path(FLAGS.workdir).absolute()
    folder = pathlib.Path(FLAGS.output or workdir / "export").absolute()
    network, data = finished_run.network(), finished_run.dataset()
    codebooks = workdir / CODEBOOK_FILE
    manifest = export_network(
        network,
        data.test.image_shape,
        folder,
        platforms=FLAGS.platforms if with_program else None,
        batch_size=FLAGS.fixed_batch,
        codebooks=codebooks if codebooks.exists() else None,
        config={"accuracy_of_run": _accuracy(workdir)},
    )
    written = {}
    if with_program and jax.default_backend() in _platforms():
        written["program"] = load_program(folder)
    if not codebooks.exists():
        written["weights"] = jax.jit(loaded_weights(network, folder))
    size = FLAGS.fixed_batch or FLAGS.batch_size
    accuracies = {
        name: evaluate(
            lambda _, images, call=call: call(images),
            {},
            evaluation_batches(data.test, size),
        )["accuracy"]
        for name, call in written.items()
    }
    facts = ("bytes", "bytes_of_float32_params", "accuracy_of_run")
    found = {name: manifest[name] for name in facts}
    print(json.dumps({"output": str(folder), **found, "accuracy": accuracies}))


def _accuracy(workdir: pathlib.Path) -> float | None:
    """Returns what the run's summary says; a super-network's has no accuracy."""
    return read_json(workdir / "summary.json").get("accuracy")


def writes_program() -> bool:
    """Returns whether to write the program; says why where that is not asked."""
    if FLAGS.program is False:
        return False
    try:
        check_exportable()
    except ModuleNotFoundError as error:
        if FLAGS.program:
            raise ValueError(f"--program: {error}") from error
        program.say(f"note: no program is written: {error}")
        return False
    return True


def _platforms() -> list[str]:
    """Returns --platforms in the names of JAX's backends."""
    return ["gpu" if name in ("cuda", "rocm") else name for name in FLAGS.platforms]


if __name__ == "__main__":
    program.start(run)
