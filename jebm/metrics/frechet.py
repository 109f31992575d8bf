"""The Fréchet distance between two sets of features, in float64 on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jebm.errors import DataError

__all__ = [
    "Statistics", "extrapolated", "frechet_distance", "merge", "square_root", "standard_error", "statistics",
]  # fmt: skip


class Statistics(NamedTuple):
    """Moments of ``n`` features, float64: ``mean`` [d] and ``covariance`` [d, d] (sums divided by n - 1)."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: np.ndarray) -> Statistics:
    """The moments of features [n, d], summed in float64.

    Raises:
        ValueError: not a matrix, fewer than two rows, or an entry that is NaN or infinite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise ValueError(f"features have shape {features.shape}; wanted is [n, d] with n of 2 or more")
    _finite("features", features)
    mean = features.mean(0)
    centred = features - mean
    return Statistics(len(features), mean, centred.T @ centred / (len(features) - 1))


def merge(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all features together, from those of parts of them: a stream needs no more memory than [d, d].

    With n = Σ n_i and m = Σ n_i m_i / n, ``(n - 1) S = Σ (n_i - 1) S_i + n_i (m_i - m)(m_i - m)ᵀ``.

    Raises:
        ValueError: no parts.
    """
    if not parts:
        raise ValueError("no statistics to merge; give at least one")
    n = sum(part.n for part in parts)
    mean = sum(part.n * part.mean for part in parts) / n
    shifts = [part.mean - mean for part in parts]
    scatter = sum(
        (part.n - 1) * part.covariance + part.n * np.outer(shift, shift)
        for part, shift in zip(parts, shifts, strict=True)
    )
    return Statistics(n, np.asarray(mean), np.asarray(scatter) / (n - 1))


def extrapolated(parts: Sequence[Statistics], reference: Statistics, root: np.ndarray | None = None) -> float:
    """The Fréchet distance at infinitely many samples, by regression on 1/n (Chong and Forsyth, arXiv 1911.07023).

    The bias is linear in 1/n to first order. The distance is taken at the size of one part, of two merged parts, of
    four, ..., of all, each the mean over disjoint groups; the line through these points by least squares is read at
    1/n = 0. The bias from the reference's own size stays, and the result may be a little below 0.

    Args:
        parts: statistics of independent samples, equally many each, or one more; 2, 4, 8, ... of them.
        reference: against which.
        root: `square_root` of the reference, if it is known.

    Raises:
        ValueError: parts that are not a power of two in number, or of unequal size.
    """
    sizes = [part.n for part in parts]
    if len(parts) < 2 or len(parts) & (len(parts) - 1) or max(sizes) > min(sizes) + 1:
        raise ValueError(f"parts have the sizes {sizes}; wanted are 2, 4, 8, ... of equal size")
    root = square_root(reference) if root is None else root
    inverses, distances, groups = [], [], list(parts)
    while True:
        inverses.append(np.mean([1 / group.n for group in groups]))
        distances.append(np.mean([frechet_distance(group, reference, root) for group in groups]))
        if len(groups) == 1:
            break
        groups = [merge(groups[i : i + 2]) for i in range(0, len(groups), 2)]
    return float(np.polyfit(inverses, distances, 1)[1])


def standard_error(parts: Sequence[Statistics], reference: Statistics, root: np.ndarray | None = None) -> float:
    """The standard error of the Fréchet distance of all parts, from leaving out each in turn (jackknife of groups).

    It is of the samples alone: the reference is taken as it is, and the bias of n is not in it. Four parts know it to
    some 40 %.

    Args:
        parts: statistics of independent samples, about equally many each; two or more.
        reference: against which.
        root: `square_root` of the reference, if it is known.

    Raises:
        ValueError: fewer than two parts.
    """
    if len(parts) < 2:
        raise ValueError(f"{len(parts)} part; a standard error needs two or more")
    root = square_root(reference) if root is None else root
    left = [frechet_distance(merge([*parts[:i], *parts[i + 1 :]]), reference, root) for i in range(len(parts))]
    return float(np.sqrt((len(parts) - 1) * np.var(left)))


def frechet_distance(a: Statistics, b: Statistics, root: np.ndarray | None = None) -> float:
    """``|m_a - m_b|² + tr S_a + tr S_b - 2 tr (S_b^½ S_a S_b^½)^½`` (Heusel et al., arXiv 1706.08500, eq. 6).

    The squared 2-Wasserstein distance of two Gaussians. It is biased: two samples of n from the same N(0, I)
    in d dimensions are ``(2 d + d (d + 1) / 2) / n`` apart, to first order: compare only at equal n. What
    rounding puts below 0 is 0.

    Args:
        a: one set's.
        b: the other's; the reference, where many are compared with one.
        root: `square_root` of b, if it is known: half of the time.

    Raises:
        ValueError: statistics of different dimension, NaN or infinite, or a covariance that is not symmetric
            and positive semi-definite up to rounding.

    Examples:
        >>> from jebm.metrics.frechet import frechet_distance, statistics
        >>> a = statistics(np.array([[0.0], [2.0]]))
        >>> b = statistics(np.array([[3.0], [5.0]]))
        >>> round(frechet_distance(a, b), 6)  # means 1 and 4, equal variances
        9.0
    """
    if a.mean.shape != b.mean.shape or a.covariance.shape != b.covariance.shape:
        raise ValueError(f"statistics of {a.mean.shape[0]} and of {b.mean.shape[0]} features cannot be compared")
    root = square_root(b) if root is None else root
    first = _symmetric("the first covariance", a.covariance)
    for name, mean in (("the first mean", a.mean), ("the second mean", b.mean)):
        _finite(name, mean)
    product = root @ first @ root
    # similar to S_a S_b but symmetric: eigenvalues are real, and none is below 0 unless one of S_a is
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    _non_negative("the first covariance, seen from the second,", eigenvalues, product)
    overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(float(distance), 0.0)


def square_root(reference: Statistics) -> np.ndarray:
    """The root of the covariance, symmetric, float64 [d, d], for many `frechet_distance`s from one reference.

    Raises:
        ValueError: a covariance that is NaN or infinite, or not symmetric and positive semi-definite up to rounding.
    """
    name = "the second covariance"
    eigenvalues, vectors = np.linalg.eigh(_symmetric(name, reference.covariance))
    _non_negative(name, eigenvalues, reference.covariance)
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T


def _symmetric(name: str, covariance: np.ndarray) -> np.ndarray:
    _finite(name, covariance)
    if np.abs(covariance - covariance.T).max() > _tolerance(covariance):
        raise ValueError(f"{name} is not symmetric; use jebm.metrics.frechet.statistics")
    return (covariance + covariance.T) / 2


def _non_negative(name: str, eigenvalues: np.ndarray, covariance: np.ndarray) -> None:
    if eigenvalues[0] < -len(eigenvalues) * _tolerance(covariance):
        raise ValueError(f"{name} has the eigenvalue {eigenvalues[0]:.3g}; a covariance has none below 0")


def _tolerance(covariance: np.ndarray) -> float:
    return 1e-8 * max(np.abs(covariance).max(), np.finfo(float).tiny)


def _finite(name: str, array: np.ndarray) -> None:
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise DataError(f"{name}: {bad:,} of {array.size:,} numbers are NaN or infinite; there is no distance")
