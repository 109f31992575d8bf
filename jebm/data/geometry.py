"""The one change of an image's size: a declared crop, then a declared filter.

Crops (``data.crop``):

* ``none``: the whole image. All images have one size; another size is reached by `resize` alone.
* ``centre``: the largest square in the middle; ``centre:N``: the square of N pixels in the middle.
* ``box:LEFT,TOP,RIGHT,BOTTOM``: that box, in pixels, which is square.
* ``random``: the short side is brought to the size, then a square of it is drawn, anew in each epoch; the middle one
  outside training.

After a crop the square is brought to the size by the triangle filter, widened where images shrink (Pillow's BILINEAR).
"""

import dataclasses
from typing import Any

import numpy as np

from jebm.errors import DataError

__all__ = ["Geometry", "resize"]

CROPS = "none, centre, centre:N, box:LEFT,TOP,RIGHT,BOTTOM, random"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A crop and a size.

    Attributes:
        crop: see above.
        size: the side of the result; None leaves the size as it is, which only ``none`` allows.

    Raises:
        DataError: no such crop, or a crop without a size.
    """

    crop: str = "none"
    size: int | None = None

    def __post_init__(self) -> None:
        kind, numbers = self._parsed()
        if kind != "none" and self.size is None:
            raise DataError(f"crop '{self.crop}' needs a size to bring the images to")
        if kind == "box" and not 0 < numbers[2] - numbers[0] == numbers[3] - numbers[1]:
            raise DataError(f"crop '{self.crop}': the box must be square and not empty")

    def _parsed(self) -> tuple[str, list[int]]:
        kind, colon, argument = self.crop.partition(":")
        numbers = argument.split(",") if colon else []
        wanted = {"none": (0,), "centre": (0, 1), "random": (0,), "box": (4,)}
        if len(numbers) not in wanted.get(kind, ()) or not all(n.isascii() and n.isdigit() for n in numbers):
            raise DataError(f"no crop '{self.crop}'; there are {CROPS}")
        return kind, [int(n) for n in numbers]

    @property
    def random(self) -> bool:
        """Whether training draws anything."""
        return self.crop == "random"

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps, in words."""
        kind, numbers = self._parsed()
        if kind == "none" and self.size is None:
            return ()
        if kind == "none":
            return (f"to {self.size}x{self.size}, zero border where smaller, block average where larger",)
        to = f"{self.size}x{self.size}, triangle filter, antialiased"
        if kind == "random":
            return (f"short side to {self.size}, triangle filter, antialiased", f"random {self.size}x{self.size} crop")
        if kind == "box":
            return (f"box {tuple(numbers)}", to)
        return (f"centre {numbers[0]}x{numbers[0]}" if numbers else "centre square", to)

    def box(self, width: int, height: int, words: tuple[int, int] | None = None) -> tuple[float, float, float, float]:
        """The square that is kept, as left, top, right, bottom in pixels of the original.

        Args:
            width: of the original.
            height: of the original.
            words: two integers in [0, 2**32) that place a random crop; without them it lies in the middle.

        Raises:
            DataError: an image that does not hold the box.
        """
        kind, numbers = self._parsed()
        if kind == "box":
            left, top, right, bottom = numbers
            if right > width or bottom > height:
                raise DataError(f"{height} x {width} pixels do not hold the crop '{self.crop}'")
            return (left, top, right, bottom)
        side = numbers[0] if numbers else min(width, height)
        if side > min(width, height):
            raise DataError(f"{height} x {width} pixels do not hold the crop '{self.crop}'")
        if kind == "random" and words is not None:
            # in pixels of the resized image, as a crop after resizing would lie
            scale = side / self.size  # type: ignore[operator]
            slack = (round(width / scale) - self.size, round(height / scale) - self.size)  # type: ignore[operator]
            left_, top_ = (word * (free + 1) // 2**32 * scale for word, free in zip(words, slack, strict=True))
            left_, top_ = min(left_, width - side), min(top_, height - side)
            return (left_, top_, left_ + side, top_ + side)
        left, top = (width - side) // 2, (height - side) // 2
        return (left, top, left + side, top + side)

    def apply(self, image: Any, words: tuple[int, int] | None = None) -> np.ndarray:
        """A Pillow image as uint8 [H, W] or [H, W, C] of this geometry; `words` as in `box`."""
        from PIL import Image

        if self._parsed()[0] == "none":
            pixels = np.asarray(image, np.uint8)
            if self.size is None or pixels.shape[:2] == (self.size, self.size):
                return pixels
            whole = pixels if pixels.ndim == 3 else pixels[..., None]
            return resize(whole[None], self.size)[0].reshape(self.size, self.size, *pixels.shape[2:])
        assert self.size is not None
        box = self.box(image.width, image.height, words)
        if all(isinstance(edge, int) for edge in box):
            image = image.crop(box)  # the filter must not see beyond the square
            return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR), np.uint8)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box), np.uint8)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, W, C] to [N, size, size, C], uint8.

    Smaller images get a border of zeros, the image in the centre (an odd pixel goes below and to the right).
    Larger square images whose side is a multiple of ``size`` are averaged over blocks, rounded half up.

    Raises:
        DataError: a size that neither rule reaches.
    """
    _, height, width, _ = images.shape
    if max(height, width) <= size:
        below, right = size - height, size - width
        borders = ((0, 0), (below // 2, below - below // 2), (right // 2, right - right // 2), (0, 0))
        return np.pad(images, borders)
    if size < 1 or height != width or height % size:
        sizes = [str(s) for s in range(1, height) if height == width and height % s == 0]
        allowed = f"{', '.join(sizes)}, or " if sizes else ""
        raise DataError(
            f"image_size is {size} but the images are {height} x {width}; allowed are {allowed}"
            f"{max(height, width)} and more (padded)"
        )
    factor = height // size
    blocks = images.reshape(len(images), size, factor, size, factor, images.shape[3])
    sums = blocks.sum((2, 4), dtype=np.int64)
    return ((2 * sums + factor**2) // (2 * factor**2)).astype(np.uint8)
