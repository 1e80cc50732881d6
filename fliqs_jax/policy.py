"""Policies: which format the weights and the input of every site take, and their file.

A `Policy` is names, chosen and final; `SiteFormats` are the same formats as arrays,
ready for a compiled function; a `FormatMixture` is several of them, weighted. The
choices still open are in `search_space`, their price is in `costs`; nothing here knows
a network or trains.
"""

import json
import os
import typing
from collections.abc import Iterator, Mapping, Sequence

import flax.struct
from jaxtyping import Array, Float

from fliqs_jax.files import replace_text
from fliqs_jax.formats import Format, stack_formats
from fliqs_jax.site_patterns import Pin, checked_pair, nearest, resolve_pins
from fliqs_jax.sites import Site

_VERSION = 1
_VERSION_KEY = "fliqs_jax_policy"


@typing.no_type_check  # a pytree: tracing puts objects other than arrays in its fields
@flax.struct.dataclass
class SiteFormats:
    """The formats of every site as arrays: what a compiled function takes as a policy.

    L runs over all sites in the order of `find_sites`. A clip of None means a dynamic
    scale from the tensor's own largest magnitude.
    """

    weight: Format  # fields of shape [L]
    activation: Format  # fields of shape [L]
    # Largest weight kept, in units of the RMS of each output channel.
    weight_clip: Float[Array, "L"] | None = None
    # Largest magnitude of the site's input kept, in the input's own unit.
    activation_clip: Float[Array, "L"] | None = None


@typing.no_type_check  # as above
@flax.struct.dataclass
class FormatMixture:
    r"""A policy not decided yet: weights and inputs of a site are means over formats.

    .. math:: \bar Q(x) = \sum_f q_f \, Q_f(x)

    Differentiable in q, so that formats can be searched by gradient descent. A site
    that is decided has the same format in all options, or the probability 1 of one.
    """

    options: tuple[SiteFormats, ...]  # F policies for the same sites
    probabilities: Float[Array, "L F"]  # q


class Policy(Mapping[str, tuple[str, str]]):
    """Maps each site's path to the names of its weight and activation formats.

    Immutable and hashable; two policies are equal when they give every site the same
    formats. `fp32` leaves a tensor untouched. Iteration follows the order of the sites.

    Args:
      entries: (weights name, activations name) for each path.

    Raises:
      ValueError: if a format name is unknown or an entry is not a pair of names.

    Example:
      >>> policy = Policy({"Conv_0": ("int4", "int8"), "Dense_0": ("int8", "int8")})
      >>> policy["Conv_0"]
      ('int4', 'int8')
      >>> policy
      Policy(2 sites: 1 int4/int8, 1 int8)
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, Sequence[str]]):
        self._entries = {
            path: checked_pair(path, pair) for path, pair in entries.items()
        }

    @classmethod
    def uniform(
        cls,
        sites: Sequence[Site],
        weights: str,
        activations: str | None = None,
        *,
        pins: Mapping[str, Pin] | None = None,
    ) -> "Policy":
        """Returns the policy that gives every site the same formats, pins excepted.

        Args:
          sites: the network's sites, from `find_sites`.
          weights: format name of the weights.
          activations: format name of the sites' inputs; None takes `weights`.
          pins: formats of single sites. A key is a path, or a regular expression that
            must match the whole path; a value is one name for weights and input alike
            or a pair of names.

        Raises:
          ValueError: if a name is unknown, a pin matches no site, or two pins match
            the same site.

        Example:
          >>> site = Site(path="Dense_0", op="dense", weight_shape=(4, 2), macs=8,
          ...     weight_count=8, input_size=4, output_size=2, calls=1)
          >>> dict(Policy.uniform([site], "int4", pins={"Dense_.*": "int8"}))
          {'Dense_0': ('int8', 'int8')}
        """
        common = (weights, weights if activations is None else activations)
        entries = {site.path: common for site in sites}
        return cls(entries | resolve_pins(sites, pins or {}))

    def __getitem__(self, path: str) -> tuple[str, str]:
        try:
            return self._entries[path]
        except KeyError:
            raise KeyError(
                f"no site {path!r} in this policy; nearest: {nearest(path, self)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, path: object) -> bool:
        return path in self._entries

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.items()))

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for weights, activations in self.values():
            name = weights if weights == activations else f"{weights}/{activations}"
            counts[name] = counts.get(name, 0) + 1
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"Policy({len(self)} sites: {listed})"

    def check(self, sites: Sequence[Site]) -> None:
        """Raises if this policy's paths are not exactly those of the sites.

        Raises:
          ValueError: naming the sites without an entry and the entries without a site.
        """
        paths = [site.path for site in sites]
        if not paths:
            raise ValueError("sites is empty: the network has nothing to quantize")
        missing = [path for path in paths if path not in self]
        surplus = [path for path in self if path not in set(paths)]
        problems = []
        if missing:
            problems.append(f"no entry for {_listed(missing)}")
        if surplus:
            problems.append(f"entries that match no site: {_listed(surplus)}")
        if problems:
            raise ValueError(
                f"policy does not fit the network: {'; '.join(problems)}. The policy"
                f" has {len(self)} sites, the network {len(paths)}: use the policy of"
                " this network, or rename its entries after find_sites"
            )

    def formats(self, sites: Sequence[Site]) -> SiteFormats:
        """Returns the formats as arrays in the order of the sites.

        Raises:
          ValueError: if the policy does not fit the sites (see `check`).
        """
        self.check(sites)
        weights, activations = zip(*(self[site.path] for site in sites), strict=True)
        return SiteFormats(stack_formats(weights), stack_formats(activations))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the policy as JSON, one row a site; all of the file or nothing of it.

        The text goes to a temporary file beside `path`, reaches the disk, and takes the
        name in one step, so a run killed meanwhile leaves the old file whole.
        """
        rows = [
            json.dumps({"path": site, "weights": weights, "activations": activations})
            for site, (weights, activations) in self.items()
        ]
        body = ",\n".join(f"  {row}" for row in rows)
        text = f'{{"{_VERSION_KEY}": {_VERSION}, "sites": [\n{body}\n]}}\n'
        replace_text(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Policy":
        """Reads a policy that `save` wrote, or that was written by hand like it.

        Other keys than the three of a row (a remark, say) are allowed and ignored.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: naming the file, what is wrong in it and what would be right.
        """
        file = os.fspath(path)
        with open(file, "rb") as stream:
            text = stream.read()
        try:
            return cls(_parse(text))
        except ValueError as error:
            raise ValueError(f"policy file {file}: {error}") from error


def _listed(paths: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(repr, paths[:limit])) + rest


def _parse(text: bytes) -> dict[str, tuple[str, str]]:
    shape = (
        f'{{"{_VERSION_KEY}": {_VERSION}, "sites": [{{"path": "Conv_0",'
        ' "weights": "int8", "activations": "int8"}]}'
    )
    try:
        document = json.loads(text)
    except ValueError as error:  # broken JSON, or bytes that are no text
        raise ValueError(f"not JSON ({error}); expected {shape}") from error
    if not isinstance(document, dict) or _VERSION_KEY not in document:
        raise ValueError(f"no key {_VERSION_KEY!r}; expected {shape}")
    if document[_VERSION_KEY] != _VERSION:
        raise ValueError(
            f"version {document[_VERSION_KEY]!r}, this release reads {_VERSION}: save"
            " the policy again with this release, or use the release that wrote it"
        )
    rows = document.get("sites")
    if not isinstance(rows, list):
        raise ValueError(f"'sites' must be a list of rows, got {rows!r}; as {shape}")
    entries: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        keys = ("path", "weights", "activations")
        absent = [key for key in keys if not isinstance(row, dict) or key not in row]
        if absent:
            raise ValueError(
                f"row {number} lacks {_listed(absent)}: {row!r}; as {shape}"
            )
        path, weights, activations = (row[key] for key in keys)
        if not isinstance(path, str):
            raise ValueError(f"row {number}: 'path' must be text, got {path!r}")
        if path in entries:
            raise ValueError(
                f"site {path!r} has two rows (second: row {number}): keep one"
            )
        entries[path] = checked_pair(path, (weights, activations))
    return entries
