"""Null models: images that no network made, which a score has to beat, and real images spoilt on purpose.

Fitted on training images alone. What they draw is a function of these images and the seed.
"""

import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from jebm.data import permutation
from jebm.errors import DataError

__all__ = ["Drawn", "corruptions", "gaussian", "mixture", "repeats"]

MOST_FITTED = 10_000  # images that a null model is fitted on
MOST_NUMBERS = 2**28  # and their pixels: 1 GiB of float32
NUM_COMPONENTS, NUM_PRINCIPAL = 30, 40  # of the mixture
IMAGES_A_COMPONENT, IMAGES_A_DIRECTION = 50, 5  # at least
NUM_REPEATED = 100
NOISE = (0.1, 0.3)  # deviations, images in [-1, 1]


class Drawn(NamedTuple):
    """Images of a null model, uint8 [n, H, W, C], and how they came about: JSON values."""

    images: np.ndarray
    protocol: dict[str, Any]


def gaussian(images: np.ndarray, n: int, *, seed: int = 0) -> Drawn:
    """``n`` images of the normal law with the mean and the covariance of the pixels.

    With N training images x_i and ξ ~ N(0, I) it is ``x̄ + Σ_i ξ_i (x_i - x̄) / sqrt(N - 1)``, whose covariance is
    exactly theirs: no matrix of pixels by pixels is formed. Levels are rounded and clipped.

    Args:
        images: of training, uint8 [N, H, W, C], N of 2 or more; of more than 10,000 a fixed random part is used.
        n: how many.
        seed: of the draws.

    Raises:
        DataError: fewer than 2 images.
    """
    start = time.perf_counter()
    x = _levels(images)
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    random = np.random.default_rng(seed)
    drawn = np.zeros((n, x.shape[1]), np.float32)
    for i in range(0, len(x), 1000):
        rows = x[i : i + 1000] - mean
        drawn += random.standard_normal((n, len(rows)), np.float32) @ rows
    drawn = mean + drawn / np.float32(np.sqrt(len(x) - 1))
    about = {"model": "normal law with the mean and covariance of the pixels", "n_fitted": len(x)}
    return Drawn(_images(drawn, images), {**about, "seconds_to_fit": time.perf_counter() - start})


def mixture(images: np.ndarray, n: int, *, seed: int = 0) -> Drawn:
    """``n`` images of a mixture of Gaussians with full covariances on principal components (scikit-learn).

    30 components on 40 directions; fewer where there are not 50 images a component and 5 a direction.

    Args:
        images: as of `gaussian`.
        n: how many.
        seed: of the fit and the draws.

    Raises:
        DataError: fewer than 2 images.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    x = _levels(images) / np.float32(127.5) - 1
    directions = max(1, min(NUM_PRINCIPAL, x.shape[1], len(x) // IMAGES_A_DIRECTION))
    components = max(1, min(NUM_COMPONENTS, len(x) // IMAGES_A_COMPONENT))
    principal = PCA(directions, random_state=seed)
    model = GaussianMixture(components, random_state=seed)
    # one thread: the same sums on every machine, and none that wait for each other on a busy one
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # whether it converged is recorded; equal images have fewer clusters
        model.fit(principal.fit_transform(x).astype(np.float64))
    seconds = time.perf_counter() - start
    codes = np.random.default_rng(seed).permutation(model.sample(n)[0])  # they come component by component
    about = {
        "model": "mixture of Gaussians, full covariances, on principal components",
        "num_components": components,
        "num_principal_components": directions,
        "converged": bool(model.converged_),
        "n_fitted": len(x),
        "seconds_to_fit": seconds,
    }
    return Drawn(_images((principal.inverse_transform(codes) + 1) * 127.5, images), about)


def repeats(images: np.ndarray, n: int) -> Drawn:
    """A few training images, repeated to ``n``: 100 of them, or a tenth of ``n`` where that is fewer."""
    k = max(1, min(NUM_REPEATED, n // 10, len(images)))
    chosen = np.sort(permutation(0, 0, len(images))[:k])
    return Drawn(np.resize(images[chosen], (n, *images.shape[1:])), {"model": f"{k} training images repeated", "k": k})


def corruptions(images: np.ndarray, labels: np.ndarray | None, n: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Real images, at most ``n`` of them, and the same worse and worse: what a feature space has to put in order.

    ``real``; ``noise_weak`` and ``noise_strong``: Gaussian noise of deviation 0.1 and 0.3, images in [-1, 1];
    ``blur_weak`` and ``blur_strong``: a Gaussian filter of a 32nd of the side, half a pixel or more, and of twice that;
    ``half_of_the_classes``; ``one_class``: a tenth of these, repeated. Blur is left out below 4 pixels.

    Args:
        images: uint8 [N, H, W, C].
        labels: int [N]; None: tenths of the images by their first principal component.
        n: how many of each.
        seed: of the noise.
    """
    labels = _tenths(images) if labels is None else np.asarray(labels)
    real = images[:n]
    random, x = np.random.default_rng(seed), real.astype(np.float32)
    found = {"real": real}
    for name, scale in zip(("noise_weak", "noise_strong"), NOISE, strict=True):
        found[name] = _rounded(x + 127.5 * scale * random.standard_normal(x.shape, np.float32))
    side = min(images.shape[1:3])
    if side >= 4:
        for name, factor in (("blur_weak", 1), ("blur_strong", 2)):
            width = factor * max(0.5, side / 32)
            found[name] = _rounded(scipy.ndimage.gaussian_filter(x, (0, width, width, 0)))
    classes = np.unique(labels)
    found["half_of_the_classes"] = images[np.flatnonzero(np.isin(labels, classes[: max(1, len(classes) // 2)]))[:n]]
    one = images[np.flatnonzero(labels == classes[0])[: max(1, n // 10)]]
    found["one_class"] = np.resize(one, (len(real), *images.shape[1:]))
    return found


def _levels(images: np.ndarray) -> np.ndarray:
    """Some training images as rows of float32 levels."""
    if len(images) < 2:
        raise DataError(f"{len(images)} training images; null models are fitted on 2 or more")
    most = min(MOST_FITTED, MOST_NUMBERS // int(np.prod(images.shape[1:])))
    chosen = np.sort(permutation(0, 0, len(images))[: max(2, most)])
    return images[chosen].reshape(len(chosen), -1).astype(np.float32)


def _images(levels: np.ndarray, like: np.ndarray) -> np.ndarray:
    return _rounded(levels).reshape(len(levels), *like.shape[1:])


def _rounded(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _tenths(images: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    place = PCA(1, svd_solver="randomized", random_state=0).fit_transform(
        images.reshape(len(images), -1).astype(np.float32)
    )[:, 0]
    return np.argsort(np.argsort(place)) * 10 // len(images)
