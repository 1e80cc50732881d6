"""The choices of a search: one option index per decision, and what it means per site.

A `SearchSpace` translates between three forms of the same thing: options (`int32[L]`,
possibly traced), arrays of formats for a compiled function, and a `Policy`. It holds no
probabilities (the controller's) and no prices (the costs').
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int

from fliqs_jax.formats import stack_formats, unsigned_name
from fliqs_jax.policy import Policy, SiteFormats
from fliqs_jax.site_patterns import Pin, match_paths, resolve_pins
from fliqs_jax.sites import Site


class SearchSpace:
    """Names the decisions of a search and maps their options to formats and policies.

    There are L decisions of K options each. By default every site is one decision and
    its option the format of its weights and of its input alike. Static: it never enters
    a trace, and two spaces are equal only if they are the same object.

    Args:
      sites: the network's sites, from `find_sites`.
      formats: names of the options, K of them.
      weights_only: decide about weights alone; inputs keep the format `activations`.
      activations: the inputs' format in a weights-only search; None is fp32.
      separate: two decisions a site, one for its weights and one for its input.
      groups: sites that share their decisions: a list of patterns (or paths), each of
        which must match whole paths and names its group, or a mapping from pattern to
        the group's name.
      pins: sites outside the search and their formats: path or pattern -> one name for
        weights and input (in a weights-only search: for the weights), or a pair of
        names. A pinned site leaves its group.

    Attributes:
      sites: as given.
      option_names: names of the options.
      decision_names: path or group of each decision; with `separate` followed by
        ":weights" or ":activations".
      format_names: the options, then the further formats of pins and fixed inputs.
      weight_decision, activation_decision: int32[number of sites], the decision that
        sets this site's weights (input), -1 where none does.
      weight_fixed, activation_fixed: the same shape, index into `format_names` of the
        format where no decision sets it, -1 elsewhere.

    Raises:
      ValueError: if there are fewer than two options or one twice, a name is unknown, a
        pattern matches no site or two match one, or nothing is left to decide.

    Example:
      >>> sites = [Site(path=path, op="dense", weight_shape=(4, 4), macs=16,
      ...     weight_count=16, input_size=4, output_size=4, calls=1)
      ...     for path in ("Dense_0", "Dense_1", "head")]
      >>> space = SearchSpace(sites, ["int2", "int4"], pins={"head": "int8"})
      >>> space
      SearchSpace(2 decisions of 2 options over 3 sites: int2, int4)
      >>> dict(space.policy([0, 1]))["Dense_1"]
      ('int4', 'int4')
    """

    def __init__(
        self,
        sites: Sequence[Site],
        formats: Sequence[str],
        *,
        weights_only: bool = False,
        activations: str | None = None,
        separate: bool = False,
        groups: Sequence[str] | Mapping[str, str] | None = None,
        pins: Mapping[str, Pin] | None = None,
    ):
        _check_options(formats)
        if weights_only and separate:
            raise ValueError(
                "weights_only and separate exclude each other: a weights-only search"
                " has no activation decisions to separate"
            )
        if activations is not None and not weights_only:
            raise ValueError(
                f"activations={activations!r} fixes the inputs' format: it needs"
                " weights_only=True"
            )
        fixed_input = (activations or "fp32") if weights_only else None
        pinned = resolve_pins(sites, pins or {}, activations=fixed_input)
        group_of = _resolve_groups(sites, groups or ())
        suffixes = (":weights", ":activations") if separate else ("", "")

        self.sites = tuple(sites)
        self.option_names = tuple(formats)
        names: dict[str, int] = {}  # decision -> index
        index = {name: number for number, name in enumerate(formats)}  # of a format
        rows = []  # per site: decisions, then fixed formats, of weights and of input
        for site in sites:
            fixed = pinned.get(site.path, (None, fixed_input))
            decided = group_of.get(site.path, site.path)
            row = [-1, -1, -1, -1]
            for side in (0, 1):
                if fixed[side] is None:
                    decision = decided + suffixes[side]
                    row[side] = names.setdefault(decision, len(names))
                else:
                    row[side + 2] = index.setdefault(fixed[side], len(index))
            rows.append(row)
        if not names:
            raise ValueError(
                f"no decision is left: {len(self.sites)} sites, {len(pinned)} of them"
                " pinned. Pin fewer sites"
            )
        self.decision_names = tuple(names)
        self.format_names = tuple(index)
        table = np.asarray(rows, np.int32).T
        self.weight_decision, self.activation_decision = table[0], table[1]
        self.weight_fixed, self.activation_fixed = table[2], table[3]
        self._formats = stack_formats(self.format_names)

    @property
    def num_decisions(self) -> int:
        """L, the number of decisions."""
        return len(self.decision_names)

    @property
    def num_options(self) -> int:
        """K, the number of options of every decision."""
        return len(self.option_names)

    def __repr__(self) -> str:
        return (
            f"SearchSpace({self.num_decisions} decisions of {self.num_options} options"
            f" over {len(self.sites)} sites: {', '.join(self.option_names)})"
        )

    def formats(self, options: Int[ArrayLike, "L"]) -> SiteFormats:
        """Gathers the formats of every site; the options may be traced.

        One compiled function serves all options. For [N, L] options, `jax.vmap`.

        Args:
          options: option index of each decision. Shape [L]. A value outside
            [0, K) counts as the nearest one inside, as a trace cannot raise.

        Raises:
          ValueError: if the shape is not [L].
        """
        weight, activation = self.format_indices(options)
        return SiteFormats(self._formats[weight], self._formats[activation])

    def format_indices(
        self, options: Int[ArrayLike, "L"]
    ) -> tuple[Int[Array, "S"], Int[Array, "S"]]:
        """Returns each site's weight and activation formats as indices; traced or not.

        Args:
          options: option index of each decision. Shape [L].

        Returns:
          For each of the S sites an index into `format_names`, of the weights' format
          and of the input's.

        Raises:
          ValueError: if the shape is not [L].
        """
        options = jnp.asarray(options)
        if options.shape != (self.num_decisions,):
            raise ValueError(self._shape_error(options.shape))
        options = jnp.clip(options, 0, self.num_options - 1)
        weight = _gather(options, self.weight_decision, self.weight_fixed)
        activation = _gather(options, self.activation_decision, self.activation_fixed)
        return weight, activation

    def check_options(self, options: ArrayLike | Sequence) -> Int[np.ndarray, "L"]:
        """Returns concrete options as an array if they are of this space.

        Raises:
          ValueError: if the shape is not [L], or an option is not an integer in [0, K).
        """
        options = np.asarray(options)
        if not np.issubdtype(options.dtype, np.integer):
            raise ValueError(f"options must be integers, got {options.dtype}")
        if options.shape != (self.num_decisions,):
            raise ValueError(self._shape_error(options.shape))
        outside = np.flatnonzero((options < 0) | (options >= self.num_options))
        if outside.size:
            raise ValueError(
                f"option {options[outside[0]]} of decision"
                f" {self.decision_names[outside[0]]!r} is outside"
                f" 0...{self.num_options - 1} ({', '.join(self.option_names)})"
            )
        return options

    def policy(self, options: ArrayLike | Sequence) -> Policy:
        """Returns the policy of concrete options.

        Raises:
          ValueError: if the shape is not [L] or an option is outside [0, K).
        """
        options = self.check_options(options)
        sides = (
            np.where(decision >= 0, options[decision], fixed)
            for decision, fixed in (
                (self.weight_decision, self.weight_fixed),
                (self.activation_decision, self.activation_fixed),
            )
        )
        return Policy(
            {
                site.path: (self.format_names[weight], self.format_names[activation])
                for site, weight, activation in zip(self.sites, *sides, strict=True)
            }
        )

    def options(self, policy: Policy) -> Int[np.ndarray, "L"]:
        """Returns the options of a policy, the inverse of `policy`.

        An unsigned integer counts as the signed one of the same bits where it is no
        option itself, since the sign of a grid follows from the data.

        Raises:
          ValueError: if the policy is for other sites, or no choice of options gives
            it: another format than the options, another than a site's pin, or unequal
            formats where one decision sets several.
        """
        policy.check(self.sites)
        options = np.full(self.num_decisions, -1, np.int32)
        setter: dict[int, str] = {}  # decision -> who set it first
        sides = (
            ("weights", self.weight_decision, self.weight_fixed),
            ("activations", self.activation_decision, self.activation_fixed),
        )
        for number, site in enumerate(self.sites):
            for side, (word, decisions, fixed) in enumerate(sides):
                name, where = policy[site.path][side], f"{word} of {site.path!r}"
                decision = decisions[number]
                if decision < 0:
                    self._check_fixed(where, name, self.format_names[fixed[number]])
                    continue
                option = self._option(where, name)
                first = setter.setdefault(int(decision), where)
                if options[decision] >= 0 and options[decision] != option:
                    raise ValueError(
                        f"{where} ({name}) and {first}"
                        f" ({self.option_names[options[decision]]}) differ, but"
                        f" decision {self.decision_names[decision]!r} sets them alike:"
                        " use one format, or a space with separate=True or other groups"
                    )
                options[decision] = option
        return options

    def _option(self, where: str, name: str) -> int:
        name = name if name in self.option_names else _signed_name(name)
        if name not in self.option_names:
            raise ValueError(
                f"{where}: {name} is not an option of this space"
                f" ({', '.join(self.option_names)})"
            )
        return self.option_names.index(name)

    def _check_fixed(self, where: str, name: str, fixed: str) -> None:
        if name != fixed and _signed_name(name) != fixed:
            raise ValueError(f"{where}: {name}, but this space fixes it at {fixed}")

    def _shape_error(self, shape: tuple[int, ...]) -> str:
        return (
            f"options must have shape [{self.num_decisions}], one index a decision, got"
            f" {list(shape)}; for several candidates use jax.vmap"
        )


def _check_options(formats: Sequence[str]) -> None:
    if isinstance(formats, str) or len(formats) < 2:
        raise ValueError(
            f"formats needs at least two names of options, got {formats!r}"
        )
    twice = sorted({name for name in formats if list(formats).count(name) > 1})
    if twice:
        raise ValueError(f"formats names {', '.join(twice)} more than once: keep one")
    stack_formats(formats)  # raises for an unknown name


def _resolve_groups(
    sites: Sequence[Site], groups: Sequence[str] | Mapping[str, str]
) -> dict[str, str]:
    """Returns the group's name for each grouped path."""
    if not isinstance(groups, Mapping):
        groups = {pattern: pattern for pattern in groups}
    found: dict[str, str] = {}
    owner: dict[str, str] = {}
    for pattern, name in groups.items():
        for path in match_paths(sites, pattern, role="group"):
            if path in owner:
                raise ValueError(
                    f"groups {owner[path]!r} and {pattern!r} both match site {path!r}:"
                    " make one of them narrower"
                )
            owner[path], found[path] = pattern, name
    for site in sites:
        if site.path in groups.values() and found.get(site.path) != site.path:
            raise ValueError(
                f"group {site.path!r} has the name of a site outside it: rename it"
            )
    return found


def _gather(options, decisions, fixed):
    """Index into the format names: a decision's option, or the fixed format."""
    return jnp.where(decisions >= 0, options[decisions], fixed)  # -1 reads, unused


def _signed_name(name: str) -> str:
    signed = name.removeprefix("u")
    return signed if unsigned_name(signed) == name else name
