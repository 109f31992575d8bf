"""Functions of a batch, over any number of images, compiled once."""

from collections.abc import Callable

import numpy as np
from jax import Array

__all__ = ["map_batches"]


def map_batches(function: Callable[[int, np.ndarray], Array], images: np.ndarray, batch_size: int) -> np.ndarray:
    """``function(i, batch i)`` for consecutive batches, joined: [N, ...] on the host.

    Every batch has the same shape, ``min(batch_size, N)``: the last is filled up with the first image, and
    what that gives is dropped. Hence ``function`` must treat each image on its own.

    Raises:
        ValueError: no images, or a batch size below 1.
    """
    if batch_size < 1 or len(images) == 0:
        raise ValueError(f"{len(images)} images in batches of {batch_size}; both must be at least 1")
    size = min(batch_size, len(images))
    results = []
    for i, start in enumerate(range(0, len(images), size)):
        batch = images[start : start + size]
        if len(batch) < size:
            batch = np.concatenate([batch, np.repeat(images[:1], size - len(batch), axis=0)])
        results.append(np.asarray(function(i, batch)))
    return np.concatenate(results)[: len(images)]
