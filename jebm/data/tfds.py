"""``tfds:NAME[:SPLIT]``: sets of TensorFlow Datasets, prepared in ArrayRecord form and read without TensorFlow."""

import dataclasses
import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jebm import paths
from jebm.data.geometry import Geometry
from jebm.data.image_set import ImageSet, decode_file
from jebm.data.prepare.catalogue import CATALOGUE, Entry
from jebm.data.source import Source, holdout_split, of_image_sets
from jebm.errors import DataError

__all__ = ["TfdsReader", "data_directory", "prepared", "tfds"]


def data_directory() -> Path:
    """``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
        DataError: no such home, or no local path.
    """
    try:
        return paths.local(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    except ValueError as error:
        raise DataError(f"{error} (TFDS_DATA_DIR names the folder of prepared sets)") from None


def prepared(name: str) -> Path | None:
    """The folder of the newest prepared version of the set ``name``, such as ``lsun/church_outdoor``; None if none.

    Raises:
        DataError: a name that is none of TensorFlow Datasets.
    """
    if not re.fullmatch(r"\w+(/[\w.-]+)?", name):
        raise DataError(f"'{name}' is no name of a data set; names look like 'cifar10' or 'lsun/church_outdoor'")
    versions = [
        (tuple(int(part) for part in path.parent.name.split(".")), path.parent)
        for path in data_directory().joinpath(name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return max(versions)[1] if versions else None


@dataclasses.dataclass(frozen=True)
class TfdsReader:
    """The records of a split."""

    directory: Path
    split: str
    image_key: str

    @functools.cached_property
    def records(self) -> Any:
        """The random-access source, opened when it is first read."""
        import tensorflow_datasets

        with _errors(self.directory, self.split):
            builder = tensorflow_datasets.builder_from_directory(str(self.directory))
            skip = {self.image_key: tensorflow_datasets.decode.SkipDecoding()}
            return builder.as_data_source(self.split, decoders=skip)

    def __getstate__(self) -> dict[str, Any]:  # files are opened again in a worker process
        return {key: value for key, value in self.__dict__.items() if key != "records"}

    def __len__(self) -> int:
        return len(self.records)

    def example(self, index: int) -> dict[str, Any]:
        """Record ``index``, its image as it is stored."""
        with _errors(self.directory, self.where(index)):
            return self.records[index]

    def read(self, index: int) -> bytes | np.ndarray:
        """The image of record ``index``, as it is stored."""
        return self.example(index)[self.image_key]

    def where(self, index: int) -> str:
        """Set, split and number."""
        return f"{self.directory}, record {index} of '{self.split}'"

    def identity(self) -> str:
        """Of the description that was written with the set."""
        info = (self.directory / "dataset_info.json").read_bytes()
        return f"{hashlib.sha256(info).hexdigest()} {self.split}"


class _errors:
    """Errors of TFDS on broken files, in one line."""

    def __init__(self, directory: Path, what: str) -> None:
        self.directory, self.what = directory, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, NotImplementedError):
            raise DataError(
                f"{self.directory}: not in ArrayRecord form; prepare it in another TFDS_DATA_DIR by 'jebm data prepare'"
            ) from error
        if isinstance(error, Exception) and not isinstance(error, DataError):
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise DataError(f"{self.directory}: cannot read {self.what} ({type(error).__name__}: {first})") from error


def tfds(argument: str, size: int | None = None, crop: str = "auto") -> Source:
    """The set ``NAME[:SPLIT]``; what is held out is the set's own test split, else the last tenth of ``SPLIT``.

    Raises:
        DataError: a set that is not prepared, has no such split or no images, or broken files.
    """
    name, _, split = argument.partition(":")
    directory = prepared(name)
    if directory is None:
        raise DataError(
            f"{name} is not prepared in {data_directory()}: run 'jebm data prepare tfds:{name}' "
            f"('jebm data info tfds:{name}' says what it needs)"
        )
    entry = CATALOGUE.get(name, Entry())
    image_key, label_key, shape, splits = describe(directory)
    if split and re.split(r"[\[+]", split)[0] not in splits:
        raise DataError(f"{directory}: no split '{split}'; there are {', '.join(splits)}")
    train_split = split or (entry.train if _has(entry.train, splits) else splits[0])
    used = {re.split(r"\[", part)[0] for part in train_split.split("+")}
    test_split = next((s for s in (entry.test, "test", "validation") if s in splits and s not in used), None)
    geometry = _geometry(entry, size, crop, shape)
    train_reader = TfdsReader(directory, train_split, image_key)
    test_reader = TfdsReader(directory, test_split, image_key) if test_split else train_reader
    rows = np.arange(len(train_reader)), np.arange(len(test_reader))
    if not test_split:
        rows = holdout_split(rows[0], str(directory))
    channels = shape[2] or 3
    if geometry.size is not None:
        image_shape = (geometry.size, geometry.size, channels)
    else:  # the first record's; every other one is checked when it is read
        first = decode_file(train_reader.read(0), train_reader.where(0), geometry, channels)
        image_shape = (first.shape[0], first.shape[1], channels)
    train, test = (
        ImageSet(reader, geometry, image_shape, chosen)
        for reader, chosen in zip((train_reader, test_reader), rows, strict=True)
    )
    labels: list[np.ndarray | None] = [None, None]
    if label_key and entry.labelled and len(train) + len(test) <= MOST_LABELS:
        labels = [_labels(part, label_key) for part in (train, test)]
    if any(part is not None and part.min(initial=0) < 0 for part in labels):
        labels = [None, None]  # some images have none, as those of STL-10's third split
    return of_image_sets(name.replace("/", "_"), train, test, geometry, *labels)


MOST_LABELS = 100_000  # each takes the reading of a record


def _labels(images: ImageSet, key: str) -> np.ndarray:
    reader: Any = images.reader
    return np.array([reader.example(int(index))[key] for index in images.indices], np.int32)


def _has(split: str, splits: list[str]) -> bool:
    return all(part in splits for part in split.split("+"))


def _geometry(entry: Entry, size: int | None, crop: str, shape: tuple[int | None, ...]) -> Geometry:
    if shape[:2] == (size, size) and "none" in (crop, entry.crop if crop == "auto" else crop):
        return Geometry()
    if crop != "auto":
        return Geometry(crop, size)
    if entry.crop != "auto":
        return Geometry(entry.crop, size if size is not None or entry.crop == "none" else entry.size)
    fixed = None not in shape[:2]
    return Geometry("none", size) if fixed else Geometry("centre", size or 64)


def describe(directory: Path) -> tuple[str, str | None, tuple[int | None, ...], list[str]]:
    """The keys of the image and of the label (or None), the image's shape, and the splits.

    Raises:
        DataError: no image in it, or a broken description.
    """
    import tensorflow_datasets

    with _errors(directory, "its description"):
        info = tensorflow_datasets.builder_from_directory(str(directory)).info
        images = [key for key, f in info.features.items() if isinstance(f, tensorflow_datasets.features.Image)]
        labels = [key for key, f in info.features.items() if isinstance(f, tensorflow_datasets.features.ClassLabel)]
        if not images:
            raise DataError(f"{directory}: holds no images (its features: {', '.join(info.features)})")
        image = "image" if "image" in images else images[0]
        label = "label" if "label" in labels else None
        return image, label, info.features[image].shape, list(info.splits)
