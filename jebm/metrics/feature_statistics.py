"""Statistics of image sets in a feature space: in one pass of bounded memory, and kept where they take long."""

import hashlib
import json
import zipfile
from typing import NamedTuple

import numpy as np

from jebm.data import permutation
from jebm.data.source import fingerprint
from jebm.errors import DataError
from jebm.files import cache_directory, write_arrays
from jebm.metrics.features import Features
from jebm.metrics.frechet import Statistics, merge, statistics

__all__ = ["MOST_KEPT", "FeatureSet", "feature_set"]

MOST_KEPT = 10_000  # features that stay in memory: 80 MB of Inception's
CHUNK = 500
NUM_PARTS = 4  # quarters, for the regression on 1/n


class FeatureSet(NamedTuple):
    """An image set, seen through a feature space.

    Attributes:
        parts: statistics of its four consecutive quarters.
        kept: features of some of its images, at most `MOST_KEPT` by default [n, d], float32, in a random order that is
            drawn once for all sets of that size: the first m of them are a random m, however the images are ordered.
    """

    parts: tuple[Statistics, ...]
    kept: np.ndarray

    @property
    def statistics(self) -> Statistics:
        """Of all images."""
        return merge(self.parts)

    @property
    def sha256(self) -> str:
        """Of the mean and the covariance, for the record."""
        whole = self.statistics
        return hashlib.sha256(whole.mean.tobytes() + whole.covariance.tobytes()).hexdigest()


def feature_set(
    images: np.ndarray, features: Features, *, most_kept: int = MOST_KEPT, cache: bool = False
) -> FeatureSet:
    """The features of uint8 images [N, H, W, C], in chunks: memory is [d, d] and ``most_kept`` features for any N.

    Args:
        images: at least 8.
        features: the space.
        most_kept: how many features to keep.
        cache: look into the cache first and write into it. The file's name is a digest of the images and of the
            space's declaration; an unreadable cache file is recomputed.

    Raises:
        ValueError: fewer than 8 images, or features that are NaN or infinite.
    """
    if len(images) < 2 * NUM_PARTS:
        raise DataError(f"{len(images)} images; statistics need at least {2 * NUM_PARTS}")
    name = json.dumps([fingerprint(images), features.declaration, f"{most_kept} by permutation"], sort_keys=True)
    path = cache_directory() / "statistics" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
    if cache and path.is_file():
        try:
            # numpy leaves a damaged archive open
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                parts = zip(file["n"], file["mean"], file["covariance"], strict=True)
                return FeatureSet(tuple(Statistics(int(n), m, c) for n, m, c in parts), file["kept"])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            pass  # a damaged file is written again
    result = _measure(images, features, most_kept)
    if cache:
        fields = {field: np.array([getattr(part, field) for part in result.parts]) for field in Statistics._fields}
        write_arrays(path, {**fields, "kept": result.kept})
    return result


def _measure(images: np.ndarray, features: Features, most_kept: int) -> FeatureSet:
    # by a permutation: files are often in the order of their classes
    chosen = permutation(0, 0, len(images))[:most_kept]
    place = np.full(len(images), -1)
    place[chosen] = np.arange(len(chosen))
    parts, kept = [], None
    for quarter in np.array_split(np.arange(len(images)), NUM_PARTS):
        chunks: list[Statistics] = []
        for rows in np.array_split(quarter, max(1, len(quarter) // CHUNK)):
            values = features.function(images[rows[0] : rows[-1] + 1])
            chunks = [merge([*chunks, statistics(values)])]
            kept = np.empty((len(chosen), values.shape[1]), values.dtype) if kept is None else kept
            wanted = place[rows] >= 0
            kept[place[rows[wanted]]] = values[wanted]
        parts += chunks
    assert kept is not None
    return FeatureSet(tuple(parts), kept)
