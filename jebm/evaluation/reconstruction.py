"""Reconstruction of held-out images."""

import time

import jax
import numpy as np
from jax import Array

from jebm.data import to_float, to_uint8
from jebm.evaluation.records import Record, cost
from jebm.evaluation.subject import Subject
from jebm.methods.base import State
from jebm.metrics.batches import map_batches
from jebm.metrics.image_quality import ssim

__all__ = ["evaluate_reconstruction"]


def evaluate_reconstruction(key: Array, subject: Subject) -> list[Record]:
    """Records of ``reconstruct(x)`` against x over the test images; none where there is no encoder.

    ``reconstruction_error``, the mean of ``(x - reconstruct(x))²`` over images and pixels, images in [-1, 1], the
    reconstruction as it comes. From the 256 levels, as files would hold them: ``reconstruction_psnr`` in dB of the
    mean error over all images, and ``reconstruction_ssim`` for images of 11 pixels and more.

    Raises:
        ValueError: an error that is NaN or infinite.
    """
    reconstruct, source, images = subject.method.reconstruct, subject.source, subject.held_out
    if reconstruct is None:
        return []
    start = time.perf_counter()

    @jax.jit
    def reconstructed(key: Array, i: int, state: State, x: Array) -> Array:
        return reconstruct(jax.random.fold_in(key, i), state, to_float(x))

    x = map_batches(lambda i, batch: reconstructed(key, i, subject.state, batch), images, subject.batch_size)
    n = len(images)
    shared = {**subject.protocol, "split": subject.split, **cost("reconstruct", n, time.perf_counter() - start, 1)}
    errors = np.square(x - np.asarray(to_float(images))).mean((1, 2, 3))
    scale = "mean squared error per number, images in [-1, 1]"
    records = [Record("reconstruction_error", float(errors.mean(dtype=np.float64)), n, {**shared, "scale": scale})]
    levels = np.asarray(to_uint8(x))
    error = np.square(levels.astype(np.float64) - images).mean()
    if error > 0:
        about = {**shared, "scale": "dB of the mean over images, range 255", "rounding": "uint8"}
        records.append(Record("reconstruction_psnr", float(10 * np.log10(255**2 / error)), n, about))
    if min(source.image_shape[:2]) >= 11:
        about = {**shared, "window": "Gaussian 11x11, deviation 1.5", "rounding": "uint8"}
        value = float(ssim(levels, images, data_range=255).mean())
        records.append(Record("reconstruction_ssim", value, n, about))
    return records
