"""Telling outliers from images of the data's kind by a score such as the energy."""

from collections.abc import Callable

import numpy as np

from jebm import paths
from jebm.errors import DataError
from jebm.files import write_arrays

__all__ = ["aupr", "auroc", "auroc_interval", "bootstrap_interval", "fpr95", "write_scores"]

Measure = Callable[[np.ndarray, np.ndarray], float]


def auroc(in_scores: np.ndarray, out_scores: np.ndarray) -> float:
    """The probability that an outlier scores higher than an inlier, ties counting one half.

    From the ranks r of all scores together (Mann and Whitney): ``(Σ_out r - m (m + 1) / 2) / (n m)``. 1 is
    perfect, 1/2 is chance; a score that is higher inside than outside gives less than 1/2.

    Args:
        in_scores: [n], of images like the data; higher means more unlike the data.
        out_scores: [m], of outliers.

    Raises:
        ValueError: empty scores, scores that are not a vector, or NaN or infinite.

    Examples:
        >>> from jebm.metrics.detection import auroc
        >>> auroc(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0]))
        0.75
    """
    inside, outside = _scores("in_scores", in_scores), _scores("out_scores", out_scores)
    return _auroc(inside, outside)


def aupr(in_scores: np.ndarray, out_scores: np.ndarray) -> float:
    """The average precision of outliers, ``Σ_t (R_t - R_{t-1}) P_t`` over thresholds t from high to low.

    P and R are precision and recall of "an outlier scores t or more". By chance it is the share of outliers.

    Raises:
        ValueError: as `auroc`.

    Examples:
        >>> from jebm.metrics.detection import aupr
        >>> aupr(np.array([0.0, 1.0]), np.array([2.0, 3.0]))
        1.0
    """
    hits, false_alarms = _counts(_scores("in_scores", in_scores), _scores("out_scores", out_scores))
    return float((np.diff(hits, prepend=0) / hits[-1] * hits / (hits + false_alarms)).sum())


def fpr95(in_scores: np.ndarray, out_scores: np.ndarray) -> float:
    """The share of inliers called outliers at the highest threshold that finds 95 % of the outliers; 0 is perfect.

    Raises:
        ValueError: as `auroc`.

    Examples:
        >>> from jebm.metrics.detection import fpr95
        >>> fpr95(np.array([0.0, 1.0, 2.0, 3.0]), np.array([3.0, 4.0]))
        0.25
    """
    hits, false_alarms = _counts(_scores("in_scores", in_scores), _scores("out_scores", out_scores))
    return float(false_alarms[np.argmax(hits >= 0.95 * hits[-1])] / false_alarms[-1])


def bootstrap_interval(
    measure: Measure,
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile interval of `auroc`, `aupr` or `fpr95`: both sets are each drawn again with replacement.

    Where the two sets do not overlap the interval has no width.

    Raises:
        ValueError: as `auroc`.
    """
    inside, outside = _scores("in_scores", in_scores), _scores("out_scores", out_scores)
    random = np.random.default_rng(seed)
    values = [
        measure(random.choice(inside, len(inside)), random.choice(outside, len(outside))) for _ in range(num_resamples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def auroc_interval(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """`bootstrap_interval` of `auroc`."""
    return bootstrap_interval(_auroc, in_scores, out_scores, level=level, num_resamples=num_resamples, seed=seed)


def write_scores(folder: paths.Path, name: str, in_scores: np.ndarray, out_scores: np.ndarray) -> paths.Path:
    """Writes ``<name>.npz`` as OpenOOD's evaluator saves scores, and returns its path.

    Arrays ``pred``, ``conf``, ``label``, inliers first: a confidence (here the score's negative: OpenOOD's is higher
    for inliers), the label -1 for outliers and 0 for inliers, and the predicted class, 0 throughout.

    Raises:
        ValueError: as `auroc`.
    """
    inside, outside = _scores("in_scores", in_scores), _scores("out_scores", out_scores)
    label = np.repeat([0, -1], [len(inside), len(outside)])
    path = folder / f"{name}.npz"
    write_arrays(path, {"pred": np.zeros_like(label), "conf": -np.concatenate([inside, outside]), "label": label})
    return path


def _counts(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outliers and inliers at or above each distinct score, from the highest score down."""
    scores = np.concatenate([inside, outside])
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(order >= len(inside))[ends]
    return hits, ends + 1 - hits


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    from scipy.stats import rankdata

    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def _scores(name: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name} have shape {scores.shape}; wanted is one number per image, at least one image")
    bad = int(len(scores) - np.isfinite(scores).sum())
    if bad:
        raise DataError(f"{name}: {bad:,} of {len(scores):,} are NaN or infinite; such scores have no rank")
    return scores
