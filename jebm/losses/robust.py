"""Barron's general and adaptive robust losses (arXiv 1701.03077)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.losses.transforms import dct, unit_pair

__all__ = ["RobustParameters", "general", "log_partition", "negative_log_density", "robust_loss", "robust_unit"]

ALPHA_RANGE = (0.001, 1.999)
SMALLEST_SCALE = 1e-5

_RGB_TO_YUV = np.array([
    [0.299, 0.587, 0.114],
    [-0.14714119, -0.28886916, 0.43601035],
    [0.61497538, -0.51496512, -0.10001026],
])  # fmt: skip
# determinant 1: a change of colours that leaves densities normalised
YUV = (_RGB_TO_YUV / np.cbrt(np.abs(np.linalg.det(_RGB_TO_YUV)))).astype(np.float32)

# nodes of the trapezoid rule in u, x = sinh(u), for integrals over x > 0
_STEP = 0.2
_NODES = np.arange(0, 18 + _STEP, _STEP)


class RobustParameters(NamedTuple):
    """The shape of each coefficient's density, unconstrained; zeros stand for alpha = 1, scale = 1.

    Attributes:
        latent_alpha: ``alpha = 0.001 + 1.998 sigmoid(latent_alpha)``, shaped as the image (or to broadcast).
        latent_scale: ``scale = 1e-5 + (1 - 1e-5) softplus(latent_scale + log(e - 1))``, likewise.
    """

    latent_alpha: Array
    latent_scale: Array

    @property
    def alpha(self) -> Array:
        """The shape, in (0.001, 1.999): 0 is near Cauchy, 2 near normal."""
        low, high = ALPHA_RANGE
        return low + (high - low) * jax.nn.sigmoid(self.latent_alpha)

    @property
    def scale(self) -> Array:
        """The scale, above 1e-5."""
        return SMALLEST_SCALE + (1 - SMALLEST_SCALE) * jax.nn.softplus(self.latent_scale + np.log(np.e - 1))


def general(residual: Array, alpha: Array | float, scale: Array | float) -> Array:
    """``ρ = |α-2|/α (((x/c)²/|α-2| + 1)^(α/2) - 1)``, elementwise (the paper's equation 1).

    ``alpha`` 2 is squared error (halved), 1 Charbonnier, 0 Cauchy, -2 Geman-McClure, -inf Welsch; the
    arguments broadcast.
    """
    squared = jnp.square(residual / jnp.asarray(scale))
    alpha = jnp.clip(jnp.asarray(alpha, squared.dtype), -1e15, 1e15)  # infinity to rounding
    tiny = jnp.finfo(squared.dtype).eps
    # 0 and 2 are limits: a step of rounding size beside them gives their value to rounding
    alpha = jnp.where(jnp.abs(alpha) < tiny, tiny, alpha)
    beta = jnp.maximum(jnp.abs(alpha - 2), tiny)
    return beta / alpha * jnp.expm1(alpha / 2 * jnp.log1p(squared / beta))


def log_partition(alpha: Array | float) -> Array:
    """``log ∫ exp(-ρ(x; α, 1)) dx`` for ``alpha`` >= 0, elementwise; log(π√2) at 0 and log(2π)/2 at 2."""
    u = jnp.asarray(_NODES, jnp.float32)
    weights = jnp.cosh(u).at[0].multiply(0.5) * (2 * _STEP)
    alpha = jnp.asarray(alpha)[..., None]
    heights = jnp.exp(-general(jax.lax.broadcast_to_rank(jnp.sinh(u), alpha.ndim), alpha, 1.0))
    return jnp.log(jnp.dot(heights, weights, precision=jax.lax.Precision.HIGHEST))


def robust_loss(image: Array, target: Array, parameters: RobustParameters | None = None) -> Array:
    """The adaptive image loss: ``Σ_i ρ(r_i; α_i, c_i) + log c_i + log Z(α_i)``, a float32 scalar.

    ``r`` is the orthonormal DCT, over rows and columns, of ``image - target`` in YUV. As a negative
    log-likelihood it may be negative, and its parameters can be learnt with the model's.

    Args:
        image: [H, W, 3] in [-1, 1].
        target: as ``image``.
        parameters: `RobustParameters` of shape [H, W, 3]; None for alpha = 1 and scale = 1 everywhere.

    Raises:
        ValueError: shapes that differ, or not three channels.
    """
    image, target = unit_pair(image, target)
    if image.shape[-1] != 3:
        raise ValueError(f"the adaptive robust loss takes images of 3 channels (RGB), got {image.shape[-1]}")
    return robust_unit(image, target, parameters)


def robust_unit(image: Array, target: Array, parameters: RobustParameters | None = None) -> Array:
    """`robust_loss` of images in [0, 1]."""
    parameters = RobustParameters(jnp.zeros(()), jnp.zeros(())) if parameters is None else parameters
    residual = jnp.moveaxis(jnp.dot(image - target, YUV.T, precision=jax.lax.Precision.HIGHEST), -1, 0)
    return jnp.sum(negative_log_density(jnp.moveaxis(dct(residual), 0, -1), parameters))


def negative_log_density(residual: Array, parameters: RobustParameters) -> Array:
    """``ρ(r; α, c) + log c + log Z(α)``, elementwise."""
    alpha, scale = (jax.lax.broadcast_to_rank(a, residual.ndim) for a in (parameters.alpha, parameters.scale))
    return general(residual, alpha, scale) + jnp.log(scale) + log_partition(alpha)
