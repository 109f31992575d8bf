"""From uint8 images to what networks see: float32 in [-1, 1].

Sizes change once, on the host, before training; what is random happens on the device, from a key.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.data.geometry import resize
from jebm.data.source import Source, fingerprint

__all__ = ["preprocess", "resize_source", "to_float", "to_uint8"]


def to_float(images: Array | np.ndarray) -> Array:
    """``2 x / 255 - 1``: uint8 to float32, 0 to exactly -1 and 255 to exactly 1.

    Examples:
        >>> jebm.data.to_float(np.array([0, 255], np.uint8))
        Array([-1.,  1.], dtype=float32)
    """
    # one rounding of an exact integer: no backend's fused or reciprocal arithmetic can leave [-1, 1]
    return (2.0 * jnp.asarray(images, jnp.float32) - 255.0) * np.float32(1 / 255)


def to_uint8(images: Array | np.ndarray) -> Array:
    """The nearest of the 256 levels, the inverse of `to_float`.

    Values outside [-1, 1] are clipped; NaN gives an undefined level.

    Examples:
        >>> jebm.data.to_uint8(jnp.array([-1.0, 0.0, 1.0]))
        Array([  0, 128, 255], dtype=uint8)
    """
    return jnp.round(jnp.clip(jnp.asarray(images) * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)


def preprocess(
    key: Array, images: Array | np.ndarray, *, horizontal_flip: bool = False, dequantize: bool = False
) -> Array:
    """A training batch, float32 of the shape of ``images``; pure, to be called under ``jit``.

    In training the key is ``jax.random.fold_in(data_key, step)``, so that a batch is a function of its step.

    Args:
        key: a typed key; unused when both options are off.
        images: uint8 [N, H, W, C].
        horizontal_flip: mirror each image, left to right, with probability 1/2.
        dequantize: ``2 (x + u) / 256 - 1`` with u uniform in [0, 1) instead of ``2 x / 255 - 1``: a density
            of these bounds the likelihood of the 256 levels (Theis et al., arXiv 1511.01844). The two scales
            differ by the factor 255/256.
    """
    flip_key, noise_key = jax.random.split(key)
    images = jnp.asarray(images)
    if horizontal_flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if dequantize:
        levels = images.astype(jnp.float32) + jax.random.uniform(noise_key, images.shape)
        # 255 + u may round up to 256
        return jnp.minimum(levels / 128.0 - 1.0, np.nextafter(np.float32(1), np.float32(0)))
    return to_float(images)


def resize_source(source: Source, size: int | None) -> Source:
    """Both splits at ``size`` (see `resize`), the step noted in ``source.steps``; None changes nothing."""
    height, width, _ = source.image_shape
    if size is None or (height, width) == (size, size):
        return source
    train, test = resize(source.train, size), resize(source.test, size)
    how = "zero border" if max(height, width) < size or height != width else "block average"
    return dataclasses.replace(
        source,
        train=train,
        test=test,
        fingerprint=fingerprint(train, test, source.train_labels, source.test_labels),
        steps=(*source.steps, f"{height}x{width} to {size}x{size}, {how}"),
    )
