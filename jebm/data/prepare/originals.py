"""The files in which authors publish their sets, example by example."""

import contextlib
import dataclasses
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from jebm.data.folders import find
from jebm.errors import DataError

__all__ = ["READERS", "Examples", "Original"]

Examples = Iterator[tuple[bytes, int]]  # an encoded image, and its label (or -1)


@dataclasses.dataclass(frozen=True)
class Original:
    """A set as its authors publish it.

    Attributes:
        image_shape: height, width, channels; None where images differ.
        num_classes: labels lie below it; 0 without labels.
        splits: by name; each call gives the examples anew.
    """

    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    splits: dict[str, Callable[[], Examples]]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
            pickle.UnpicklingError) as error:  # fmt: skip
        first = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"{path}: broken, or another file than expected ({type(error).__name__}: {first})") from error


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of a tar archive, in its order."""
    with _reading(path), tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file


def _checked(path: Path, name: str, content: bytes) -> bytes:
    """An image file, as it is, when its header is one's."""
    from PIL import Image

    try:
        Image.open(io.BytesIO(content)).verify()
    except Exception as error:
        raise DataError(f"{path}: {name} is not an image, or a broken one") from error
    return content


def _cifar(files: list[Path], label_bytes: int, num_classes: int, names: dict[str, str]) -> Original:
    """Records of ``label_bytes`` labels, of which the last counts, and 3 x 32 x 32 bytes."""

    def examples(prefix: str) -> Examples:
        found = 0
        for name, file in _members(files[0]):
            last = PurePosixPath(name).name
            if not (last.startswith(prefix) and last.endswith(".bin")):
                continue
            records = np.frombuffer(file.read(), np.uint8)
            if records.size == 0 or records.size % (label_bytes + 3072):
                raise DataError(f"{files[0]}: {name} has {records.size} bytes, which is no whole number of records")
            found += 1
            for record in records.reshape(-1, label_bytes + 3072):
                if record[label_bytes - 1] >= num_classes:
                    raise DataError(f"{files[0]}: {name} has a label of {record[label_bytes - 1]}")
                pixels = record[label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0)
                yield _png(np.ascontiguousarray(pixels)), int(record[label_bytes - 1])
        if not found:
            raise DataError(f"{files[0]}: holds no file {prefix}*.bin; another archive than expected")

    splits = {split: lambda prefix=prefix: examples(prefix) for split, prefix in names.items()}
    return Original((32, 32, 3), num_classes, splits)  # type: ignore[arg-type]


def _idx(files: list[Path]) -> Original:
    """Images and labels that train, images and labels that test, in the layout of MNIST."""

    def array(path: Path, num_axes: int) -> np.ndarray:
        with _reading(path), gzip.open(path) as file:
            content = file.read()
            magic, shape = content[:4], np.frombuffer(content[4 : 4 + 4 * num_axes], ">u4")
            values = np.frombuffer(content[4 + 4 * num_axes :], np.uint8)
            if magic != bytes((0, 0, 8, num_axes)) or values.size != shape.prod(dtype=np.int64):
                raise ValueError(f"{values.size} bytes of content for the shape {shape.tolist()}")
            return values.reshape(shape)

    def examples(images_path: Path, labels_path: Path) -> Examples:
        images, labels = array(images_path, 3), array(labels_path, 1)
        if len(images) != len(labels) or labels.max(initial=0) > 9:
            raise DataError(
                f"{labels_path}: {len(labels)} labels up to {labels.max(initial=0)} of {len(images)} images"
            )
        for image, label in zip(images, labels, strict=True):
            yield _png(image), int(label)

    return Original((28, 28, 1), 10, {"train": lambda: examples(*files[:2]), "test": lambda: examples(*files[2:])})


def _svhn(files: list[Path]) -> Original:
    def examples(path: Path) -> Examples:
        from scipy.io import loadmat

        with _reading(path):
            try:
                arrays = loadmat(path)
            except Exception as error:  # scipy raises many kinds
                raise ValueError(str(error)) from error
            images, labels = arrays["X"], arrays["y"].reshape(-1)
            if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
                raise ValueError(f"'X' is {images.dtype} {images.shape}")
        for i, label in enumerate(labels):
            yield _png(np.ascontiguousarray(images[..., i])), int(label) % 10  # they write 10 for 0

    return Original((32, 32, 3), 10, {"train": lambda: examples(files[0]), "test": lambda: examples(files[1])})


def _stl10(files: list[Path]) -> Original:
    def labels(name: str) -> list[int] | None:
        for member, file in _members(files[0]):
            if PurePosixPath(member).name == name:
                return [byte - 1 for byte in file.read()]
        return None

    def examples(kind: str) -> Examples:
        known = labels(f"{kind}_y.bin")
        for member, file in _members(files[0]):
            if PurePosixPath(member).name != f"{kind}_X.bin":
                continue
            index = 0
            while record := file.read(3 * 96 * 96):
                if len(record) != 3 * 96 * 96:
                    raise DataError(f"{files[0]}: {member} ends within image {index}")
                pixels = np.frombuffer(record, np.uint8).reshape(3, 96, 96).transpose(2, 1, 0)  # columns first
                yield _png(np.ascontiguousarray(pixels)), known[index] if known else -1
                index += 1
            return
        raise DataError(f"{files[0]}: holds no file {kind}_X.bin; another archive than expected")

    names = {"train": "train", "test": "test", "unlabelled": "unlabeled"}
    splits = {split: lambda kind=kind: examples(kind) for split, kind in names.items()}
    return Original((96, 96, 3), 10, splits)  # type: ignore[arg-type]


def _dtd(files: list[Path]) -> Original:
    """The first of the ten published partitions."""

    def examples(split: str) -> Examples:
        images: dict[str, bytes] = {}
        wanted: list[str] | None = None
        for name, file in _members(files[0]):
            parts = PurePosixPath(name).parts
            if name.endswith(f"labels/{split}1.txt"):
                wanted = file.read().decode().split()
            elif len(parts) > 2 and parts[-3] == "images" and name.endswith(".jpg") and not parts[-1].startswith("."):
                images["/".join(parts[-2:])] = file.read()
        if wanted is None:
            raise DataError(f"{files[0]}: holds no labels/{split}1.txt; another archive than expected")
        classes = sorted({name.split("/")[0] for name in images})
        for name in wanted:
            if name not in images:
                raise DataError(f"{files[0]}: {name} is listed in labels/{split}1.txt but is not there")
            yield _checked(files[0], name, images[name]), classes.index(name.split("/")[0])

    names = {"train": "train", "validation": "val", "test": "test"}
    splits = {split: lambda name=name: examples(name) for split, name in names.items()}
    return Original((None, None, 3), 47, splits)  # type: ignore[arg-type]


def _celeb_a(files: list[Path]) -> Original:
    images, partition = files

    def examples(number: str) -> Examples:
        with _reading(partition):
            rows = [line.split() for line in partition.read_text().splitlines() if line.strip()]
            chosen = [row[0] for row in rows if len(row) == 2 and row[1] == number]
        if not chosen:
            raise DataError(f"{partition}: no line ends in {number}; expected are lines such as '000001.jpg 0'")
        with contextlib.ExitStack() as stack, _reading(images):
            archive = None if images.is_dir() else stack.enter_context(zipfile.ZipFile(images))
            for name in chosen:
                content = archive.read(f"img_align_celeba/{name}") if archive else (images / name).read_bytes()
                yield _checked(images, name, content), -1

    names = {"train": "0", "validation": "1", "test": "2"}
    splits = {split: lambda number=number: examples(number) for split, number in names.items()}
    return Original((218, 178, 3), 0, splits)  # type: ignore[arg-type]


def _folders(files: list[Path], names: list[str], shape: tuple[int | None, int | None, int]) -> Original:
    def examples(root: Path) -> Examples:
        reader = find(root)
        for index, name in enumerate(reader.names):
            yield _checked(root, name, reader.read(index)), -1

    splits = {name: lambda root=root: examples(root) for name, root in zip(names, files, strict=True)}
    return Original(shape, 0, splits)  # type: ignore[arg-type]


def _tars(files: list[Path], shape: tuple[int | None, int | None, int]) -> Original:
    """Archives of images, or of archives of images."""

    def inner(path: Path, name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
        if not name.endswith(".tar"):
            yield name, content
            return
        with _reading(path), tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()

    def examples(path: Path) -> Examples:
        for outer, file in _members(path):
            for name, content in inner(path, outer, file.read()):
                yield _checked(path, name, content), -1

    splits = {name: lambda path=path: examples(path) for name, path in zip(("train", "validation"), files, strict=True)}
    return Original(shape, 0, splits)  # type: ignore[arg-type]


def _imagenet_batches(files: list[Path]) -> Original:
    def examples(path: Path) -> Examples:
        with _reading(path), zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".npz")):
                with np.load(io.BytesIO(archive.read(name)), allow_pickle=False) as arrays:
                    images, labels = arrays["data"], arrays["labels"]
                if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
                    raise ValueError(f"{name}: 'data' is {images.dtype} {images.shape}")
                for image, label in zip(images, labels, strict=True):
                    yield _png(np.ascontiguousarray(image.reshape(3, 32, 32).transpose(1, 2, 0))), int(label) - 1

    return Original((32, 32, 3), 1000, {"train": lambda: examples(files[0]), "validation": lambda: examples(files[1])})


READERS: dict[str, Callable[[list[Path]], Original]] = {
    "cifar10": lambda files: _cifar(files, 1, 10, {"train": "data_batch_", "test": "test_batch"}),
    "cifar100": lambda files: _cifar(files, 2, 100, {"train": "train", "test": "test"}),
    "mnist": _idx,
    "fashion_mnist": _idx,
    "kmnist": _idx,
    "svhn_cropped": _svhn,
    "stl10": _stl10,
    "dtd": _dtd,
    "celeb_a": _celeb_a,
    "celeb_a_hq/256": lambda files: _folders(files, ["train"], (256, 256, 3)),
    "lsun/church_outdoor": lambda files: _folders(files, ["train", "validation"], (None, None, 3)),
    "imagenet2012": lambda files: _tars(files, (None, None, 3)),
    "imagenet_resized/32x32": _imagenet_batches,
    "downsampled_imagenet/32x32": lambda files: _tars(files, (32, 32, 3)),
}
