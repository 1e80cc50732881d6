"""Patterns that name sites: pins, groups, and the nearest names for an error.

Text in, paths out. What a pattern is for (a policy, a search space) is the caller's.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from fliqs_jax.formats import parse_format
from fliqs_jax.sites import Site

# A pin: one name for weights and input alike, or (weights name, activations name).
Pin = str | tuple[str, str]


def resolve_pins(
    sites: Sequence[Site], pins: Mapping[str, Pin], *, activations: str | None = None
) -> dict[str, tuple[str, str]]:
    """Returns the pair of format names of each pinned path.

    Args:
      sites: the network's sites.
      pins: format names by path or pattern (see `match_paths`).
      activations: what a pin of a single name gives the input; None gives that name.

    Raises:
      ValueError: if a pin matches no site, two pins match one, or a name is unknown.
    """
    found: dict[str, tuple[str, str]] = {}
    owner: dict[str, str] = {}
    for pattern, pin in pins.items():
        pair = (pin, activations or pin) if isinstance(pin, str) else pin
        pair = checked_pair(pattern, pair)
        for path in match_paths(sites, pattern, role="pin"):
            if path in owner:
                raise ValueError(
                    f"pins {owner[path]!r} and {pattern!r} both match site {path!r}:"
                    " make one of them narrower"
                )
            owner[path], found[path] = pattern, pair
    return found


def match_paths(sites: Sequence[Site], pattern: str, *, role: str) -> list[str]:
    """Returns the paths that a pattern names: literally, or wholly as a regex.

    The literal reading comes first because paths of scanned layers, for example
    "layers/Dense_0[3]", mean something else as regular expressions.

    Args:
      sites: the network's sites.
      pattern: a path, or a regular expression that must match the whole path.
      role: what the pattern is, for the error ("pin", "group").

    Raises:
      ValueError: if the pattern is no regular expression or matches no site.
    """
    paths = [site.path for site in sites]
    if pattern in paths:
        return [pattern]
    try:
        matched = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise ValueError(
            f"{role} {pattern!r} is neither a site's path nor a regular expression"
            f" ({error})"
        ) from error
    if not matched:
        raise ValueError(
            f"{role} {pattern!r} matches no site (it must match the whole path);"
            f" nearest: {nearest(pattern, paths)}"
        )
    return matched


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns up to three of the names, most like `name` first, as text of an error."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.0)
    return ", ".join(map(repr, close)) or "none, there are no sites"


# Bounded by the count of format names; parsing costs about as much as a dict of them.
@functools.lru_cache(maxsize=1024)
def _check_format(name: str) -> None:
    parse_format(name)


def checked_pair(where: str, pair: object) -> tuple[str, str]:
    """Returns (weights name, activations name), both known formats.

    Args:
      where: the site or pin that the pair belongs to, for the error.
      pair: what the caller gave.

    Raises:
      ValueError: if it is not a pair of names of formats.
    """
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(name, str) for name in pair)
        or isinstance(pair, str)
    ):
        raise ValueError(
            f"{where!r} needs a pair of format names, (weights, activations),"
            f" got {pair!r}"
        )
    for name in pair:
        try:
            _check_format(name)
        except ValueError as error:
            raise ValueError(f"{where!r}: {error}") from error
    return (pair[0], pair[1])
