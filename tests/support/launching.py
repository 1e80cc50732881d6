"""Running a launcher inside the test's own process."""

import sys
from unittest import mock

from absl import flags
from absl.testing import flagsaver

# Of a format search of seconds.
SMALL = (
    "--dataset=digits",
    "--model=lenet300",
    "--formats=int2,int4,int8",
    "--cost_target=0.3",
    "--steps=60",
    "--batch_size=32",
    "--policy_every=2",
    "--calibrate_every=20",
    "--log_every=10",
    "--evaluate_every=30",
    "--checkpoint_every=20",
    "--learning_rate=0.05",
)


def launch(launcher, *arguments):
    """Runs a launcher in this process with these flags and no others."""
    # Runs record the command that started them.
    command = [launcher.__file__, *arguments]
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", command):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", *arguments])
        launcher.run()
