"""Which runs a comparison consists of, in what order, and which wait for which."""

import dataclasses
import pathlib
import re
import string
from collections.abc import Callable, Mapping, Sequence

from fliqs_jax.searchers.compression.schedule import VARIANTS

# Of fixed formats or codebooks, so of a cost of their own: one run a seed serves all
# budgets.
OWN_COST = ("uniform", "qbitopt_uniform", "float", *VARIANTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How one method is launched, beside the flags that all runs share."""

    launcher: str = "experiments.fliqs"
    # {search} in one is the folder of that method's run, which must have succeeded.
    flags: tuple[str, ...] = ()
    budget_factor: float = 1.0  # what it may cost, in budgets

    @property
    def needs(self) -> tuple[str, ...]:
        """The methods whose runs this one starts from.

        Example:
          >>> Method(flags=("--policy={search}/policy.json", "--steps=9")).needs
          ('search',)
        """
        parsed = (string.Formatter().parse(flag) for flag in self.flags)
        names = (name for parts in parsed for _, name, _, _ in parts if name)
        return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One process to run to its end, in the folder `name` of the comparison."""

    name: str
    launcher: str
    flags: tuple[str, ...]  # its own
    needs: tuple[str, ...]  # names of the runs to wait for


def plan_runs(
    methods: Callable[[int], Mapping[str, Method]],
    *,
    root: pathlib.Path,
    seeds: Sequence[int],
    budgets: Sequence[float],
) -> list[Run]:
    """Returns the runs, seed by seed: each finished seed is a complete comparison.

    Args:
      methods: gives a seed's methods by name, in the order to run them.
      root: the folder of the comparison.
      seeds: one run of every method each.
      budgets: cost targets, as fractions of the reference's cost. Methods of OWN_COST
        run once a seed, the others once a seed and budget. With none the budget is
        that of the flags that all runs share.

    Raises:
      ValueError: if a seed or a budget is given twice, or a budget is not positive.
    """
    for name, values in (("seeds", seeds), ("cost_targets", budgets)):
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} must differ, got {_listed(values)}")
    if any(not budget > 0 for budget in budgets):
        raise ValueError(f"--cost_targets must be positive, got {_listed(budgets)}")
    runs = []
    for seed in seeds:
        known = methods(seed)

        def named(method: str, budget: float | None, seed=seed, known=known) -> str:
            # A cost target that is not the budget would be taken for it.
            told = len(budgets) > 1 or known[method].budget_factor != 1
            shown = budget if told and not _has_own_cost(method) else None
            return run_name(method, shown, seed)

        for name, method in known.items():
            own_budgets = budgets[:1] if _has_own_cost(name) else budgets
            for budget in own_budgets or (None,):
                assert known.keys() >= set(method.needs)  # or they are waited for
                needs = {other: named(other, budget) for other in method.needs}
                folders = {other: root / run for other, run in needs.items()}
                target = ()
                if budget is not None:
                    target = (f"--cost_target={budget * method.budget_factor:.6g}",)
                own = [flag.format_map(folders) for flag in method.flags]
                runs.append(
                    Run(
                        name=named(name, budget),
                        launcher=method.launcher,
                        flags=(*target, *own, f"--seed={seed}"),
                        needs=tuple(needs.values()),
                    )
                )
    return runs


def run_name(method: str, budget: float | None, seed: int) -> str:
    """Returns the folder of a run; the budget is named where there are several.

    Example:
      >>> run_name("search", None, 0), run_name("search", 0.14, 0)
      ('search-seed0', 'search-at0.14-seed0')
    """
    at = "" if budget is None else f"-at{budget}"
    return f"{method}{at}-seed{seed}"


def parse_run_name(name: str) -> tuple[str, float | None, int] | None:
    """Returns method, budget and seed of a run's folder; None for any other folder.

    Example:
      >>> parse_run_name("uniform_int3-seed0")
      ('uniform_int3', None, 0)
      >>> parse_run_name("search-at0.14-seed12")
      ('search', 0.14, 12)
    """
    match = re.fullmatch(r"(.+?)(?:-at([\d.e+-]+))?-seed(\d+)", name)
    if match is None:
        return None
    return match[1], match[2] and float(match[2]), int(match[3])


def split_method(method: str) -> tuple[str, str]:
    """Returns a method's family, and what tells its members apart.

    Members of a family are drawn as one series; random policies are one method.

    Example:
      >>> split_method("qbitopt_uniform_int3"), split_method("random_0")
      (('qbitopt_uniform', 'int3'), ('random', '0'))
      >>> split_method("sensitivity_loss")
      ('sensitivity_loss', '')
    """
    family, _, member = method.rpartition("_")
    if family in (*OWN_COST, "random"):
        return family, member
    return method, ""


def _has_own_cost(method: str) -> bool:
    return split_method(method)[0] in OWN_COST


def _listed(values: Sequence) -> str:
    return ",".join(map(str, values))
