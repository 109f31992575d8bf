"""Exact laws of linear Gaussian chains, in float64, and tests of samples against them.

Every test returns a `Verdict` with its p-value and n, so that the same function judges the true kernel
(`accept`) and a kernel with a planted fault (`reject`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

ACCEPT, REJECT = 1e-4, 1e-6


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A p-value (two-sided, Bonferroni over the statistics it joins), the number of samples, and words."""

    p_value: float
    n: int
    details: str


def accept(verdict: Verdict) -> None:
    """Fails unless the samples agree with the law."""
    assert verdict.p_value > ACCEPT, f"p = {verdict.p_value:.3g} with n = {verdict.n}: {verdict.details}"


def reject(verdict: Verdict) -> None:
    """Fails unless the samples contradict the law: the test has the power to see this fault."""
    assert verdict.p_value < REJECT, f"p = {verdict.p_value:.3g} with n = {verdict.n}: {verdict.details}"


def gaussian_test(samples: Any, mean: np.ndarray, covariance: np.ndarray) -> Verdict:
    """Independent rows against N(mean, covariance): χ² of the whitened mean and second moments."""
    samples = np.asarray(samples, np.float64)
    n, d = samples.shape
    if not np.all(np.isfinite(samples)):
        return Verdict(0.0, n, "samples are not finite")
    white = np.linalg.solve(np.linalg.cholesky(covariance), (samples - mean).T)
    off = white @ white.T / n - np.eye(d)
    chi_mean = n * np.sum(white.mean(1) ** 2)
    chi_moments = n * (0.5 * np.sum(np.diag(off) ** 2) + np.sum(np.triu(off, 1) ** 2))
    p_mean = scipy.stats.chi2.sf(chi_mean, d)
    p_moments = scipy.stats.chi2.sf(chi_moments, d * (d + 1) // 2)
    details = (
        f"mean p = {p_mean:.3g}, second moments p = {p_moments:.3g}; mean {samples.mean(0)} against {mean}, "
        f"variances {samples.var(0)} against {np.diag(covariance)}"
    )
    return Verdict(min(1.0, 2.0 * min(p_mean, p_moments)), n, details)


def mean_test(samples: Any, mean: float) -> Verdict:
    """Independent scalars of unknown law against their expectation: z-test, standard error measured."""
    samples = np.asarray(samples, np.float64).ravel()
    z = (samples.mean() - mean) / (samples.std(ddof=1) / np.sqrt(samples.size))
    details = f"mean {samples.mean():.6g} against {mean:.6g}, z = {z:.2f}"
    return Verdict(float(2.0 * scipy.stats.norm.sf(abs(z))), samples.size, details)


def ks_test(samples: Any, cdf: Any) -> Verdict:
    """Independent scalars against a continuous law, by Kolmogorov and Smirnov."""
    samples = np.asarray(samples, np.float64).ravel()
    result = scipy.stats.kstest(samples, cdf)
    details = f"largest gap of the distribution functions {result.statistic:.4f}"
    return Verdict(float(result.pvalue), samples.size, details)


@dataclasses.dataclass(frozen=True)
class Move:
    """One linear move ``x' = x - D Λ (x - μ) + sqrt(2 T D) ξ`` with D diagonal: zeros where nothing moves."""

    step_sizes: Sequence[float]
    precision: np.ndarray
    mean: np.ndarray
    temperature: float


def exact_law(
    moves: Sequence[Move], mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance after ``moves`` from N(mean, covariance), and the product of the matrices."""
    mean, covariance, product = np.array(mean, float), np.array(covariance, float), np.eye(len(mean))
    for move in moves:
        d = np.diag(np.asarray(move.step_sizes, float))
        a = np.eye(len(mean)) - d @ move.precision
        mean = a @ mean + d @ move.precision @ move.mean
        covariance = a @ covariance @ a.T + 2.0 * move.temperature * d
        product = a @ product
    return mean, covariance, product


def stationary_covariance(precision: np.ndarray, step_size: float, temperature: float) -> np.ndarray:
    """``T Σ (I - (η/2) Σ⁻¹)⁻¹``, what the unadjusted step leaves invariant."""
    return temperature * np.linalg.inv(precision @ (np.eye(len(precision)) - 0.5 * step_size * precision))


def mean_vector_test(samples: Any, mean: Any = 0.0) -> Verdict:
    """Independent rows of unknown law against their expectation: Hotelling's χ², covariance measured."""
    samples = np.asarray(samples, np.float64)
    n, d = samples.shape
    if not np.all(np.isfinite(samples)):
        return Verdict(0.0, n, "samples are not finite")
    difference = samples.mean(0) - mean
    chi = n * difference @ np.linalg.solve(np.cov(samples.T).reshape(d, d), difference)
    return Verdict(float(scipy.stats.chi2.sf(chi, d)), n, f"means off by {difference}, χ² = {chi:.1f} of {d}")
