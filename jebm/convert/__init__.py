"""Weights of other programs: the authors' checkpoints, named arrays."""
