"""The structural similarity index (Wang et al., 2004) as a loss."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.losses.transforms import along_rows_and_columns, unit_pair

__all__ = ["ssim_loss", "ssim_unit"]

RADIUS, DEVIATION = 5, 1.5  # an 11 x 11 Gaussian window
C1, C2 = 0.01**2, 0.03**2  # for a dynamic range of 1


def ssim_loss(image: Array, target: Array) -> Array:
    """``1 - mean SSIM``, in [0, 2]; 0 for equal images.

        SSIM = (2 μ_x μ_y + C1)(2 σ_xy + C2) / ((μ_x² + μ_y² + C1)(σ_x² + σ_y² + C2))

    with moments under an 11 x 11 Gaussian window of deviation 1.5 at every pixel, per channel; beyond its
    border an image counts as black (zero padding).

    Args:
        image: [H, W, C] in [-1, 1].
        target: as ``image``.

    Raises:
        ValueError: shapes that differ.
    """
    return ssim_unit(*unit_pair(image, target))


def ssim_unit(image: Array, target: Array) -> Array:
    """`ssim_loss` of images in [0, 1]."""
    x, y = jnp.moveaxis(image, -1, 0), jnp.moveaxis(target, -1, 0)
    rows, columns = _window(image.shape[0]), _window(image.shape[1])
    blur = lambda a: along_rows_and_columns(rows, a, columns)  # noqa: E731
    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return 1 - jnp.mean(luminance * (2 * covariance + C2) / (variances + C2))


@functools.cache
def _window(size: int) -> np.ndarray:
    """The Gaussian window at each of ``size`` positions, cut off where the image ends: [position, pixel]."""
    distance = np.arange(size)[:, None] - np.arange(size)
    total = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * DEVIATION**2)).sum()
    weights = np.where(np.abs(distance) <= RADIUS, np.exp(-(distance**2) / (2 * DEVIATION**2)), 0.0)
    return (weights / total).astype(np.float32)
