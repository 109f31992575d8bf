"""`Source`: a named set of images, split into train and test."""

import dataclasses
import hashlib

import numpy as np

from jebm.data.geometry import Geometry
from jebm.data.image_set import ImageSet, decoded
from jebm.data.loader import permutation
from jebm.errors import DataError

__all__ = ["Source", "fingerprint", "holdout_split"]


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
