"""Pictures, arrays and masks as restoration reads them."""

import collections

import numpy as np

from jebm import images, paths
from jebm.data import DataError
from jebm.data.image_set import IMAGE_MODES

__all__ = ["read_images", "read_mask"]


def read_images(path: paths.Path, shape: tuple[int, ...], what: str, hint: str = "") -> tuple[list[str], np.ndarray]:
    """Names and float32 images [n, *shape] of a picture, a folder of pictures, or an array (.npy, or 'x' of .npz).

    uint8 images become [-1, 1]; arrays of floats must lie there, up to what noise adds (1.5), unless they are no images
    (``shape`` of two axes).

    Args:
        path: what to read.
        shape: the shape that each must have.
        what: words for it in errors, such as "the original".
        hint: what to add where the shape is another.

    Raises:
        DataError: nothing there, a file that is no picture, another shape, or values out of range.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise DataError(f"{path}: no picture ({', '.join(PICTURES)}) in this folder")
        stems = collections.Counter(file.stem for file in files)  # what their restored pictures are called
        if stems.most_common(1)[0][1] > 1:
            raise DataError(f"{path}: two pictures are called {stems.most_common(1)[0][0]!r}; rename one of them")
        arrays = [_checked(file, read_picture(file)[None], shape, what, hint)[0] for file in files]
        return [file.name for file in files], np.stack(arrays)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix.lower() in PICTURES:
        return [path.name], _checked(path, read_picture(path)[None], shape, what, hint)
    x = _checked(path, _read_array(path), shape, what, hint)
    return [f"{i:06d}.png" for i in range(len(x))], x


LARGEST = 1.5  # of an image's absolute values: noise and the bicubic kernel overshoot 1


PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


def read_picture(path: paths.Path) -> np.ndarray:
    """uint8 [H, W, 1] of a grey picture, [H, W, 3] of a coloured one."""
    from PIL import Image

    try:
        with path.open("rb") as file, Image.open(file) as picture:
            if picture.mode not in IMAGE_MODES:
                raise DataError(f"{path}: pixels of mode {picture.mode}; give 8 bits per channel")
            if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
                raise DataError(f"{path}: pixels are transparent; put the picture on a background first")
            grey = picture.mode in ("1", "L", "LA")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
            if picture.mode == "P" and (pixels == pixels[..., :1]).all():
                grey, pixels = True, pixels[..., 0]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a picture that can be read, or one too large") from None
    return pixels[..., None] if grey else pixels


def read_mask(path: paths.Path, size: int) -> np.ndarray:
    """Known pixels, bool [size, size]: white (128 or more) in the picture.

    Raises:
        DataError: no such picture, one of another size, or one without white.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such mask; give box, random or a picture")
    mask = read_picture(path).mean(-1) >= 127.5
    if mask.shape != (size, size):
        raise DataError(f"{path}: the mask is {mask.shape[0]}x{mask.shape[1]} pixels, the images are {size}x{size}")
    if not mask.any():
        raise DataError(f"{path}: no pixel of the mask is white, so nothing would be known")
    return mask


def _read_array(path: paths.Path) -> np.ndarray:
    try:
        with path.open("rb") as file:  # numpy leaves damaged archives open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if "x" not in loaded.files:
                raise DataError(f"{path}: holds {', '.join(loaded.files) or 'nothing'}, but no array 'x'")
            return loaded["x"]
    except DataError:
        raise
    except Exception:
        raise DataError(f"{path}: neither a picture nor a numpy array that can be read") from None


def _checked(path: paths.Path, x: np.ndarray, shape: tuple[int, ...], what: str, hint: str) -> np.ndarray:
    if x.ndim == len(shape) and len(shape) == 3 and shape[-1] == 1:  # grey images without their last axis
        x = x[..., None]
    if x.shape[1:] != shape or len(x) == 0:
        given = f"{len(x)} of {x.shape[1:]}" if x.ndim else "a single number"
        raise DataError(f"{path}: {what} must have the shape {shape}, got {given}{hint}")
    if x.dtype == np.uint8 and len(shape) == 3:
        return images.from_uint8(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{path}: {what} is {x.dtype}; give uint8 in 0..255, or floats in [-1, 1]")
    x = x.astype(np.float32)
    if not np.isfinite(x).all() or (len(shape) == 3 and np.abs(x).max() > LARGEST):
        raise DataError(f"{path}: {what} has values that are not in [-1, 1]; scale it, or give uint8 in 0..255")
    return x
