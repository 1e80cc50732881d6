"""Looking at a run: its files as records, figures for notebooks, the page, the tables.

Reads what a run wrote into its workdir; never trains, never reads a flag.
"""

from fliqs_jax.report.architecture import draw_sizes
from fliqs_jax.report.cell_page import write_cell_report
from fliqs_jax.report.cells import draw_cell, draw_limits
from fliqs_jax.report.choices import draw_accuracy_cost, draw_formats
from fliqs_jax.report.codebook_trade_off import (
    CodebookPoint,
    draw_codebook_trade_off,
    write_codebook_trade_off,
)
from fliqs_jax.report.compression import compression_table
from fliqs_jax.report.compression_page import write_compression_report
from fliqs_jax.report.curves import draw_search, draw_training
from fliqs_jax.report.front_page import write_front_report
from fliqs_jax.report.fronts import draw_front, draw_hypervolume, write_front_plot
from fliqs_jax.report.html import render_report, write_report
from fliqs_jax.report.network_page import write_network_report
from fliqs_jax.report.probabilities import draw_expected_bits, draw_probabilities
from fliqs_jax.report.reading import read_run
from fliqs_jax.report.records import Run, SiteRecord
from fliqs_jax.report.sensitivity import (
    draw_sensitivity,
    sensitivity_table,
    write_sensitivity_plot,
)
from fliqs_jax.report.table import comparison_table, sites_table
from fliqs_jax.report.trade_offs import TradeOff, draw_trade_offs, write_trade_offs

__all__ = [
    "CodebookPoint",
    "Run",
    "SiteRecord",
    "TradeOff",
    "comparison_table",
    "compression_table",
    "draw_accuracy_cost",
    "draw_codebook_trade_off",
    "draw_cell",
    "draw_expected_bits",
    "draw_formats",
    "draw_front",
    "draw_hypervolume",
    "draw_limits",
    "draw_probabilities",
    "draw_search",
    "draw_sensitivity",
    "draw_sizes",
    "draw_trade_offs",
    "draw_training",
    "read_run",
    "render_report",
    "sensitivity_table",
    "sites_table",
    "write_codebook_trade_off",
    "write_cell_report",
    "write_compression_report",
    "write_network_report",
    "write_front_plot",
    "write_front_report",
    "write_report",
    "write_sensitivity_plot",
    "write_trade_offs",
]
