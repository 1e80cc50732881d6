"""Runs: from plain objects to a finished workdir, a file for each kind of search."""
