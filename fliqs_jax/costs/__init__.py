"""Costs: what a policy is worth paying for, as numbers, tables and budgets."""

from fliqs_jax.costs.allocation import (
    allocate_exact,
    allocate_greedy,
    allocate_rows,
    monotone_values,
    total_value,
)
from fliqs_jax.costs.bit_allocation import (
    RelaxedBits,
    allocate,
    noise_objective,
    relax,
    relaxed_gap,
)
from fliqs_jax.costs.budget import (
    check_feasible,
    check_fraction,
    check_target,
    most_probable_within,
)
from fliqs_jax.costs.cost_table import CostTable, JointChoice, cost_table
from fliqs_jax.costs.latency import DEVICES, Device, latency_s, make_site_latency
from fliqs_jax.costs.latency_table import Contraction, LatencyTable, Measurement
from fliqs_jax.costs.measured_latency import make_table_latency
from fliqs_jax.costs.operations import bops, linear_ops, site_bops, site_linear_ops
from fliqs_jax.costs.policy_cost import (
    FormatCost,
    SiteCost,
    SiteFilter,
    cost_name,
    policy_cost,
    site_cost_where,
    site_price,
    storage_bits,
)
from fliqs_jax.costs.random_policies import random_policies_of_equal_cost
from fliqs_jax.costs.size import (
    average_activation_bits,
    average_bits,
    make_site_storage,
    model_bits,
    site_activation_size,
    site_mean_bits,
    site_size,
)

__all__ = [
    "DEVICES",
    "Contraction",
    "CostTable",
    "Device",
    "FormatCost",
    "JointChoice",
    "LatencyTable",
    "Measurement",
    "RelaxedBits",
    "SiteCost",
    "SiteFilter",
    "allocate",
    "allocate_exact",
    "allocate_greedy",
    "allocate_rows",
    "average_activation_bits",
    "average_bits",
    "bops",
    "check_feasible",
    "check_fraction",
    "check_target",
    "cost_name",
    "cost_table",
    "latency_s",
    "linear_ops",
    "make_site_latency",
    "make_site_storage",
    "make_table_latency",
    "model_bits",
    "monotone_values",
    "most_probable_within",
    "noise_objective",
    "policy_cost",
    "random_policies_of_equal_cost",
    "relax",
    "relaxed_gap",
    "site_activation_size",
    "site_bops",
    "site_cost_where",
    "site_linear_ops",
    "site_mean_bits",
    "site_price",
    "site_size",
    "storage_bits",
    "total_value",
]
