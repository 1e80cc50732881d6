"""Cells under limits: architecture weights, multipliers, repair, signals, baselines."""
