"""Image sets that are not the data: made ones, and other sources brought to the data's resolution; and baselines."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["channel_statistics", "compressed_size", "match_resolutions", "outliers", "resize_antialiased"]

BATCH_SIZE = 500
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def outliers(key: Array, images: np.ndarray) -> dict[str, np.ndarray]:
    """Four sets of outliers, each as many as ``images``, of their shape and dtype: uint8 [N, H, W, C].

    * ``uniform_noise``: every number uniform over 0..255;
    * ``constant``: one grey level per image, uniform over 0..255, the same in all channels;
    * ``shuffled``: the given images, the pixels of each in a random order of its own, their colours kept;
    * ``interpolation``: the mean of each image and another one, rounded half up; each image is the other of one.

    Of images of one pixel, which are points, ``constant`` and ``shuffled`` are left out.
    """
    noise_key, level_key, order_key = jax.random.split(key, 3)
    n, height, width, channels = images.shape
    noise = jax.random.randint(noise_key, images.shape, 0, 256).astype(jnp.uint8)
    levels = jax.random.randint(level_key, (n, 1, 1, 1), 0, 256).astype(jnp.uint8)
    words = np.asarray(jax.random.bits(order_key, (n, height * width, 1)))
    pixels = np.asarray(images).reshape(n, height * width, channels)
    shuffled = np.take_along_axis(pixels, words.argsort(1, kind="stable"), 1)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 3), n))
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, 1)  # a single cycle: no image is mixed with itself
    mixed = (np.asarray(images, np.int64) + images[other] + 1) // 2
    sets = {
        "uniform_noise": np.asarray(noise),
        "constant": np.broadcast_to(np.asarray(levels), images.shape),
        "shuffled": shuffled.reshape(images.shape),
        "interpolation": mixed.astype(np.uint8),
    }
    return sets if height * width > 1 else {name: sets[name] for name in ("uniform_noise", "interpolation")}


def match_resolutions(inside: np.ndarray, outside: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Both sets as the model sees them, [.., size, size, C] uint8 with the channels of ``inside``, and what was done.

    Resizing one set alone leaves traces that a detector finds at once. So both go to the lower resolution of the two
    first, then both to ``size``, always by `resize_antialiased`. Before, what is not square loses its ends, and
    colours become grey (BT.601) or grey becomes three equal colours.

    Args:
        inside: uint8 [N, H, W, C], of the data.
        outside: uint8 [M, H', W', C'].
        size: the side of the model's images.
    """
    steps = []
    channels = inside.shape[-1]
    sets = [_square(inside), _square(outside)]
    if any(x.shape != y.shape for x, y in zip(sets, (inside, outside), strict=True)):
        steps.append("centre square")
    if sets[1].shape[-1] != channels:
        steps.append("luminance, BT.601" if channels == 1 else "grey as three colours")
        sets[1] = _grey(sets[1]) if channels == 1 else np.repeat(sets[1], 3, -1)
    lower = min(x.shape[1] for x in sets)
    for target in dict.fromkeys((lower, size)):
        if any(x.shape[1] != target for x in sets):
            steps.append(f"both sets to {target}x{target}, triangle filter, antialiased")
            sets = [resize_antialiased(x, target) for x in sets]
    return sets[0], sets[1], steps


def resize_antialiased(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, W, C] to [N, size, size, C] by a triangle filter, widened where images shrink; rounded."""
    if images.shape[1:3] == (size, size):
        return images
    parts = [_resize(images[i : i + BATCH_SIZE], size) for i in range(0, len(images), BATCH_SIZE)]
    return np.concatenate([np.asarray(part) for part in parts])


def _resize(images: np.ndarray, size: int) -> Array:
    shape = (len(images), size, size, images.shape[-1])
    values = jax.image.resize(jnp.asarray(images, jnp.float32), shape, "linear", antialias=True, precision="highest")
    return jnp.round(jnp.clip(values, 0, 255)).astype(jnp.uint8)


def _square(images: np.ndarray) -> np.ndarray:
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]


def _grey(images: np.ndarray) -> np.ndarray:
    return np.rint(images @ np.array(LUMINANCE)).astype(np.uint8)[..., None]


def compressed_size(images: np.ndarray) -> np.ndarray:
    """Bytes of each image under zlib, float64 [N]: a baseline for energies, which may show complexity alone.

    (Serrà et al., arXiv 1909.11480: likelihoods follow the complexity of an image.)
    """
    return np.array([len(zlib.compress(np.ascontiguousarray(image).tobytes(), 9)) for image in images], float)


def channel_statistics(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Distance of each image's brightness and contrast from the data's, float64 [N]: another baseline for energies.

    The squared Mahalanobis distance of the means and standard deviations of an image's channels from their law over
    the ``reference`` images.
    """
    moments = lambda x: np.concatenate([x.mean((1, 2)), x.std((1, 2))], -1)  # noqa: E731
    known = moments(reference)
    inverse = np.linalg.pinv(np.atleast_2d(np.cov(known, rowvar=False)))
    difference = moments(images) - known.mean(0)
    return np.einsum("ni,ij,nj->n", difference, inverse, difference)
