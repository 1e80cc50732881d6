"""Finds an architecture and number formats together in one training run (FLIQNAS).

  python -m experiments.fliqnas --workdir=runs/digits_fliqnas \
      --flagfile=experiments/presets/digits_fliqnas.flags

What is given is not searched: with --architecture the formats alone are, as FLIQS does,
with --policy the architecture alone, and with both the network is trained. So an
architecture first and its formats then are two runs:

  python -m experiments.fliqnas --workdir=runs/a --policy=int8 --cost_target=0.1 ...
  python -m experiments.fliqnas --workdir=runs/b --architecture=runs/a \
      --cost_target=0.05 ...

The budget is in all of them a fraction of what the full network costs in
--cost_reference. Run again with the same workdir to resume. Writes policy.json,
architecture.json, summary.json, metrics.jsonl, report.html, checkpoints/ and network/.
"""

from absl import flags

import fliqs_jax as fq
from experiments import (
    common,
    one_shot_flags,
    program,
    search_flags,
    subnetwork_flags,
)
from fliqs_jax.models.supernets import SuperNetwork, subnetwork_sites
from fliqs_jax.runs.network_search import search_network
from fliqs_jax.searchers.in_training.settings import FLIQNAS
from fliqs_jax.searchers.joint.space import JointSpace

FLAGS = flags.FLAGS

common.define_common_flags()
common.define_start_flags()
one_shot_flags.define_one_shot_flags()
search_flags.define_space_flags()
subnetwork_flags.define_supernet_flags()
common.define(
    "string",
    "architecture",
    None,
    "Keep to this one and search formats alone: full, smallest, random:SEED, or an"
    " architecture.json or the workdir of a finished run.",
)

# Common flags that say nothing to this launcher.
IDLE = {
    "model": "--supernet names the network",
    "model_options": "--supernet_options are those of the super-network",
}


def run() -> None:
    """Turns the flags into objects and searches."""
    common.job_settings()  # a mistake there shows before data is read
    settings = one_shot_flags.search_settings(FLIQNAS)
    both = FLAGS.policy is not None and FLAGS.architecture is not None
    given = "--architecture with --policy" if both else None
    idle = {**one_shot_flags.idle_flags(settings, given=given), **IDLE}
    program.say_idle(idle)
    dataset = common.dataset()
    net, made_by = subnetwork_flags.supernet(dataset)
    architecture = subnetwork_flags.architecture(net, FLAGS.architecture)
    space, policy = formats_and_policy(net, architecture)
    arguments = search_flags.search_arguments(dataset, settings, idle=idle)
    arguments["config"] |= {
        "model": FLAGS.supernet,
        "network": {"supernet": FLAGS.supernet},
    }
    search_network(
        JointSpace(net, space),
        dataset,
        settings=settings,
        architecture=architecture,
        policy=policy,
        made_by=made_by,
        **arguments,
    )


def formats_and_policy(
    net: SuperNetwork, architecture
) -> tuple[fq.SearchSpace, fq.Policy | None]:
    """Returns the decisions about formats, and the policy if it is given."""
    if FLAGS.policy is None:
        return search_flags.search_space(net.sites, FLAGS.formats), None
    if FLAGS.policy.startswith("random:"):
        raise ValueError(
            f"--policy={FLAGS.policy} is for experiments.fliqs: give a format's name or"
            " a policy.json"
        )
    if not FLAGS.policy.endswith(".json"):
        policy = search_flags.uniform_policy(net.sites)
    else:
        policy = completed(search_flags.load_policy(), net, architecture)
    formats = search_flags.formats_with(policy)
    return search_flags.search_space(net.sites, formats), policy


def completed(policy: fq.Policy, net: SuperNetwork, architecture) -> fq.Policy:
    """Returns a sub-network's policy with formats for the sites it leaves out.

    Raises:
      ValueError: if the policy is not the sub-network's, or none is given and it is not
        the full network's.
    """
    if architecture is None:
        try:
            policy.check(net.sites)
        except ValueError as error:
            raise ValueError(
                f"--policy={FLAGS.policy}: {error}; if it is a sub-network's, add"
                " --architecture with that run's workdir"
            ) from None
        return policy
    kept = {site.path for site in subnetwork_sites(net, architecture)}
    own = {path: policy[path] for path in policy if path in kept}
    full = len(policy) == len(net.sites)  # wider than needed
    policy.check(net.sites if full else subnetwork_sites(net, architecture))
    idle = (FLAGS.formats[0], FLAGS.formats[0])
    return fq.Policy({site.path: own.get(site.path, idle) for site in net.sites})


if __name__ == "__main__":
    program.start(run, distributed=True)
