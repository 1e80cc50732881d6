"""Training: device mapping, steps, evaluation, checkpoints, logs. No search."""
