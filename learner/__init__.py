"""Credit, training samples, losses, DeepSpeed ranks, weight sync and checkpoints."""
