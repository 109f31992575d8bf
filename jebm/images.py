"""Pictures: grids of images as PNG files."""

import io
import warnings
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import files, paths
from jebm.energy import require_int
from jebm.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["from_uint8", "grid", "picture", "png", "save_png", "to_uint8", "warn_of_strays"]

FAR = 2.0  # root mean square of an image far outside [-1, 1], where that of black and white is 1


def to_uint8(images: Array | np.ndarray) -> np.ndarray:
    """Floating images in [-1, 1] as uint8; values outside are clipped. Images that are uint8 already stay as they are.

    Raises:
        DataError: a value that is not finite.
        ValueError: integers that are not uint8.

    Examples:
        >>> jebm.images.to_uint8(np.array([-1.0, 0.0, 1.0, 1.2]))
        array([  0, 128, 255, 255], dtype=uint8)
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating in [-1, 1] or uint8 in [0, 255], got {images.dtype}")
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise DataError("images with values that are not finite: the model has diverged")
    return np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """The inverse of `to_uint8`: float32 in [-1, 1].

    Raises:
        ValueError: images that are not uint8.

    Examples:
        >>> jebm.images.from_uint8(np.array([0, 255], np.uint8))
        array([-1.,  1.], dtype=float32)
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    return images.astype(np.float32) / 127.5 - 1.0


def warn_of_strays(images: Array | np.ndarray, stacklevel: int = 2) -> None:
    """One warning with the count of images [n, H, W, C] that are not finite or far outside [-1, 1] (`FAR`).

    Chains end there that have diverged or left the data; clipped, their images still look like images. Inside a
    compiled program there is no warning.
    """
    if isinstance(images, jax.core.Tracer) or not images.size:
        return
    size = np.asarray(jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(images, jnp.float32)), axis=(1, 2, 3))))
    lost, far = np.sum(~np.isfinite(size)), np.sum(size[np.isfinite(size)] > FAR)
    if lost or far:
        words = [f"{lost} are not finite"] * bool(lost) + [f"{far} lie far outside [-1, 1]"] * bool(far)
        message = f"of {len(size)} images, {' and '.join(words)}: their chains have left the data"
        warnings.warn(message, stacklevel=stacklevel + 1)


def grid(images: Array | np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Images [n, H, W, C], floating in [-1, 1] or uint8, side by side, row by row.

    Returns:
        uint8 [rows * (H + gap) + gap, columns * (W + gap) + gap, C], with white gaps.

    Raises:
        ValueError: as `to_uint8`, or an array that is no batch of images.

    Points of the plane, which are images of one pixel and two channels, are marked in one square, [-1, 1] to the right
    and upwards.

    Examples:
        >>> jebm.images.grid(jnp.zeros((6, 8, 8, 1)), columns=3).shape  # two rows, a gap of one pixel
        (19, 28, 1)
    """
    images = to_uint8(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a grid needs images of shape [n, H, W, C] with n at least 1, got {images.shape}")
    if images.shape[1:] == (1, 1, 2):
        return _marked(images.reshape(-1, 2))
    n, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(n))) if columns is None else require_int(columns, "columns", 1)
    rows = -(-n // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def _marked(points: np.ndarray) -> np.ndarray:
    """Levels [n, 2] as dark marks in a white square, uint8 [260, 260, 1]; the darker the more there are."""
    counts = np.zeros((260, 260))
    for across, down in np.ndindex(4, 4):
        np.add.at(counts, (255 - points[:, 1].astype(int) + down, points[:, 0].astype(int) + across), 1)
    return np.round(255.0 * np.exp(-0.7 * counts)).astype(np.uint8)[..., None]


def save_png(path: paths.Path, image: np.ndarray, smallest_side: int = 512) -> None:
    """Writes uint8 [H, W, 1 or 3], small ones enlarged by a whole factor so that pixels can be seen."""
    with files.whole(path) as temporary:
        picture(image, smallest_side).save(temporary, format="PNG")


def png(image: np.ndarray, smallest_side: int = 240) -> bytes:
    """A PNG of uint8 [H, W, 1 or 3], small ones enlarged by a whole factor."""
    buffer = io.BytesIO()
    picture(image, smallest_side).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(image: np.ndarray, smallest_side: int) -> "Image.Image":
    """A Pillow image of uint8 [H, W, 1 or 3], small ones enlarged by a whole factor."""
    from PIL import Image

    factor = max(1, smallest_side // min(image.shape[:2]))
    enlarged = np.repeat(np.repeat(image, factor, 0), factor, 1)
    return Image.fromarray(enlarged[..., 0] if enlarged.shape[-1] == 1 else enlarged)
