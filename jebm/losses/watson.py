"""Watson's perceptual distance between images, on block DCT or block Fourier coefficients.

Watson, "DCT quantization matrices visually optimized for individual images" (1993), made trainable by Czolbe
et al., "A Loss Function for Generative Neural Networks Based on Watson's Perceptual Model" (arXiv
2006.15057). With ``c`` the coefficients of a block of the target and ``ĉ`` those of the image, per channel,

    t_L = t ((c_00 + ε) / (mean c_00 + ε))^a                       luminance masking
    s   = softmax-blend(t_L, (|c| + ε)^w t_L^(1-w))                contrast masking, a smooth maximum
    d   = (Σ_{blocks, frequencies} ((|c - ĉ| / s)^b + ε))^(1/b)

and the channels (Y, Cb, Cr for colour) are added with weights that sum to 1. The Fourier form uses
amplitudes, and adds ``Σ w_phase |phase difference|``. The defaults are the untrained starting values.

The distance is not symmetric: the masking is the target's. It is not quite 0 for equal images (ε, and the
phases' δ), but has its minimum there. The mean of ``c_00`` is over the blocks of this target; the authors'
code takes it over the blocks of the whole batch, which makes an image's loss depend on its neighbours. For
that form pass ``luminance=mean_luminance_dct(targets)`` (or ``_dft``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.losses.transforms import BLOCK, blocks, dct, unit_pair

__all__ = [
    "WatsonParameters", "mean_luminance_dct", "mean_luminance_dft", "watson_dct", "watson_dct_parameters",
    "watson_dct_unit", "watson_dft", "watson_dft_parameters", "watson_dft_unit",
]  # fmt: skip

EPSILON = 1e-10
PHASE_SHRINK = 1e-7  # keeps the slope of the arc cosine finite where the phases agree

# Watson's thresholds of visibility per frequency; symmetric
THRESHOLDS = np.array([
    [1.40, 1.01, 1.16, 1.66, 2.40, 3.43, 4.79, 6.56],
    [1.01, 1.45, 1.32, 1.52, 2.00, 2.71, 3.67, 4.93],
    [1.16, 1.32, 2.24, 2.59, 2.98, 3.64, 4.60, 5.88],
    [1.66, 1.52, 2.59, 3.77, 4.55, 5.30, 6.28, 7.60],
    [2.40, 2.00, 2.98, 4.55, 6.15, 7.46, 8.71, 10.17],
    [3.43, 2.71, 3.64, 5.30, 7.46, 9.62, 11.58, 13.51],
    [4.79, 3.67, 4.60, 6.28, 8.71, 11.58, 14.50, 17.29],
    [6.56, 4.93, 5.88, 7.60, 10.17, 13.51, 17.29, 21.15],
])  # fmt: skip

# JPEG's colour transform, to four digits as in the authors' code; the shift brings chroma to [0, 1]
YCBCR = np.array([
    [0.299, 0.587, 0.114],
    [-0.1687, -0.3313, 0.5],
    [0.5, -0.4187, -0.0813],
], np.float32)  # fmt: skip
CHROMA_SHIFT = np.array([0.0, 0.5, 0.5], np.float32)


class WatsonParameters(NamedTuple):
    """Parameters of a Watson distance, float32; the leading axis C is 3 (Y, Cb, Cr) or 1 for grey.

    Attributes:
        log_thresholds: ``log t`` [C, 8, 8], or [C, 8, 5] for the Fourier form.
        luminance: the exponent ``a`` [C].
        contrast_logits: ``logit w`` [C].
        pooling: the exponent ``b`` [C].
        channel_logits: the channels' weights before their softmax [C].
        log_phase_weights: ``log w_phase`` [C, 8, 5] for the Fourier form, else None. The four coefficients
            that are real (both frequencies 0 or 4) have no phase: their entries are not used.
    """

    log_thresholds: Array
    luminance: Array
    contrast_logits: Array
    pooling: Array
    channel_logits: Array
    log_phase_weights: Array | None = None


def watson_dct_parameters(num_channels: int = 3) -> WatsonParameters:
    """Watson's own values: his thresholds, a = 0.649, w = 0.7, b = 4, equal channels."""
    return _parameters(num_channels, np.log(THRESHOLDS), 0.649, 0.7, 4.0)


def watson_dft_parameters(num_channels: int = 3) -> WatsonParameters:
    """The Fourier form before training: t = 1, a = 0.1, w = 0.2, b = 1, w_phase = exp(-2), equal channels."""
    log_phase_weights = jnp.full((num_channels, BLOCK, BLOCK // 2 + 1), -2.0)
    parameters = _parameters(num_channels, np.zeros((BLOCK, BLOCK // 2 + 1)), 0.1, 0.2, 1.0)
    return parameters._replace(log_phase_weights=log_phase_weights)


def _parameters(num_channels: int, log_thresholds: np.ndarray, a: float, w: float, b: float) -> WatsonParameters:
    if num_channels not in (1, 3):
        raise ValueError(f"the Watson distances take images of 1 or 3 channels, got {num_channels}")
    thresholds = jnp.tile(jnp.asarray(log_thresholds, jnp.float32), (num_channels, 1, 1))
    full = lambda number: jnp.full(num_channels, number, jnp.float32)  # noqa: E731
    return WatsonParameters(thresholds, full(a), full(np.log(w / (1 - w))), full(b), full(0.0))


def watson_dct(
    image: Array, target: Array, parameters: WatsonParameters | None = None, luminance: Array | None = None
) -> Array:
    """The Watson distance on the DCT of 8x8 blocks; a float32 scalar.

    A block of the target that is wholly black masks nothing, so the least error there costs orders of
    magnitude more than elsewhere; `watson_dft` is the one to train with where such blocks occur.

    Args:
        image: [H, W, C] in [-1, 1], C = 1 or 3; H and W multiples of 8.
        target: as ``image``; where it leaves [-1, 1] a block's negative mean counts as black.
        parameters: `WatsonParameters`; None for `watson_dct_parameters`.
        luminance: [C], the ``mean c_00`` to compare blocks with; None for the target's own.

    Raises:
        ValueError: shapes that differ, sides that 8 does not divide, other numbers of channels.
    """
    return watson_dct_unit(*_whole_blocks(*unit_pair(image, target)), parameters, luminance)


def watson_dft(
    image: Array, target: Array, parameters: WatsonParameters | None = None, luminance: Array | None = None
) -> Array:
    """The Watson distance on the Fourier amplitudes and phases of 8x8 blocks; a float32 scalar.

    Arguments and errors as for `watson_dct`, with `watson_dft_parameters`. A phase turns the faster the
    smaller its amplitude: with respect to an image that is flat over a whole block the gradient is of no use.
    """
    return watson_dft_unit(*_whole_blocks(*unit_pair(image, target)), parameters, luminance)


def watson_dct_unit(
    image: Array, target: Array, parameters: WatsonParameters | None = None, luminance: Array | None = None
) -> Array:
    """`watson_dct` of images in [0, 1]; rows and columns that fill no block are left out."""
    parameters = watson_dct_parameters(image.shape[-1]) if parameters is None else parameters
    image, target = _dct_blocks(image), _dct_blocks(target)
    luminance = _mean_luminance(target) if luminance is None else luminance
    distances = _masked_distance(parameters, image, target, luminance)
    return jnp.dot(jax.nn.softmax(parameters.channel_logits), distances)


def watson_dft_unit(
    image: Array, target: Array, parameters: WatsonParameters | None = None, luminance: Array | None = None
) -> Array:
    """`watson_dft` of images in [0, 1]; rows and columns that fill no block are left out.

    Raises:
        ValueError: parameters without phase weights.
    """
    parameters = watson_dft_parameters(image.shape[-1]) if parameters is None else parameters
    if parameters.log_phase_weights is None:
        raise ValueError("watson_dft needs log_phase_weights, got None: start from watson_dft_parameters")
    image, target = _dft_blocks(image), _dft_blocks(target)
    amplitudes = _amplitude(target)
    luminance = _mean_luminance(amplitudes) if luminance is None else luminance
    distances = _masked_distance(parameters, _amplitude(image), amplitudes, luminance)
    difference = _phase(target) - _phase(image)
    # arccos((1-δ) cos x) without the cancellation at x = 0
    shrunk = (1 - PHASE_SHRINK) * jnp.cos(difference)
    sine = jnp.sqrt(jnp.sin(difference) ** 2 + PHASE_SHRINK * (2 - PHASE_SHRINK) * jnp.cos(difference) ** 2)
    weights = jnp.exp(parameters.log_phase_weights).at[:, ::4, ::4].set(0.0)
    distances += jnp.sum(weights[:, None] * jnp.arctan2(sine, shrunk), axis=(1, 2, 3))
    return jnp.dot(jax.nn.softmax(parameters.channel_logits), distances)


def mean_luminance_dct(targets: Array) -> Array:
    """``mean c_00`` [C] over all blocks of a batch of targets [N, H, W, C] in [-1, 1], for `watson_dct`."""
    return jnp.mean(jax.vmap(lambda target: _mean_luminance(_dct_blocks((target + 1) / 2)))(targets), axis=0)


def mean_luminance_dft(targets: Array) -> Array:
    """``mean |c_00|`` [C] over all blocks of a batch of targets [N, H, W, C] in [-1, 1], for `watson_dft`."""
    amplitudes = lambda target: _amplitude(_dft_blocks((target + 1) / 2))  # noqa: E731
    return jnp.mean(jax.vmap(lambda target: _mean_luminance(amplitudes(target)))(targets), axis=0)


def _whole_blocks(image: Array, target: Array) -> tuple[Array, Array]:
    if image.shape[0] % BLOCK or image.shape[1] % BLOCK:
        raise ValueError(f"the Watson distances need sides that {BLOCK} divides, got {image.shape[:2]}")
    return image, target


def _channel_blocks(image: Array) -> Array:
    if image.shape[-1] == 3:
        image = jnp.dot(image, YCBCR.T, precision=jax.lax.Precision.HIGHEST) + CHROMA_SHIFT[None, None]
    return jax.vmap(blocks, in_axes=-1)(image)


def _dct_blocks(image: Array) -> Array:
    return dct(_channel_blocks(image))


def _dft_blocks(image: Array) -> Array:
    return jnp.fft.rfft2(_channel_blocks(image)) / BLOCK**2


def _amplitude(coefficients: Array) -> Array:
    return jnp.sqrt(coefficients.real**2 + coefficients.imag**2 + EPSILON)


def _phase(coefficients: Array) -> Array:
    return jnp.arctan2(coefficients.imag, coefficients.real + EPSILON)


def _mean_luminance(target: Array) -> Array:
    return jnp.mean(jnp.maximum(target[:, :, 0, 0], 0), axis=1)


def _masked_distance(parameters: WatsonParameters, image: Array, target: Array, luminance: Array) -> Array:
    """Distances [C] of coefficients [C, number of blocks, 8, 8 or 5]."""
    expand = lambda a: a[:, None, None, None]  # noqa: E731
    exponent, pooling = expand(parameters.luminance), expand(parameters.pooling)
    contrast = jax.nn.sigmoid(expand(parameters.contrast_logits))
    relative = (jnp.maximum(target[:, :, :1, :1], 0) + EPSILON) / (expand(luminance) + EPSILON)
    threshold = jnp.exp(parameters.log_thresholds)[:, None] * relative**exponent
    masked = (jnp.abs(target) + EPSILON) ** contrast * threshold ** (1 - contrast)
    share = jax.nn.sigmoid(threshold - masked)
    ratio = jnp.abs(target - image) / (share * threshold + (1 - share) * masked)
    return jnp.sum(ratio**pooling + EPSILON, axis=(1, 2, 3)) ** (1 / parameters.pooling)
