"""The DARTS space, as data: genotypes of a normal and a reduction cell.

A cell has two inputs (nodes 0 and 1), the outputs of the two cells before it, and four
nodes (2 to 5), each the sum of two operations of two nodes before it. Its output joins
the channels of the four. In a reduction cell operations of the inputs have stride 2.
"""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from fliqs_jax.models.cells.operations import check_operation

DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
DARTS_NODES = (2, 3, 4, 5)
# (source, target) of the 14 edges of a search cell; a genotype keeps two a target.
DARTS_EDGES = tuple((source, node) for node in DARTS_NODES for source in range(node))


@dataclasses.dataclass(frozen=True)
class DartsGenotype:
    """A normal and a reduction cell, each eight pairs (operation, source), two a node.

    Its text is the notation of the published genotypes, which `darts_genotype` reads.

    Raises:
      ValueError: if a cell has not eight pairs, an operation is unknown or `none`, or
        a node takes what is no node before it, or the same one twice.

    Reference:
      Liu, Simonyan and Yang, DARTS, 2019, https://arxiv.org/abs/1806.09055

    Example:
      >>> cell = (("skip_connect", 0), ("sep_conv_3x3", 1)) * 4
      >>> str(DartsGenotype(normal=cell, reduce=cell))[:48]
      "Genotype(normal=[('skip_connect', 0), ('sep_conv"
    """

    normal: tuple[tuple[str, int], ...]
    reduce: tuple[tuple[str, int], ...]

    def __post_init__(self):
        for kind in ("normal", "reduce"):
            _check_cell(kind, getattr(self, kind))

    def __str__(self) -> str:
        cells = (
            f"{kind}={list(getattr(self, kind))}, {kind}_concat=range(2, 6)"
            for kind in ("normal", "reduce")
        )
        return f"Genotype({', '.join(cells)})"


def _check_cell(kind: str, pairs: tuple[tuple[str, int], ...]) -> None:
    if len(pairs) != 2 * len(DARTS_NODES):
        raise ValueError(
            f"{kind} must be 8 pairs (operation, source), two for each of the nodes 2"
            f" to 5, got {len(pairs)}: {pairs!r}"
        )
    for number, (operation, source) in enumerate(pairs):
        node = DARTS_NODES[number // 2]
        where = f" ({kind} cell, node {node})"
        if operation == "none":
            raise ValueError(
                f"operation none{where}: a genotype keeps two edges a node that do"
                f" something, so use one of {', '.join(DARTS_OPERATIONS[1:])}"
            )
        check_operation(operation, DARTS_OPERATIONS[1:], where)
        if not 0 <= source < node:
            nearest = min(max(source, 0), node - 1)
            raise ValueError(
                f"source of {operation}{where} must be 0 to {node - 1}, got {source}:"
                f" the nearest is {nearest}"
            )
    for node, first, second in zip(DARTS_NODES, pairs[::2], pairs[1::2], strict=True):
        if first[1] == second[1]:
            others = [source for source in range(node) if source != first[1]]
            raise ValueError(
                f"{kind} cell, node {node} takes node {first[1]} twice: its two sources"
                f" must differ, so one may be any of {others}"
            )


DARTS_V1 = DartsGenotype(
    normal=(
        *(("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
        *(("skip_connect", 0), ("sep_conv_3x3", 1)),
        *(("skip_connect", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 0), ("skip_connect", 2)),
    ),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("skip_connect", 2), ("max_pool_3x3", 0)),
        *(("max_pool_3x3", 0), ("skip_connect", 2)),
        *(("skip_connect", 2), ("avg_pool_3x3", 0)),
    ),
)
DARTS_V2 = DartsGenotype(
    normal=(
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        *(("sep_conv_3x3", 1), ("skip_connect", 0)),
        *(("skip_connect", 0), ("dil_conv_3x3", 2)),
    ),
    reduce=(
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("skip_connect", 2)),
        *(("skip_connect", 2), ("max_pool_3x3", 1)),
    ),
)
_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
_NAMED = {"DARTS_V1": DARTS_V1, "DARTS_V2": DARTS_V2}


def darts_genotype(genotype: Any) -> DartsGenotype:
    """Returns a genotype from any of the forms that people keep it in.

    Args:
      genotype: a `DartsGenotype`; anything with fields `normal` and `reduce`, such as
        the published code's tuple; a mapping with these keys (read from JSON); the text
        "Genotype(normal=[('sep_conv_3x3', 0), ...], ..., reduce=[...], ...)"; or the
        name "DARTS_V1" or "DARTS_V2". Cells that do not join all four nodes are not
        of this space.

    Raises:
      ValueError: if it is none of these, or no genotype of the space.

    Example:
      >>> darts_genotype(str(DARTS_V2)) == DARTS_V2
      True
    """
    if isinstance(genotype, DartsGenotype):
        return genotype
    if isinstance(genotype, str):
        if genotype.strip().upper() in _NAMED:
            return _NAMED[genotype.strip().upper()]
        fields = _parse(genotype)
    elif isinstance(genotype, Mapping):
        fields = genotype
    else:
        fields = {name: getattr(genotype, name, None) for name in _FIELDS}
    cells = []
    for kind in ("normal", "reduce"):
        pairs = fields.get(kind)
        try:
            cells.append(tuple((str(name), int(source)) for name, source in pairs))
        except (TypeError, ValueError):
            raise ValueError(
                f"genotype needs {kind}=[(operation, source), ...], 8 pairs, got"
                f" {pairs!r} in {genotype!r}: for example {DARTS_V2}"
            ) from None
        concat = fields.get(f"{kind}_concat")
        if concat is not None and sorted(concat) != list(DARTS_NODES):
            raise ValueError(
                f"{kind}_concat must be the nodes 2 to 5, as in all cells of the DARTS"
                f" space, got {list(concat)}"
            )
    return DartsGenotype(*cells)


def _parse(text: str) -> dict[str, Any]:
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError
        return {str(word.arg): _literal(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"genotype {text!r} cannot be read: use {' or '.join(_NAMED)}, or write it"
            f" out, {DARTS_V2}"
        ) from None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
        return range(*(ast.literal_eval(argument) for argument in node.args))
    return ast.literal_eval(node)
