"""The training loop: steps over the items of an objective, checkpoints, the result on disk."""
