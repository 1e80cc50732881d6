"""Runs: from plain objects to a finished workdir, a file for each kind of search.

A run opens its folder, runs a searcher from `fliqs_jax.searchers` to its end or goes on
with it, and writes the network, `summary.json` and the page. Flags are no matter here.
"""
