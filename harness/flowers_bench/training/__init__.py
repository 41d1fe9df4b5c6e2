"""A trial from its parts to its result: building, the one loop, checkpoints, the trained model again."""
