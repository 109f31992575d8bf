"""Shared parts of the image losses: the map to [0, 1], linear maps along rows and columns, blocks."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import Precision

BLOCK = 8


def image_pair(image: Array, target: Array) -> tuple[Array, Array]:
    """Both images, [H, W, C], as float32.

    Raises:
        ValueError: shapes that differ, or that are not those of one image.
    """
    image, target = jnp.asarray(image, jnp.float32), jnp.asarray(target, jnp.float32)
    if image.shape != target.shape or image.ndim != 3:
        raise ValueError(
            f"an image loss takes two images of one shape [H, W, C], got {image.shape} and {target.shape}: "
            "use jax.vmap for batches"
        )
    return image, target


def unit_pair(image: Array, target: Array) -> tuple[Array, Array]:
    """`image_pair`, brought from [-1, 1] to [0, 1]."""
    image, target = image_pair(image, target)
    return (image + 1) / 2, (target + 1) / 2


@functools.cache
def dct_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a float32 matrix [frequency, position]."""
    frequency, position = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * frequency * (2 * position + 1) / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def along_rows_and_columns(rows: np.ndarray, image: Array, columns: np.ndarray) -> Array:
    """``rows @ image @ columnsᵀ`` over the last two axes of ``image``, in full float32 on every backend."""
    return jnp.einsum("uh,...hw,vw->...uv", rows, image, columns, precision=Precision.HIGHEST)


def dct(image: Array) -> Array:
    """The orthonormal DCT-II over the last two axes."""
    return along_rows_and_columns(dct_matrix(image.shape[-2]), image, dct_matrix(image.shape[-1]))


def blocks(plane: Array) -> Array:
    """The 8x8 blocks [number, 8, 8] of [H, W]; rows and columns that fill no block are left out."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    plane = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return plane.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)
