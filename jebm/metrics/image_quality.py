"""PSNR and SSIM against a reference image."""

import numpy as np

from jebm.errors import DataError

__all__ = ["psnr", "ssim"]

RADIUS, DEVIATION = 5, 1.5  # an 11 x 11 Gaussian window
C1, C2 = 0.01**2, 0.03**2


def psnr(images: np.ndarray, targets: np.ndarray, *, data_range: float = 2.0) -> np.ndarray:
    """``10 log10(data_range² / mean squared error)`` of each image in dB, float64 [N]; infinite for equal images.

    Args:
        images: [N, H, W, C].
        targets: likewise.
        data_range: largest minus smallest possible value: 2 for images in [-1, 1], 255 for uint8.

    Raises:
        ValueError: shapes that differ.

    Examples:
        >>> from jebm.metrics.image_quality import psnr
        >>> psnr(np.full((1, 4, 4, 1), 0.2), np.zeros((1, 4, 4, 1))).round(6)
        array([20.])
    """
    x, y = _pair(images, targets)
    error = np.square(x - y).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / error)


def ssim(images: np.ndarray, targets: np.ndarray, *, data_range: float = 2.0) -> np.ndarray:
    """The mean structural similarity of each image, float64 [N], at most 1 (Wang et al., 2004).

    Moments under a Gaussian window of 11 x 11 pixels and deviation 1.5, population variances; the mean over channels
    and over those pixels whose window is inside the image, as in the authors' program. (`jebm.losses.ssim_loss`, the
    loss, takes every pixel, with a black border.)

    Args:
        images: [N, H, W, C], 11 pixels or more on each side.
        targets: likewise.
        data_range: as in `psnr`.

    Raises:
        ValueError: shapes that differ, or images smaller than the window.
    """
    x, y = _pair(images, targets)
    if min(x.shape[1:3]) < 2 * RADIUS + 1:
        raise DataError(f"images of {x.shape[1]} x {x.shape[2]} are smaller than the window of 11 x 11")
    x, y = x / data_range, y / data_range
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x) - mean_x**2 + _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean((1, 2, 3))


def _blur(x: np.ndarray) -> np.ndarray:
    weights = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * DEVIATION**2))
    weights /= weights.sum()
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(x, len(weights), axis)
        x = windows @ weights
    return x


def _pair(images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if images.shape != targets.shape or images.ndim != 4:
        raise ValueError(f"images {images.shape} and targets {targets.shape}: wanted is [N, H, W, C] twice")
    return np.asarray(images, np.float64), np.asarray(targets, np.float64)
