"""Known noise: laws that are drawn from and whose density is known, and normals added to a batch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import Energy, PyTree, squared_distance

__all__ = ["Noise", "add_normals", "gaussian_noise", "row"]


class Noise(NamedTuple):
    """A law that is known.

    Attributes:
        draw: from a key to one example.
        energy: of one example, normalised: ``exp(-energy)`` is the density.
    """

    draw: Callable[[Array], PyTree]
    energy: Energy


def gaussian_noise(mean: PyTree, scale: Array | float) -> Noise:
    """Independent normals of one standard deviation.

    Args:
        mean: one example, a pytree of floating arrays.
        scale: σ > 0.

    Examples:
        >>> noise = jebm.learning.gaussian_noise(jnp.zeros(2), 2.0)
        >>> noise.draw(jax.random.key(0)).shape, round(float(jnp.exp(-noise.energy(jnp.zeros(2)))), 5)  # 1/(8 pi)
        ((2,), 0.03979)
    """
    mean = jax.tree.map(jnp.asarray, mean)
    dimension = sum(leaf.size for leaf in jax.tree.leaves(mean))

    def draw(key: Array) -> PyTree:
        normals = optax.tree.random_like(key, mean, jax.random.normal)
        return jax.tree.map(lambda m, a: m + scale * a, mean, normals)

    def energy(x: PyTree) -> Array:
        normalizer = dimension * (0.5 * math.log(2.0 * math.pi) + jnp.log(scale))
        return 0.5 * squared_distance(x, mean) / jnp.square(scale) + normalizer

    return Noise(draw, energy)


def add_normals(key: Array, batch: PyTree, scales: Array | float) -> PyTree:
    """``x + σ ξ`` with one σ for all examples or one for each, [B]."""
    normals = optax.tree.random_like(key, batch, jax.random.normal)
    return jax.tree.map(lambda a, xi: a + row(scales, a) * xi, batch, normals)


def row(factors: Array | float, like: Array) -> Array:
    """Factors [B] with as many axes as ``like`` [B, ...]; a scalar stays one."""
    factors = jnp.asarray(factors, like.dtype)
    return factors.reshape(factors.shape + (1,) * (like.ndim - factors.ndim)) if factors.ndim else factors
