"""Pictures: grids of images as PNG files."""

import pathlib

import numpy as np
from jax import Array

__all__ = ["from_uint8", "grid", "save_png", "to_uint8"]


def to_uint8(images: Array | np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8; values outside are clipped.

    Raises:
        ValueError: a value that is not finite.
    """
    images = np.asarray(images, np.float32)
    if not np.isfinite(images).all():
        raise ValueError("images with values that are not finite: the model has diverged")
    return np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """The inverse of `to_uint8`: float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def grid(images: Array | np.ndarray, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Images [n, H, W, C] side by side, row by row: uint8 [rows * (H + gap), columns * (W + gap), C]."""
    images = to_uint8(images)
    n, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(n))) if columns is None else columns
    rows = -(-n // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_png(path: pathlib.Path, image: np.ndarray, smallest_side: int = 512) -> None:
    """Writes uint8 [H, W, 1 or 3], small ones enlarged by a whole factor so that pixels can be seen."""
    from PIL import Image

    factor = max(1, smallest_side // min(image.shape[:2]))
    picture = np.repeat(np.repeat(image, factor, 0), factor, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(temporary, format="PNG")
    temporary.replace(path)
