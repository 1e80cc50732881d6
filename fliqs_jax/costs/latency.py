"""Roofline latency: what a device's peak arithmetic and memory bandwidth allow.

A lower bound that ranks policies, not a prediction: kernels miss the roof, and sites
may overlap. What was measured on a device is priced by `measured_latency`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from fliqs_jax.checks import check_at_least
from fliqs_jax.costs.policy_cost import SiteCost, SiteFilter, policy_cost
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """What a roofline needs to know of a device.

    Raises:
      ValueError: if a figure is not positive or no width is given.
    """

    name: str
    # Operations per second (a MAC is two) of dense contractions by operand width in
    # bits. An operand runs at the next supported width: no entry for 4 means that 4-bit
    # operands run as fast as 8-bit ones. Integers and floats of a width count alike.
    ops_per_second: Mapping[int, int | float] = dataclasses.field(hash=False)
    bytes_per_second: int | float  # of the memory that holds weights and activations

    def __post_init__(self):
        figures = [*self.ops_per_second, *self.ops_per_second.values()]
        if not self.ops_per_second or min(figures) <= 0:
            raise ValueError(
                "ops_per_second must map widths in bits to operations per second, all"
                f" positive, got {self.ops_per_second!r} for device {self.name!r}"
            )
        if self.bytes_per_second <= 0:
            raise ValueError(
                f"bytes_per_second must be positive, got {self.bytes_per_second} for"
                f" device {self.name!r}"
            )

    def peak(self, bits: int) -> int | float:
        """Returns the operations per second at the next supported width.

        Raises:
          ValueError: if the device supports no width of as many bits.
        """
        widths = [width for width in self.ops_per_second if width >= bits]
        if not widths:
            raise ValueError(
                f"device {self.name!r} has no width for {bits} bits: ops_per_second"
                f" gives {sorted(self.ops_per_second)}"
            )
        return self.ops_per_second[min(widths)]


# Peak figures of the makers' data sheets, dense (no sparsity), one chip. Width 32 is
# JAX's default precision for float32: TF32 on these GPUs, a bfloat16 pass on TPUs
# (https://docs.jax.dev/en/latest/_autosummary/jax.lax.Precision.html).
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        # https://cloud.google.com/tpu/docs/v4: 275 TFLOPS bf16 or int8, 1228 GB/s.
        Device(
            name="tpu_v4",
            ops_per_second={8: 275e12, 16: 275e12, 32: 275e12},
            bytes_per_second=1228e9,
        ),
        # https://cloud.google.com/tpu/docs/v5e: 197 TFLOPS bf16, 393 TOPS int8,
        # 819 GB/s.
        Device(
            name="tpu_v5e",
            ops_per_second={8: 393e12, 16: 197e12, 32: 197e12},
            bytes_per_second=819e9,
        ),
        # NVIDIA A100 data sheet, 80 GB SXM, and Ampere white paper (int4): TF32 156,
        # bf16 312, int8 624, int4 1248 T(FL)OPS, 2039 GB/s.
        Device(
            name="a100",
            ops_per_second={4: 1248e12, 8: 624e12, 16: 312e12, 32: 156e12},
            bytes_per_second=2039e9,
        ),
        # NVIDIA H100 white paper, SXM5: TF32 494.7, bf16 989.4, fp8 and int8 1978.9
        # T(FL)OPS dense (the data sheet prints the sparse doubles), 3.35 TB/s.
        Device(
            name="h100",
            ops_per_second={8: 1978.9e12, 16: 989.4e12, 32: 494.7e12},
            bytes_per_second=3.35e12,
        ),
        # No data sheet, arithmetic: 2 cores x 3 GHz x 2 AVX2 FMA units x 8 float32
        # lanes x 2 operations; two channels of DDR4-3200 (3200e6 x 8 bytes each). XLA
        # computes in float32 here at every width, so only memory traffic shrinks.
        Device(
            name="cpu_2_cores",
            ops_per_second={32: 192e9},
            bytes_per_second=51.2e9,
        ),
    )
}


def make_site_latency(device: Device, *, batch_size: int = 1) -> SiteCost:
    r"""Returns the roofline latency of a site as a cost function, in seconds.

    .. math:: \max\left( \frac{2 B\,\mathrm{MACs}}{P(\max(b_w, b_a))},
        \frac{n\,b_w + B (i + o)\,b_a}{8\,W} \right)

    P is the device's peak at the next supported width, W its bandwidth, n, i and o are
    the weights, input and output elements. Weights move once a batch, the input once,
    and the output is written as wide as the input (whose reader's format a single site
    does not know). Of an attention product neither key nor value counts as moved.

    Args:
      device: one of `DEVICES`, or your own.
      batch_size: B, examples computed at once; the latency is that of the batch.

    Raises:
      ValueError: if `batch_size` is less than 1.

    Reference:
      Williams et al., Roofline, 2009, https://doi.org/10.1145/1498765.1498785
    """
    check_at_least(1, batch_size=batch_size)

    def site_latency(site: Site, weight_bits: int, activation_bits: int) -> float:
        ops = 2 * batch_size * site.macs
        moved = batch_size * (site.input_size + site.output_size) * activation_bits
        moved += site.weight_count * weight_bits
        return max(
            ops / device.peak(max(weight_bits, activation_bits)),
            moved / 8 / device.bytes_per_second,
        )

    return site_latency


def latency_s(
    sites: Sequence[Site],
    policy: Policy,
    device: Device,
    *,
    batch_size: int = 1,
    where: SiteFilter | None = None,
) -> float:
    """Returns the roofline latency of a batch in seconds, summed over the sites.

    Args:
      sites: the network's sites, from `find_sites`.
      policy: formats of every site.
      device: one of `DEVICES`, or your own.
      batch_size: examples computed at once.
      where: true for the sites to count, as in `bops`; None counts all.

    Raises:
      ValueError: if the policy does not fit the sites, `where` is true for none, or the
        device has no width for one of the formats.

    Example:
      >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
      ...     weight_count=8, input_size=4, output_size=2, calls=1)
      >>> chip = Device(name="chip", ops_per_second={8: 4.0}, bytes_per_second=7.0)
      >>> latency_s([site], Policy.uniform([site], "int8"), chip)  # 16 / 4 > 14 / 7
      4.0
    """
    site_cost = make_site_latency(device, batch_size=batch_size)
    return policy_cost(site_cost, sites, policy, where=where)
