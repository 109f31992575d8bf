"""Distances between sets of features that look at the samples themselves: kernel, precision, recall, neighbours."""

from typing import NamedTuple

import numpy as np
import scipy.spatial.distance

from jebm.errors import DataError

__all__ = [
    "KernelDistance", "classifier_score", "duplicate_rate", "duplicate_threshold", "energy_distance", "kernel_distance",
    "nearest_distances", "precision_recall",
]  # fmt: skip

BLOCK = 1000  # rows of a distance matrix at once
DUPLICATES = 1.0  # percent of real images that count as duplicates


class KernelDistance(NamedTuple):
    """An estimate and its standard error."""

    value: float
    standard_error: float
    num_blocks: int
    block_size: int


def kernel_distance(a: np.ndarray, b: np.ndarray, *, block_size: int = 1000, seed: int = 0) -> KernelDistance:
    """The squared maximum mean discrepancy under ``k(x, y) = (x · y / d + 1)³`` (KID, Bińkowski et al., 1801.01401).

    Unbiased: its mean is 0 for equal laws, and it may be negative. The mean over disjoint blocks, as many as fit into
    the smaller set and at least ten (of fewer features then), in an order drawn once; the standard error is that of
    the mean of these blocks.

    Args:
        a: [n, d].
        b: [m, d].
        block_size: features of each set in a block, at most.
        seed: of the order.

    Raises:
        ValueError: sets of different dimension, or of fewer than 20 features.
    """
    _check(a, b)
    smaller = min(len(a), len(b))
    if smaller < 20:
        raise DataError(f"sets of {len(a)} and {len(b)} features: ten blocks of two need 20 each")
    size = min(block_size, smaller // 10)
    num_blocks = smaller // size
    random = np.random.default_rng(seed)
    rows = [random.permutation(len(x))[: num_blocks * size].reshape(num_blocks, size) for x in (a, b)]
    values = [
        _discrepancy(np.asarray(a[i], np.float64), np.asarray(b[j], np.float64)) for i, j in zip(*rows, strict=True)
    ]
    error = float(np.std(values, ddof=1) / np.sqrt(num_blocks))
    return KernelDistance(float(np.mean(values)), error, num_blocks, size)


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    n = len(x)
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y)))
    return float(within - 2 * kernel(x, y).mean())


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """``2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖``, 0 for equal laws alone (Székely and Rizzo, JSPI 143, 2013).

    Unbiased: its mean is 0 for equal laws, and it may be negative.

    Args:
        a: [n, d].
        b: [m, d].

    Raises:
        ValueError: sets of different dimension, or of fewer than 2.
    """
    _check(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    within = [_sum_of_distances(x, x) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return 2 * _sum_of_distances(a, b) / (len(a) * len(b)) - sum(within)


def _sum_of_distances(a: np.ndarray, b: np.ndarray) -> float:
    blocks = (scipy.spatial.distance.cdist(a[i : i + BLOCK], b).sum() for i in range(0, len(a), BLOCK))
    return float(sum(blocks))


def precision_recall(real: np.ndarray, generated: np.ndarray, *, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

    A set's manifold is the union of balls around its features, each as wide as the distance to the ``neighbours``-th
    nearest other feature of the set. Precision is the share of generated features on the manifold of the real ones,
    recall the converse. Both fall with fewer features: compare at equal numbers.

    Args:
        real: [n, d].
        generated: [m, d].
        neighbours: k.

    Raises:
        ValueError: sets of different dimension, or of no more than ``neighbours`` features.

    Examples:
        >>> from jebm.metrics.kernel import precision_recall
        >>> real = np.random.default_rng(0).normal(size=(100, 2))
        >>> precision_recall(real, real[:50] + 100.0)
        (0.0, 0.0)
    """
    _check(real, generated)
    if min(len(real), len(generated)) <= neighbours:
        sizes = f"{len(real)} and {len(generated)}"
        raise DataError(f"sets of {sizes} features have no {neighbours}-th neighbours; give more")
    return _share_inside(real, generated, neighbours), _share_inside(generated, real, neighbours)


def _share_inside(centres: np.ndarray, points: np.ndarray, neighbours: int) -> float:
    origin = np.asarray(centres, np.float64).mean(0)
    centres, points = centres - origin, points - origin  # smaller numbers, smaller rounding
    inside = np.zeros(len(points), bool)
    for start in range(0, len(centres), BLOCK):
        rows = centres[start : start + BLOCK]
        own = _squared_distances(rows, centres)
        own[np.arange(len(rows)), np.arange(start, start + len(rows))] = 0.0
        radii = np.partition(own, neighbours, axis=1)[:, neighbours]  # the 0-th is the centre itself
        inside |= (_squared_distances(rows, points) <= radii[:, None]).any(0)
    return float(inside.mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)


def nearest_distances(points: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """The Euclidean distance of each point to its nearest neighbour, float64 [n].

    Args:
        points: [n, ...], of any number type; rows are flattened.
        others: [m, ...], where neighbours are looked for, in blocks; None: among the other points.

    Raises:
        ValueError: no neighbours.

    Examples:
        >>> from jebm.metrics.kernel import nearest_distances
        >>> nearest_distances(np.array([[0.0], [3.0], [4.0]]))
        array([3., 1., 1.])
    """
    own = others is None
    neighbours = points if others is None else others
    if len(neighbours) < 1 + own:
        raise DataError(f"{len(neighbours)} points have no neighbours; give more")
    points = np.asarray(points, np.float64).reshape(len(points), -1)
    best = np.full(len(points), np.inf)
    for start in range(0, len(neighbours), BLOCK):
        block = np.asarray(neighbours[start : start + BLOCK], np.float64).reshape(-1, points.shape[1])
        squared = _squared_distances(points, block)
        if own:
            squared[np.arange(start, start + len(block)), np.arange(len(block))] = np.inf
        best = np.minimum(best, squared.min(1))
    best[best < 1e-12 * np.square(points).sum(1)] = 0.0  # rounding: they are equal
    return np.sqrt(best)


def duplicate_threshold(real: np.ndarray) -> float:
    """The distance below which two features are duplicates: 1 % of real images have a neighbour as near.

    It is the first percentile of the distances of ``real`` [n, d] to their nearest neighbours, and falls with n: what
    is compared with it needs as many features.
    """
    return float(np.percentile(nearest_distances(real), DUPLICATES))


def duplicate_rate(features: np.ndarray, threshold: float) -> float:
    """The share of features [n, d] whose nearest neighbour among them is no farther than `duplicate_threshold`.

    1 % of as many independent real images, more of a model that makes some images again and again, 1 of repetitions.
    """
    return float((nearest_distances(features) <= threshold).mean())


def classifier_score(logits: np.ndarray, *, num_splits: int = 10) -> tuple[float, float]:
    """``exp E KL(p(y|x) ‖ p(y))``, mean and standard deviation over consecutive splits (arXiv 1606.03498).

    With the logits of the Inception network of 2015 it is the Inception score; with another classifier's it is a
    score of that classifier, between 1 and its number of classes.

    Args:
        logits: [n, classes].
        num_splits: how many parts.

    Raises:
        ValueError: fewer logits than splits.
    """
    if len(logits) < num_splits:
        raise ValueError(f"{len(logits)} images in {num_splits} splits; give at least one each")
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, num_splits):
        p = np.exp(part)
        marginal = np.log(np.maximum(p.mean(0), np.finfo(float).tiny))
        scores.append(np.exp((p * (part - marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features have shapes {a.shape} and {b.shape}; wanted are [n, d] and [m, d], n and m >= 2")
