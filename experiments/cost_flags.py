"""The price of a site that the flags about costs name.

The flags are those of every launcher, defined in `common`.
"""

import hashlib
import pathlib

from absl import flags

from fliqs_jax import costs

FLAGS = flags.FLAGS

DEVICE = "cpu_2_cores"  # of --cost=latency, unless flags name another


def site_cost(*, per_channel: bool = True) -> costs.SiteCost:
    """Returns the price of a site that --cost names.

    Args:
      per_channel: whether each output channel of the weights has a scale of its own,
        which a size counts.
    """
    if FLAGS.cost != "latency":
        refuse_latency_flags(f"--cost={FLAGS.cost}", cure="--cost=latency")
    return named_cost(FLAGS.cost, per_channel=per_channel)


def named_cost(name: str, *, per_channel: bool = True) -> costs.SiteCost:
    """Returns the price of a site by the name that --cost would have.

    Args:
      name: one of the values of --cost; a latency is that of the flags.
      per_channel: as in `site_cost`.
    """
    if name == "latency":
        return _latency()
    if name == "size":
        return costs.make_site_storage(per_channel=per_channel)
    return {
        "bops": costs.site_bops,
        "activation_size": costs.site_activation_size,
        "mean_bits": costs.site_mean_bits,
    }[name]


def refuse_latency_flags(where: str, *, cure: str) -> None:
    """Refuses flags about a latency in a run that has none."""
    for name in ("device", "latency_table", "latency_batch_size"):
        if FLAGS[name].value is not None:
            raise ValueError(
                f"--{name} has no meaning for {where}: drop it, or add {cure}"
            )


def _latency() -> costs.SiteCost:
    batch_size = FLAGS.latency_batch_size
    if FLAGS.latency_table is not None:
        if FLAGS.device is not None:
            raise ValueError(
                "--device and --latency_table exclude each other: give the data sheet "
                "of a device or latencies measured on one"
            )
        if not pathlib.Path(FLAGS.latency_table).is_file():
            raise ValueError(
                f"--latency_table={FLAGS.latency_table}: there is no such file;"
                " scripts/measure_latency.py writes one"
            )
        table = costs.LatencyTable.load(FLAGS.latency_table)
        return costs.make_table_latency(table, batch_size=batch_size)
    device = DEVICE if FLAGS.device is None else FLAGS.device
    if device not in costs.DEVICES:
        names = ", ".join(costs.DEVICES)
        raise ValueError(f"--device={device}: use one of {names}")
    return costs.make_site_latency(
        costs.DEVICES[device], batch_size=1 if batch_size is None else batch_size
    )


def table_identity(flag: str) -> dict[str, str]:
    """Returns what tells that a flag's file is no longer the one a run started with."""
    if FLAGS[flag].value is None:
        return {}
    content = pathlib.Path(FLAGS[flag].value).read_bytes()
    return {f"{flag}_sha256": hashlib.sha256(content).hexdigest()}
