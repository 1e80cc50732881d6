"""The roofline by hand, its two sides, and the named devices."""

import pytest

from fliqs_jax.costs import DEVICES, Device, latency_s
from fliqs_jax.policy import Policy
from fliqs_jax.sites import Site

SITE = Site(
    path="Dense_0",
    op="dense",
    weight_shape=(100, 10),
    macs=1000,
    weight_count=1000,
    input_size=100,
    output_size=10,
)


def price(device, weights, activations=None, batch_size=1):
    policy = Policy.uniform([SITE], weights, activations)
    return latency_s([SITE], policy, device, batch_size=batch_size)


def test_compute_bound_site_waits_for_arithmetic():
    device = Device(name="d", ops_per_second={8: 4.0, 16: 2.0}, bytes_per_second=1e9)
    assert price(device, "int8") == 2 * 1000 / 4.0
    assert price(device, "int8", "bf16") == 2 * 1000 / 2.0  # the wider operand
    assert price(device, "int3") == price(device, "int8")  # next supported width
    assert price(device, "int8", batch_size=3) == 3 * price(device, "int8")


def test_memory_bound_site_waits_for_bytes_and_weights_move_once_a_batch():
    device = Device(name="d", ops_per_second={32: 1e12}, bytes_per_second=5.0)
    assert price(device, "int4", "int8") == (500 + 110) / 5.0
    assert price(device, "int4", "int8", batch_size=4) == (500 + 4 * 110) / 5.0


def test_each_site_has_its_own_bound():
    # Two copies: the sum of maxima, not the maximum of sums.
    heavy = Site(
        path="b",
        op="dense",
        weight_shape=(1, 1),
        macs=10**6,
        weight_count=1,
        input_size=1,
        output_size=1,
    )
    device = Device(name="d", ops_per_second={8: 1e3}, bytes_per_second=1.0)
    policy = Policy.uniform([SITE, heavy], "int8")
    assert latency_s([SITE, heavy], policy, device) == 1110 + 2 * 10**6 / 1e3


def test_unsupported_width_names_device_and_widths():
    device = Device(name="edge", ops_per_second={8: 1.0}, bytes_per_second=1.0)
    with pytest.raises(ValueError, match=r"'edge' has no width for 16 bits: .*\[8\]"):
        price(device, "bf16")


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (dict(ops_per_second={}, bytes_per_second=1.0), "ops_per_second must map"),
        (dict(ops_per_second={8: -1.0}, bytes_per_second=1.0), "all positive"),
        (dict(ops_per_second={8: 1.0}, bytes_per_second=0.0), "must be positive"),
    ],
)
def test_impossible_device_is_refused(figures, message):
    with pytest.raises(ValueError, match=message):
        Device(name="d", **figures)


def test_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        price(DEVICES["a100"], "int8", batch_size=0)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_named_devices_run_every_format_and_narrower_is_never_slower(device):
    assert DEVICES[device.name] is device
    prices = [price(device, f) for f in ("fp32", "bf16", "e4m3", "int4", "int2")]
    assert prices == sorted(prices, reverse=True) and prices[-1] > 0


def test_data_sheet_ratio_of_int8_to_bf16():
    # https://cloud.google.com/tpu/docs/v5e: twice the rate; v4: the same rate.
    assert DEVICES["tpu_v5e"].peak(8) / DEVICES["tpu_v5e"].peak(16) == pytest.approx(
        2.0, rel=0.01
    )
    assert DEVICES["tpu_v4"].peak(8) == DEVICES["tpu_v4"].peak(16)
    assert DEVICES["a100"].peak(4) == 2 * DEVICES["a100"].peak(8)
