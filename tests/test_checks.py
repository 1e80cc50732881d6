"""Checks of arguments: which values pass, and the exact words about the others."""

import math

import numpy as np
import pytest

from fliqs_jax import checks


def message(check, *bound, **values):
    """Returns what the check says about the values; None if it lets them pass."""
    try:
        check(*bound, **values)
    except ValueError as error:
        return str(error)


def test_least_value_passes_and_one_below_is_named():
    assert message(checks.check_at_least, 2, keep=2, every=np.int64(9)) is None
    assert (
        message(checks.check_at_least, 2, keep=2, every=1)
        == "every must be at least 2, got 1"
    )


def test_first_wrong_value_is_the_one_named():
    assert (
        message(checks.check_at_least, 1, keep=0, every=-1)
        == "keep must be at least 1, got 0"
    )


def test_zero_is_not_positive_and_infinity_is():
    assert message(checks.check_positive, width=5e-324, depth=math.inf) is None
    assert message(checks.check_positive, width=0) == "width must be positive, got 0"
    assert message(checks.check_positive, width=-0.5) == (
        "width must be positive, got -0.5"
    )


def test_zero_is_not_negative():
    assert message(checks.check_not_negative, seed=0, decay=-0.0) is None
    assert message(checks.check_not_negative, seed=-1) == (
        "seed must not be negative, got -1"
    )


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1)", (0, 0.5, 1 - 2**-53), (-5e-324, 1, 1.0, 2, math.inf)),
        ("[0, 1]", (0.0, 1), (-0.1, 1 + 2**-52)),
        ("(50, 100]", (50.5, 100), (50, 100.5, -math.inf)),
        ("(-1, 1)", (0, -0.5), (-1, 1)),
    ],
)
def test_interval_includes_its_ends_by_their_brackets(interval, inside, outside):
    for value in inside:
        assert message(checks.check_within, interval, decay=value) is None
    for value in outside:
        assert message(checks.check_within, interval, decay=value) == (
            f"decay must be in {interval}, got {value}"
        )


@pytest.mark.parametrize(
    "check, bound, must",
    [
        (checks.check_at_least, (1,), "be at least 1"),
        (checks.check_positive, (), "be positive"),
        (checks.check_not_negative, (), "not be negative"),
        (checks.check_within, ("[0, 1]",), "be in [0, 1]"),
    ],
)
def test_nan_is_out_of_all_bounds(check, bound, must):
    assert message(check, *bound, rate=math.nan) == f"rate must {must}, got nan"


@pytest.mark.parametrize("known", [("sgd", "adamw"), {"sgd": 1, "adamw": 2}])
def test_unknown_name_is_told_the_known_ones(known):
    assert message(checks.check_one_of, known, optimizer="adamw") is None
    assert message(checks.check_one_of, known, optimizer="adam") == (
        "optimizer must be one of sgd, adamw, got 'adam'"
    )
