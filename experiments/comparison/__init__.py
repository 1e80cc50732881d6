"""A comparison of methods: which runs, running them, and what came of them.

Plain arguments: the flags are read by `experiments.compare`.
"""
