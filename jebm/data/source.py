"""`Source`: a named set of images, split into train and test."""

import dataclasses
import hashlib

import numpy as np

from jebm.data.geometry import Geometry
from jebm.data.image_set import ImageSet, decoded
from jebm.data.loader import permutation
from jebm.errors import DataError

__all__ = ["Source", "fingerprint", "holdout_split", "with_validation"]


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
        validation: uint8 [V, H, W, C], images of the training split that are not trained on (`with_validation`); None
            where none were set aside.
        validation_labels: int32 [V], or None.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    num_classes: int | None
    fingerprint: str
    steps: tuple[str, ...] = ()
    validation: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.train.shape[1:]

    @property
    def for_tuning(self) -> np.ndarray:
        """Held-out images to choose settings by: validation images where there are some, else the test images."""
        return self.test if self.validation is None else self.validation


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
    source = of_arrays(name, decoded(train), decoded(test), train_labels, test_labels)
    return dataclasses.replace(source, steps=geometry.steps)


def of_arrays(
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


def holdout_split(rows: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Nine tenths and one tenth of ``rows`` in a fixed random order; at least one for each.

    Raises:
        DataError: fewer than two.
    """
    if len(rows) < 2:
        raise DataError(f"{where}: holds one image; to be split it must hold at least 2")
    order = rows[permutation(0, 0, len(rows))]
    num_test = max(1, len(rows) // 10)
    return order[:-num_test], order[-num_test:]


def with_validation(source: Source, share: float) -> Source:
    """The source with a share of its training images set aside, chosen by a fixed permutation; 0 changes nothing.

    Tuning looks at these, so that test images are looked at once.

    Args:
        source: the images.
        share: of the training images, in [0, 1); rounded, at least one of each remains.

    Raises:
        DataError: a single training image.

    Examples:
        >>> from jebm.data.source import with_validation
        >>> source = with_validation(jebm.data.load("digits"), 0.1)
        >>> len(source.train), len(source.validation), len(source.test)
        (1350, 150, 297)
    """
    if share == 0:
        return source
    n = len(source.train)
    if n < 2:
        raise DataError(f"{n} training image; a validation split needs at least 2")
    order = permutation(0, 0, n)
    size = min(max(1, round(share * n)), n - 1)
    rows = np.sort(order[size:]), np.sort(order[:size])
    train, validation = (_rows(source.train, chosen) for chosen in rows)
    labels = [None if source.train_labels is None else source.train_labels[chosen] for chosen in rows]
    return dataclasses.replace(
        source,
        train=train,
        validation=validation,
        train_labels=labels[0],
        validation_labels=labels[1],
        fingerprint=fingerprint(train, source.test, labels[0], source.test_labels, validation),
        steps=(*source.steps, f"{size} of {n} training images set aside for validation"),
    )


def _rows(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if isinstance(images, ImageSet):  # read when they are asked for
        return dataclasses.replace(images, indices=images.indices[rows])
    return images[rows]
