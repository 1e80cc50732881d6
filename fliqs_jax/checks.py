"""Refusing an argument that is out of bounds, in one wording for all of them.

It is for Python numbers and names, each given by its argument's name; NaN is out of all
bounds. It is not for traced values, nor for a bound that a message explains: such a
check stands where it is made.
"""

import operator
from collections.abc import Collection
from numbers import Real


def check_at_least(least: int, /, **values: Real) -> None:
    """Refuses a value below `least`.

    Example:
      >>> check_at_least(1, batch_size=32, num_samples=0)
      Traceback (most recent call last):
      ValueError: num_samples must be at least 1, got 0
    """
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_positive(**values: Real) -> None:
    """Refuses a value that is not above 0; infinity is."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_not_negative(**values: Real) -> None:
    """Refuses a value below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def check_within(interval: str, /, **values: Real) -> None:
    """Refuses a value outside the interval, of which a square bracket is a part.

    Example:
      >>> check_within("[0, 1)", decay=1.0)
      Traceback (most recent call last):
      ValueError: decay must be in [0, 1), got 1.0
    """
    low, high = map(float, interval[1:-1].split(","))
    above = operator.ge if interval.startswith("[") else operator.gt
    below = operator.le if interval.endswith("]") else operator.lt
    for name, value in values.items():
        if not (above(value, low) and below(value, high)):
            raise ValueError(f"{name} must be in {interval}, got {value}")


def check_one_of(known: Collection[str], /, **values: str) -> None:
    """Refuses a name that is none of the known ones."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
