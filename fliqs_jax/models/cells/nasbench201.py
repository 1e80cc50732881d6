"""NAS-Bench-201: 15,625 cells of six edges, as data.

A cell has four nodes; a node is the sum of an operation of each node before it. It is
written in three forms, and every function here takes any of them:

    index       0 to 15,624, in the order of the benchmark's files
    string      "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|none~2|"
    operations  a tuple of six names, in the order of `NASBENCH201_EDGES`
"""

import collections
import functools
import itertools
import operator
import random
import re
from collections.abc import Sequence
from typing import SupportsIndex

from fliqs_jax.models.cells.operations import (
    Counts,
    check_operation,
    nearest_operation,
    operation_counts,
)

NASBENCH201_OPERATIONS = (
    "none",
    "skip_connect",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "avg_pool_3x3",
)
# (source, target); the string and every tuple of six operations have this order.
NASBENCH201_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
NASBENCH201_SIZE = len(NASBENCH201_OPERATIONS) ** len(NASBENCH201_EDGES)
NASBENCH201_WIDTHS = (1, 2, 4)  # channels of the stages, in those of the first

_PATTERN = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
_PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))  # from input to output, as edges

Cell = SupportsIndex | str | Sequence[str]


@functools.cache
def _order() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The benchmark's order: rank of each index, and index of each rank.

    Its authors listed the cells in alphabetical order of the operations above and
    shuffled the list with Python's generator, seed 88.
    """
    ranks = list(range(NASBENCH201_SIZE))
    random.Random(88).shuffle(ranks)
    indices = [0] * NASBENCH201_SIZE
    for index, rank in enumerate(ranks):
        indices[rank] = index
    return tuple(ranks), tuple(indices)


def nasbench201_string(cell: Cell) -> str:
    """Returns the cell as the benchmark writes it.

    Args:
      cell: index, string or operations.

    Raises:
      ValueError: if it is no cell of the space; names the nearest one.

    Reference:
      Dong and Yang, NAS-Bench-201, 2020, https://arxiv.org/abs/2001.00326

    Example:
      >>> nasbench201_string(9)
      '|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|'
    """
    return _PATTERN.format(*nasbench201_operations(cell))


def nasbench201_index(cell: Cell) -> int:
    """Returns the cell's place in the benchmark's own order.

    Args:
      cell: string, operations or index.

    Raises:
      ValueError: if it is no cell of the space; names the nearest one.

    Example:
      >>> nasbench201_index(["skip_connect"] * 6)
      1835
    """
    rank = 0
    for operation in nasbench201_operations(cell):
        digit = NASBENCH201_OPERATIONS.index(operation)
        rank = rank * len(NASBENCH201_OPERATIONS) + digit
    return _order()[1][rank]


def nasbench201_operations(cell: Cell) -> tuple[str, ...]:
    """Returns the operation of each edge, in the order of `NASBENCH201_EDGES`.

    Args:
      cell: index, string or operations.

    Raises:
      ValueError: if it is no cell of the space; names the nearest one.

    Example:
      >>> nasbench201_operations(0)[:3]
      ('avg_pool_3x3', 'nor_conv_1x1', 'skip_connect')
    """
    if isinstance(cell, str):
        return _parse(cell)
    if isinstance(cell, Sequence):
        return _checked(cell)
    index = operator.index(cell)
    if not 0 <= index < NASBENCH201_SIZE:
        nearest = min(max(index, 0), NASBENCH201_SIZE - 1)
        raise ValueError(
            f"index must be 0 to {NASBENCH201_SIZE - 1} (a cell of NAS-Bench-201), got"
            f" {index}: the nearest is {nearest}"
        )
    rank, operations = _order()[0][index], []
    for _ in NASBENCH201_EDGES:
        rank, digit = divmod(rank, len(NASBENCH201_OPERATIONS))
        operations.append(NASBENCH201_OPERATIONS[digit])
    return tuple(reversed(operations))


def nasbench201_connected(cell: Cell) -> bool:
    """Returns whether the cell's input reaches its output past all `none`.

    341 cells do not let it, and stay at chance: 10 % on CIFAR-10.

    Args:
      cell: index, string or operations.

    Example:
      >>> nasbench201_connected(["nor_conv_3x3"] * 3 + ["none"] * 3)
      False
    """
    operations = nasbench201_operations(cell)
    return any(all(operations[edge] != "none" for edge in path) for path in _PATHS)


def nasbench201_counts(
    cell: Cell,
    num_classes: int = 10,
    *,
    width: int = 16,
    num_cells: int = 5,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Counts:
    r"""Returns parameters and MACs of the network that the benchmark makes of a cell.

    With the defaults, n3 and n1 edges of 3x3 and 1x1 convolutions, and k classes,

    .. math::
        P = 72656 + 65 k + 243040 n_3 + 28000 n_1, \qquad
        M = 7782400 + 64 k + 3932160 (9 n_3 + n_1)

    Both are the benchmark's own columns: parameters with those of batch normalisation
    and the classifier's bias, MACs of convolutions and classifier alone. Edges behind a
    `none` count, too: the network computes them. Equal to `NasBench201Network`.

    Args:
      cell: index, string or operations.
      num_classes: k.
      width: channels of the first stage; the others have two and four times as many.
      num_cells: cells in each of the three stages.
      image_shape: height, width and channels of an example.

    Returns:
      The pair (parameters, macs).

    Raises:
      ValueError: if it is no cell of the space; names the nearest one.

    Example:
      >>> nasbench201_counts(0)
      Counts(parameters=129306, macs=15647360)
    """
    times = collections.Counter(nasbench201_operations(cell))
    rows, columns, channels = image_shape
    stem = 9 * channels * width
    # The last terms: batch normalisation before the classifier, and the classifier.
    last = width * NASBENCH201_WIDTHS[-1]
    parameters = stem + 2 * width + 2 * last + (last + 1) * num_classes
    macs = stem * rows * columns + last * num_classes
    for stage, multiple in enumerate(NASBENCH201_WIDTHS):
        features = width * multiple
        if stage:
            rows, columns = -(-rows // 2), -(-columns // 2)
            # 3x3 from half the channels, 3x3, and 1x1 without batch normalisation.
            weights = (9 * features // 2 + 9 * features + features // 2) * features
            parameters += weights + 4 * features
            macs += weights * rows * columns
        for operation, edges in times.items():
            cost = operation_counts(operation, features, pixels=rows * columns)
            parameters += num_cells * edges * cost.parameters
            macs += num_cells * edges * cost.macs
    return Counts(parameters, macs)


def nasbench201_all() -> list[tuple[str, ...]]:
    """Returns the operations of all cells, by index.

    Example:
      >>> nasbench201_all()[1835] == ("skip_connect",) * 6
      True
    """
    every = itertools.product(NASBENCH201_OPERATIONS, repeat=len(NASBENCH201_EDGES))
    cells = list(every)
    return [cells[rank] for rank in _order()[0]]


def _parse(text: str) -> tuple[str, ...]:
    match = re.fullmatch(
        re.escape(_PATTERN).replace(r"\{\}", "([^|~+]*)"), text.strip()
    )
    if match:
        return _checked(match.groups(), text)
    words = re.findall(r"\w*(?=\s*~)", text)
    words = [word for word in words if word]
    hint = "for example " + _PATTERN.format(*["nor_conv_3x3"] * len(NASBENCH201_EDGES))
    if len(words) == len(NASBENCH201_EDGES):
        hint = "the nearest is " + _nearest(words)
    pattern = _PATTERN.format(*["op"] * len(NASBENCH201_EDGES))
    raise ValueError(f"cell must be like {pattern}, got {text!r}: {hint}")


def _checked(operations: Sequence[str], text: str = "") -> tuple[str, ...]:
    if len(operations) != len(NASBENCH201_EDGES):
        raise ValueError(
            f"a cell of NAS-Bench-201 has six operations, for the edges"
            f" {NASBENCH201_EDGES}, got {len(operations)}: {operations!r}"
        )
    for (source, target), operation in zip(NASBENCH201_EDGES, operations, strict=True):
        where = f" (edge {source} to {target}{f' of {text}' if text else ''})"
        check_operation(operation, NASBENCH201_OPERATIONS, where)
    return tuple(operations)


def _nearest(words: Sequence[str]) -> str:
    names = [nearest_operation(word, NASBENCH201_OPERATIONS) for word in words]
    return _PATTERN.format(*names)
