"""Chain diagnostics that every family logs: gradient norms, displacement, saturation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jebm.methods.base import Metrics

__all__ = ["CURVES", "displacement", "gradient_norms", "saturation"]

CURVES = {
    "energy_gap": "Mean energy of data minus that of the chains' ends: near 0 where these look like data.",
    "chain_displacement": "Distance that a training chain moves a number of an image, root mean square.",
    "probe_energy": "Mean energy of a few fixed training images: its drift is that of the whole energy.",
}
"""Curves of every family that walks chains (`jebm.methods.base.Summary`)."""

ROWS = 4  # of the data and of the negatives: beside a chain over the whole batch their gradient costs nothing


def gradient_norms(energy: Callable[..., Array], data: Array, negatives: Array, *conditions: Array) -> Metrics:
    """``data_gradient_norm`` and ``negative_gradient_norm``: mean |∇E| over the first rows of each.

    Args:
        energy: of one example, and of one row of each of ``conditions``; a scalar.
        data: positives [B, ...].
        negatives: ends of chains, of the same shape.
        conditions: what the energy is given beside an example (noise levels), [B, ...].
    """
    rows = jnp.concatenate([data[:ROWS], negatives[:ROWS]]).astype(jnp.float32)
    beside: list[Any] = [jnp.concatenate([c[:ROWS], c[:ROWS]]) for c in conditions]
    gradients = jax.vmap(jax.grad(lambda x, *c: jnp.sum(energy(x, *c))))(rows, *beside)
    norms = jnp.sqrt(jnp.sum(jnp.square(gradients.reshape(len(rows), -1)), axis=1))
    half = len(rows) // 2
    return {"data_gradient_norm": jnp.mean(norms[:half]), "negative_gradient_norm": jnp.mean(norms[half:])}


def displacement(starts: Array, ends: Array) -> Metrics:
    """``chain_displacement``: root mean square of ``ends - starts``."""
    return {"chain_displacement": jnp.sqrt(jnp.mean(jnp.square(ends - starts)))}


def saturation(images: Array) -> Metrics:
    """``saturated_pixels``: the share of values outside (-1, 1)."""
    return {"saturated_pixels": jnp.mean((jnp.abs(images) >= 1.0).astype(jnp.float32))}
