"""The Fréchet distance between two sets of features, in float64 on the host."""

from typing import NamedTuple

import numpy as np

__all__ = ["Statistics", "frechet_distance", "statistics"]


class Statistics(NamedTuple):
    """Moments of ``n`` features, float64: ``mean`` [d] and ``covariance`` [d, d] (sums divided by n - 1)."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: np.ndarray) -> Statistics:
    """The moments of features [n, d], whatever their floating dtype summed in float64.

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


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """``|m_a - m_b|² + tr S_a + tr S_b - 2 tr (S_a^½ S_b S_a^½)^½`` (Heusel et al., arXiv 1706.08500, eq. 6).

    The squared 2-Wasserstein distance of two Gaussians. It is biased: two samples of n from the same N(0, I)
    in d dimensions are ``(2 d + d (d + 1) / 2) / n`` apart, to first order: compare only at equal n. What
    rounding puts below 0 is 0.

    Raises:
        ValueError: statistics of different dimension, NaN or infinite, or a covariance that is not symmetric
            and positive semi-definite up to rounding.
    """
    if a.mean.shape != b.mean.shape or a.covariance.shape != b.covariance.shape:
        raise ValueError(
            f"statistics of {a.mean.shape[0]} and of {b.mean.shape[0]} features cannot be compared"
        )
    root = _square_root("the first covariance", a.covariance)
    _square_root("the second covariance", b.covariance)
    for name, mean in (("the first mean", a.mean), ("the second mean", b.mean)):
        _finite(name, mean)
    product = root @ b.covariance @ root
    # similar to S_a S_b but symmetric: eigenvalues are real, and 0 or more up to rounding
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(float(distance), 0.0)


def _square_root(name: str, covariance: np.ndarray) -> np.ndarray:
    _finite(name, covariance)
    tolerance = 1e-8 * max(np.abs(covariance).max(), np.finfo(float).tiny)
    if np.abs(covariance - covariance.T).max() > tolerance:
        raise ValueError(f"{name} is not symmetric; use jebm.evaluation.frechet.statistics")
    eigenvalues, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if eigenvalues[0] < -len(eigenvalues) * tolerance:
        raise ValueError(f"{name} has the eigenvalue {eigenvalues[0]:.3g}; a covariance has none below 0")
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T


def _finite(name: str, array: np.ndarray) -> None:
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise ValueError(
            f"{name}: {bad:,} of {array.size:,} numbers are NaN or infinite; there is no distance"
        )
