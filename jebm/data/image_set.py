"""Images that are decoded when they are asked for, and read as an array is."""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np

from jebm.data.geometry import Geometry
from jebm.errors import DataError

__all__ = ["IMAGE_MODES", "ImageSet", "Reader", "decode_file", "decoded"]

# Pillow's modes of eight bits, and the channels that they become; others would be cut off silently
IMAGE_MODES = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}

DECODE_LIMIT = 256 * 2**20  # bytes of pixels up to which a split is decoded once, when it is loaded


class Reader(Protocol):
    """Encoded images by number; small enough to be sent to worker processes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | np.ndarray:
        """A whole image file, or the pixels, uint8 [H, W, C]."""

    def where(self, index: int) -> str:
        """The name of the file, or of what else holds the image, for messages."""

    def identity(self) -> str:
        """A text that changes when the images do."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Reads as a uint8 array [N, H, W, C] whose first axis alone may be indexed; what is read is decoded each time.

    Attributes:
        reader: the images.
        geometry: what is done to each.
        image_shape: height, width and channels of the result, which every image must have.
        indices: int64 [N], the images of the reader that belong to it, in order.
    """

    reader: Reader
    geometry: Geometry
    image_shape: tuple[int, int, int]
    indices: np.ndarray

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As an array's."""
        return (len(self.indices), *self.image_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels in memory."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int, words: tuple[int, int] | None = None) -> np.ndarray:
        """One image, uint8 [H, W, C]; ``words`` place a random crop (`Geometry.box`).

        Raises:
            DataError: a file that is broken, no image, or of another shape than `image_shape`.
        """
        number = int(self.indices[index])
        encoded = self.reader.read(number)
        where = self.reader.where(number)
        pixels = decode_file(encoded, where, self.geometry, self.image_shape[2], words)
        if pixels.shape != self.image_shape:
            raise DataError(
                f"{where}: {pixels.shape[0]} x {pixels.shape[1]} pixels, others are "
                f"{self.image_shape[0]} x {self.image_shape[1]}: declare a crop, such as data.crop=centre"
            )
        return pixels

    def __getitem__(self, key: Any) -> np.ndarray:
        chosen = np.arange(len(self))[key]
        if chosen.ndim == 0:
            return self.read(int(chosen))
        if not len(chosen):
            return np.zeros((0, *self.image_shape), np.uint8)
        return np.stack([self.read(int(i)) for i in chosen])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(i) for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)

    def identity(self) -> str:
        """A text that changes when the images do."""
        return f"{self.reader.identity()} {self.geometry} {self.shape} {hash_of(self.indices)}"


def hash_of(indices: np.ndarray) -> str:
    """Sixteen hexadecimal digits."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(indices, np.int64).tobytes()).hexdigest()[:16]


def decode_file(
    encoded: bytes | np.ndarray,
    where: str,
    geometry: Geometry,
    channels: int,
    words: tuple[int, int] | None = None,
) -> np.ndarray:
    """An image file's content, or its pixels, as uint8 [H, W, channels].

    Raises:
        DataError: not an image, a broken one, one of more than 8 bits, or one that does not hold the crop.
    """
    from PIL import Image

    try:
        if isinstance(encoded, np.ndarray):
            image = Image.fromarray(encoded[..., 0] if encoded.shape[-1] == 1 else encoded)
        else:
            image = Image.open(io.BytesIO(encoded))
            image.load()
        if image.mode not in IMAGE_MODES:
            raise DataError(f"{where}: pixels of mode {image.mode}; images must have 8 bits per channel")
        pixels = geometry.apply(image.convert("L" if channels == 1 else "RGB"), words)
    except DataError as error:
        raise error if str(error).startswith(where) else DataError(f"{where}: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot be read as an image; not one, or a broken one") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def decoded(images: ImageSet) -> np.ndarray:
    """All images in one array where that takes at most `DECODE_LIMIT` bytes and nothing is random; else ``images``.

    What comes back reads as an array either way.
    """
    if images.nbytes > DECODE_LIMIT or images.geometry.random:
        return cast(np.ndarray, images)
    from concurrent.futures import ThreadPoolExecutor

    out = np.empty(images.shape, np.uint8)

    def fill(rows: range) -> None:
        for row in rows:
            out[row] = images.read(row)

    with ThreadPoolExecutor() as pool:  # decoders release the interpreter's lock
        list(pool.map(fill, (range(i, min(i + 256, len(out))) for i in range(0, len(out), 256))))
    return out
