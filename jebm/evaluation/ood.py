"""Telling outliers from images of the data's kind by a score such as the energy."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["auroc", "auroc_interval", "compressed_size", "outliers"]


def auroc(in_scores: np.ndarray, out_scores: np.ndarray) -> float:
    """The probability that an outlier scores higher than an inlier, ties counting one half.

    From the ranks r of all scores together (Mann and Whitney): ``(Σ_out r - m (m + 1) / 2) / (n m)``. 1 is
    perfect, 1/2 is chance; a score that is higher inside than outside gives less than 1/2.

    Args:
        in_scores: [n], of images like the data; higher means more unlike the data.
        out_scores: [m], of outliers.

    Raises:
        ValueError: empty scores, scores that are not a vector, or NaN or infinite.
    """
    inside, outside = _scores("in_scores", in_scores), _scores("out_scores", out_scores)
    return _auroc(inside, outside)


def auroc_interval(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """A bootstrap percentile interval of `auroc`: inliers and outliers are each drawn again with replacement.

    Where the two sets do not overlap the interval has no width.

    Raises:
        ValueError: as `auroc`.
    """
    inside, outside = _scores("in_scores", in_scores), _scores("out_scores", out_scores)
    random = np.random.default_rng(seed)
    values = [
        _auroc(random.choice(inside, len(inside)), random.choice(outside, len(outside)))
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    from scipy.stats import rankdata

    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def _scores(name: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(
            f"{name} have shape {scores.shape}; wanted is one number per image, at least one image"
        )
    bad = int(len(scores) - np.isfinite(scores).sum())
    if bad:
        raise ValueError(f"{name}: {bad:,} of {len(scores):,} are NaN or infinite; such scores have no rank")
    return scores


def outliers(key: Array, images: np.ndarray) -> dict[str, np.ndarray]:
    """Three sets of outliers, each as many as ``images``, of their shape and dtype: uint8 [N, H, W, C].

    * ``uniform_noise``: every number uniform over 0..255;
    * ``constant``: one grey level per image, uniform over 0..255, the same in all channels;
    * ``shuffled``: the given images, the pixels of each in a random order of its own, their colours kept.
    """
    noise_key, level_key, order_key = jax.random.split(key, 3)
    n, height, width, channels = images.shape
    noise = jax.random.randint(noise_key, images.shape, 0, 256).astype(jnp.uint8)
    levels = jax.random.randint(level_key, (n, 1, 1, 1), 0, 256).astype(jnp.uint8)
    words = np.asarray(jax.random.bits(order_key, (n, height * width, 1)))
    pixels = np.asarray(images).reshape(n, height * width, channels)
    shuffled = np.take_along_axis(pixels, words.argsort(1, kind="stable"), 1)
    return {
        "uniform_noise": np.asarray(noise),
        "constant": np.broadcast_to(np.asarray(levels), images.shape),
        "shuffled": shuffled.reshape(images.shape),
    }


def compressed_size(images: np.ndarray) -> np.ndarray:
    """Bytes of each image under zlib, float64 [N]: a baseline for energies, which may show complexity alone.

    (Serrà et al., arXiv 1909.11480: likelihoods follow the complexity of an image.)
    """
    return np.array([len(zlib.compress(np.ascontiguousarray(image).tobytes(), 9)) for image in images], float)
