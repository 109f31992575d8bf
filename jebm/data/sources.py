"""Image sets by name: ``digits`` (bundled with scikit-learn), ``npz:PATH``, ``folder:PATH``, ``tfds:NAME[:SPLIT]``."""

import dataclasses
import difflib
import hashlib
from pathlib import Path

import numpy as np

from jebm import paths
from jebm.data.errors import DataError
from jebm.data.geometry import Geometry
from jebm.data.image_set import ImageSet, decoded
from jebm.data.loader import permutation

__all__ = ["KINDS", "Source", "check_name", "fingerprint", "load"]

KINDS = {"npz": "npz:PATH", "folder": "folder:PATH", "tfds": "tfds:NAME[:SPLIT]"}


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """An image set.

    Attributes:
        name: a short name for records and plots.
        train: uint8 [N, H, W, C]; of a large set an `ImageSet`, which reads as an array does.
        test: uint8 [M, H, W, C], held out.
        train_labels: int32 [N], or None.
        test_labels: int32 [M], or None.
        num_classes: labels lie in ``0..num_classes - 1``; None without labels.
        fingerprint: 16 hexadecimal digits over images and labels as they are here.
        steps: what was done to the images since they were read, in order.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    num_classes: int | None
    fingerprint: str
    steps: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.train.shape[1:]


def load(name: str, size: int | None = None, crop: str = "auto") -> Source:
    """The source called ``name``, both splits.

    * ``digits``: 1,797 handwritten digits, 8 x 8 x 1, ten classes. The grey levels 0..16 become
      ``floor(255 level / 16 + 1/2)``. The first 1,500 in a fixed random order train, the other 297 test.
    * ``npz:PATH``: a numpy archive, or a folder of them (shards, joined in the order of their names), with ``x_train``
      and ``x_test``, and perhaps ``y_train`` and ``y_test``;
      or with ``x``, and perhaps ``y``, whose last tenth in a fixed random order tests. Images are uint8,
      [N, H, W] or [N, H, W, C] with 1 or 3 channels; labels are integers from 0, an empty array means none.
    * ``folder:PATH``: image files, in folders of any depth; those below ``train`` and ``test`` where these two
      are all there is, else the last tenth in a fixed random order tests.
    * ``tfds:NAME[:SPLIT]``: a data set of TensorFlow Datasets, prepared in ArrayRecord form (`jebm data prepare`);
      ``SPLIT``, such as ``train[:90%]``, is what trains.

    Args:
        name: the source.
        size: the side of square images, for the last two kinds; None: as they are, or the set's own.
        crop: `jebm.data.geometry`; ``auto`` is the set's own for ``tfds:``, and ``none`` for the others.

    Raises:
        DataError: no such source, one that is missing, broken, or holds something else than these.
    """
    kind, argument = check_name(name)
    if kind in ("folder", "tfds"):
        from jebm.data import files, tfds

        reader = files.folder if kind == "folder" else tfds.tfds
        return reader(argument, size, crop)
    if crop not in ("auto", "none"):
        raise DataError(f"crop '{crop}' is for folder: and tfds: sources; '{name}' holds images of one size")
    return _digits() if kind == "digits" else _npz(argument)


def check_name(name: str) -> tuple[str, str]:
    """The kind of source and its argument, the path of a file or a folder with its ``~`` expanded.

    Raises:
        DataError: no such source, or a path that is not on this machine.
    """
    kind, colon, argument = name.partition(":")
    if kind in ("npz", "folder") and argument:
        try:
            return kind, str(paths.local(argument))
        except ValueError as error:
            raise DataError(f"{kind}:{error}") from None
    if (kind in KINDS and bool(argument)) or name == "digits":
        return kind, argument
    if name.endswith(".npz"):
        hint = f"; did you mean 'npz:{name}'?"
    else:
        near = difflib.get_close_matches(kind, ["digits", *KINDS], n=1)
        hint = f"; did you mean '{KINDS.get(near[0], near[0])}'?" if near else ""
    raise DataError(f"no data source '{name}'; there are digits, {', '.join(KINDS.values())}{hint}")


def fingerprint(*arrays: np.ndarray | None) -> str:
    """16 hexadecimal digits of the SHA-256 over the arrays' dtypes, shapes and bytes; None is allowed.

    Of an `ImageSet`, the names and sizes of its files, and what is done to them.
    """
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none")
        elif isinstance(array, ImageSet):
            digest.update(array.identity().encode())
        else:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def of_image_sets(
    name: str,
    train: ImageSet,
    test: ImageSet,
    geometry: Geometry,
    train_labels: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
) -> Source:
    """A source of encoded images; small splits are decoded here, once."""
    source = _source(name, decoded(train), decoded(test), train_labels, test_labels)
    return dataclasses.replace(source, steps=geometry.steps)


def _source(
    name: str,
    train: np.ndarray,
    test: np.ndarray,
    train_labels: np.ndarray | None,
    test_labels: np.ndarray | None,
) -> Source:
    num_classes = None
    if train_labels is not None and test_labels is not None:
        num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    digest = fingerprint(train, test, train_labels, test_labels)
    return Source(name, train, test, train_labels, test_labels, num_classes, digest)


def _split(name: str, images: np.ndarray, labels: np.ndarray | None, num_test: int, seed: int = 0) -> Source:
    order = permutation(seed, 0, len(images))
    train, test = order[: len(images) - num_test], order[len(images) - num_test :]
    if labels is None:
        return _source(name, images[train], images[test], None, None)
    return _source(name, images[train], images[test], labels[train], labels[test])


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = digits.images.astype(np.int64)
    images = ((levels * 255 + 8) // 16).astype(np.uint8)[..., None]
    return _split("digits", images, digits.target.astype(np.int32), num_test=297)


def _npz(argument: str) -> Source:
    path = Path(argument)
    arrays = _read_shards(path) if path.is_dir() else _read_npz(path)
    if "x_train" in arrays:
        if "x_test" not in arrays:
            raise DataError(f"{path}: holds 'x_train' but no 'x_test'; give both, or all images as 'x'")
        train, test = (_images(path, key, arrays[key]) for key in ("x_train", "x_test"))
        if train.shape[1:] != test.shape[1:]:
            shapes = f"{train.shape[1:]} and {test.shape[1:]}"
            raise DataError(
                f"{path}: images of 'x_train' and 'x_test' have the shapes {shapes}; make them equal"
            )
        labelled = [key for key in ("y_train", "y_test") if key in arrays]
        if len(labelled) == 1:
            raise DataError(f"{path}: holds '{labelled[0]}' alone; give 'y_train' and 'y_test', or neither")
        if not labelled:
            return _source(path.stem, train, test, None, None)
        labels = [
            _labels(path, key, arrays[key], len(x)) for key, x in (("y_train", train), ("y_test", test))
        ]
        return _source(path.stem, train, test, labels[0], labels[1])
    if "x" not in arrays:
        raise DataError(f"{path}: no image array; wanted are 'x_train' and 'x_test', or 'x'")
    images = _images(path, "x", arrays["x"])
    if len(images) < 2:
        raise DataError(f"{path}: 'x' holds one image; to be split it must hold at least 2")
    labels_or_none = _labels(path, "y", arrays["y"], len(images)) if "y" in arrays else None
    return _split(path.stem, images, labels_or_none, num_test=max(1, len(images) // 10))


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder of archives, each joined in the order of the files' names."""
    shards = {file: _read_npz(file) for file in sorted(path.glob("*.npz"))}
    if not shards:
        raise DataError(f"{path}: no .npz in this folder")
    names = {file: sorted(arrays) for file, arrays in shards.items()}
    first = next(iter(shards))
    for file, arrays in shards.items():
        if names[file] != names[first]:
            raise DataError(f"{file}: holds {names[file]}, but {first.name} holds {names[first]}; shards must be alike")
        for name, array in arrays.items():
            if array.ndim == 0:
                raise DataError(f"{file}: {name!r} is one number; the arrays of shards have an axis of images")
            if array.shape[1:] != shards[first][name].shape[1:] or array.dtype != shards[first][name].dtype:
                raise DataError(f"{file}: {name!r} is {array.dtype} {array.shape}, unlike that of {first.name}")
    return {name: np.concatenate([arrays[name] for arrays in shards.values()]) for name in names[first]}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; write it by np.savez(path, x_train=..., x_test=...), uint8 [N, H, W, C], or take "
            "another source: digits, folder:PATH, tfds:NAME ('jebm data info tfds:NAME' says what it needs)"
        )
    arrays, reading = {}, "the archive"
    try:
        with open(path, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(
                    f"{path}: a bare array, not an .npz archive; write it by np.savez(path, x=array)"
                )
            for name in {"x_train", "x_test", "y_train", "y_test", "x", "y"} & set(archive.files):
                reading = f"'{name}'"
                arrays[name] = archive[name]
    except DataError:
        raise
    except Exception as error:  # damaged archives fail in many ways: lengths, versions, encryption, codecs
        reason = type(error).__name__
        raise DataError(
            f"{path}: cannot read {reading}; not an .npz archive, or a broken one ({reason})"
        ) from error
    return {name: array for name, array in arrays.items() if name.startswith("x") or array.size}


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        problem = f"is {images.dtype}"
        if np.issubdtype(images.dtype, np.floating):
            bad = int(np.size(images) - np.isfinite(images).sum())
            problem += f" with {bad:,} values that are NaN or infinite" if bad else ""
        raise DataError(f"{path}: '{key}' {problem}; images must be uint8 in 0..255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{path}: '{key}' has shape {images.shape}; images are [N, H, W] or [N, H, W, C] with C = 1 or 3"
        )
    if images.size == 0:
        raise DataError(f"{path}: '{key}' is empty, shape {images.shape}")
    return images


def _labels(path: Path, key: str, labels: np.ndarray, num_images: int) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (num_images,):
        raise DataError(
            f"{path}: '{key}' is {labels.dtype} {labels.shape}; labels must be integers, one for each of the "
            f"{num_images} images"
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        raise DataError(f"{path}: '{key}' runs from {labels.min()} to {labels.max()}; labels count from 0")
    return labels.astype(np.int32)
