"""Sub-networks and formats together: their space, costs, evaluation and fronts."""
