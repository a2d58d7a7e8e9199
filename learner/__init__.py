"""Credit, losses, the DeepSpeed ranks, publishing of weights, checkpoints."""
