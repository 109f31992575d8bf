"""``folder:PATH``: image files."""

import dataclasses
import hashlib
from pathlib import PurePosixPath

import numpy as np

from jebm import files, paths
from jebm.data.geometry import Geometry
from jebm.data.image_set import IMAGE_MODES, ImageSet
from jebm.data.source import Source, holdout_split, of_image_sets
from jebm.errors import DataError

__all__ = ["FileReader", "folder"]


@dataclasses.dataclass(frozen=True)
class FileReader:
    """One image in each file."""

    root: paths.Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The file's content."""
        try:
            return (self.root / self.names[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(index)}: {error.strerror or error}") from None

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.names[index])

    def identity(self) -> str:
        """Of names and sizes."""
        return hashlib.sha256(repr((self.names, self.sizes)).encode()).hexdigest()


def folder(root: paths.Path, size: int | None = None, crop: str = "auto") -> Source:
    """The images below a folder; hidden files are passed over, and every other file must be an image.

    Raises:
        DataError: no folder, an empty one, a file that is no image, or images of several sizes without a crop.
    """
    reader = find(root)
    geometry = Geometry("none" if crop == "auto" else crop, size)
    height, width, channels = _looked_at(reader, geometry)
    if geometry.crop == "none" and size in (None, height) and size in (None, width):
        geometry = Geometry()
    shape = (height, width, channels) if geometry.size is None else (geometry.size, geometry.size, channels)
    tops = np.array([PurePosixPath(name).parts[0] for name in reader.names])
    if set(tops) == {"train", "test"}:
        train, test = np.flatnonzero(tops == "train"), np.flatnonzero(tops == "test")
    else:
        train, test = holdout_split(np.arange(len(reader)), str(root))
    train_images, test_images = (ImageSet(reader, geometry, shape, rows) for rows in (train, test))
    return of_image_sets((root if paths.is_remote(root) else root.resolve()).name, train_images, test_images, geometry)


def find(root: paths.Path) -> FileReader:
    """The files below ``root``, sorted by name.

    Raises:
        DataError: no folder, or an empty one.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    relative = sorted(path.relative_to(root) for path in files.below(root))
    names = tuple(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise DataError(f"{root}: the folder is empty; it must hold image files")
    return FileReader(root, names, tuple(files.size(root / name) for name in names))


def _looked_at(reader: FileReader, geometry: Geometry) -> tuple[int, int, int]:
    """Height and width of the first image, channels of all; from the header of each file, which must suit."""
    from PIL import Image

    channels, first = 1, (0, 0)
    for index in range(len(reader)):
        where = reader.where(index)
        try:
            with (reader.root / reader.names[index]).open("rb") as file, Image.open(file) as image:
                width, height, mode = *image.size, image.mode
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: not an image, or a broken one; a source holds images alone") from error
        if mode not in IMAGE_MODES:
            raise DataError(f"{where}: pixels of mode {mode}; images must have 8 bits per channel")
        channels = max(channels, IMAGE_MODES[mode])
        first = first if index else (width, height)
        if geometry.crop == "none":
            if (width, height) != first:
                raise DataError(
                    f"{where}: {height} x {width} pixels, {reader.where(0)} has {first[1]} x {first[0]}: "
                    "declare a crop, such as data.crop=centre"
                )
        else:
            try:
                geometry.box(width, height)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
    return (first[1], first[0], channels)
