"""Training: the one loop, evaluation, checkpoints."""
