"""Layers shared by the families' networks, Flax Linen over images [..., H, W, C]; each family has its own networks."""
