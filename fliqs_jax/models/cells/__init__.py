"""Cell spaces as data, NAS-Bench-201 and DARTS: encodings, counts, networks, a table.

A search builds its operations with `make_operation` and prices them with
`operation_counts`; a cell that it has found becomes a `NasBench201Network` or a
`DartsNetwork`.
"""

from fliqs_jax.models.cells.darts import (
    DARTS_EDGES,
    DARTS_NODES,
    DARTS_OPERATIONS,
    DARTS_V1,
    DARTS_V2,
    DartsGenotype,
    darts_genotype,
)
from fliqs_jax.models.cells.darts_counts import (
    DartsPlace,
    darts_counts,
    darts_edge_counts,
    darts_input_counts,
    darts_places,
    darts_stride,
)
from fliqs_jax.models.cells.darts_network import DartsCell, DartsNetwork
from fliqs_jax.models.cells.expected_counts import (
    CellCost,
    NetworkCounts,
    darts_network_counts,
    fitted_cost,
    marked_cost,
    nasbench201_network_counts,
    softmax,
)
from fliqs_jax.models.cells.nasbench201 import (
    NASBENCH201_EDGES,
    NASBENCH201_OPERATIONS,
    NASBENCH201_SIZE,
    nasbench201_all,
    nasbench201_connected,
    nasbench201_counts,
    nasbench201_index,
    nasbench201_operations,
    nasbench201_string,
)
from fliqs_jax.models.cells.nasbench201_network import (
    RESNET_CELL,
    NasBench201Cell,
    NasBench201Network,
    ReductionBlock,
)
from fliqs_jax.models.cells.operations import (
    Counts,
    FactorizedReduce,
    ReluConvNorm,
    convolution,
    make_operation,
    operation_counts,
)
from fliqs_jax.models.cells.search_network import (
    ARCHITECTURE,
    DartsSearchNetwork,
    MixedEdges,
    NasBench201SearchNetwork,
)
from fliqs_jax.models.cells.space import (
    CELL_SPACES,
    DARTS,
    NASBENCH201,
    Alphas,
    CellSpace,
    Decision,
    Tables,
    log_softmax,
    nasbench201_grid,
)
from fliqs_jax.models.cells.staged_cost import FORMATS, StagedCost, staged_cost
from fliqs_jax.models.cells.table import ArchitectureTable

__all__ = [
    "ARCHITECTURE",
    "Alphas",
    "ArchitectureTable",
    "CELL_SPACES",
    "CellCost",
    "CellSpace",
    "Counts",
    "DARTS",
    "DARTS_EDGES",
    "DARTS_NODES",
    "DARTS_OPERATIONS",
    "DARTS_V1",
    "DARTS_V2",
    "DartsCell",
    "DartsGenotype",
    "DartsNetwork",
    "DartsPlace",
    "DartsSearchNetwork",
    "Decision",
    "FORMATS",
    "FactorizedReduce",
    "MixedEdges",
    "NASBENCH201",
    "NASBENCH201_EDGES",
    "NASBENCH201_OPERATIONS",
    "NASBENCH201_SIZE",
    "NasBench201Cell",
    "NasBench201Network",
    "NasBench201SearchNetwork",
    "NetworkCounts",
    "RESNET_CELL",
    "ReductionBlock",
    "ReluConvNorm",
    "StagedCost",
    "Tables",
    "convolution",
    "darts_counts",
    "darts_edge_counts",
    "darts_genotype",
    "darts_input_counts",
    "darts_network_counts",
    "darts_places",
    "darts_stride",
    "fitted_cost",
    "log_softmax",
    "make_operation",
    "marked_cost",
    "nasbench201_all",
    "nasbench201_connected",
    "nasbench201_counts",
    "nasbench201_grid",
    "nasbench201_index",
    "nasbench201_network_counts",
    "nasbench201_operations",
    "nasbench201_string",
    "operation_counts",
    "softmax",
    "staged_cost",
]
