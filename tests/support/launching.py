"""Running a launcher inside the test's own process."""

from absl import flags
from absl.testing import flagsaver


def launch(launcher, *arguments):
    """Runs a launcher in this process with these flags and no others."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["launcher", *arguments])
        launcher.run()
