"""Parts of multi-objective search over integer vectors, whatever they stand for."""
