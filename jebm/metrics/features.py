"""The feature spaces in which generated and real images are compared, each with its declaration.

Small networks made on the spot from the training images, for sets that no published network fits. Distances
in them are not FID, and compare only where ``weights_sha256`` is the same: another machine may train other
weights.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jebm.data import Loader, Source, to_float
from jebm.errors import DataError
from jebm.metrics.batches import map_batches

__all__ = [
    "FeatureNetwork", "Features", "classifier_features", "coordinates", "random_features", "source_features",
]  # fmt: skip

BATCH_SIZE = 500  # images that pass a feature network at once


class Features(NamedTuple):
    """A feature space.

    Attributes:
        function: uint8 images [N, H, W, C] to features [N, d], float32, on the host.
        declaration: what the features are, for the record: JSON values.
        logits: uint8 images to the scores of classes [N, classes], float32; None without a classifier.
    """

    function: Callable[[np.ndarray], np.ndarray]
    declaration: dict[str, Any]
    logits: Callable[[np.ndarray], np.ndarray] | None = None


class FeatureNetwork(nn.Module):
    """Convolutions of 32 and 64 channels down to 4 x 4 pixels or fewer, a dense layer, a linear classifier.

    Called on float32 [N, H, W, C] it returns ``(features, logits)``: the dense layer after its ReLU and the
    scores of the classes. Images of up to 16 pixels get a first convolution at full resolution.
    """

    num_classes: int
    num_features: int = 64

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        # full precision: the numbers should be the same on every kind of device
        settings: dict[str, Any] = {"kernel_init": nn.initializers.he_normal(), "precision": "highest"}
        if max(x.shape[1:3]) <= 16:
            x = nn.relu(nn.Conv(32, (3, 3), **settings)(x))
        channels = 32 if max(x.shape[1:3]) > 16 else 64
        while max(x.shape[1:3]) > 4:
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2, **settings)(x))
            channels = 64
        features = nn.relu(nn.Dense(self.num_features, **settings)(x.reshape(len(x), -1)))
        return features, nn.Dense(self.num_classes, precision="highest")(features)


def classifier_features(
    source: Source, *, seed: int = 0, num_steps: int = 300, batch_size: int = 64, num_features: int = 64
) -> Features:
    """The last hidden layer of a classifier trained here and now: "FD-classifier-<source>".

    Trained on the labelled training images by Adam under a cosine schedule from 0.001. The declaration states
    its accuracy on the test images: features of a classifier that does not classify say little.

    Raises:
        ValueError: a source without labels.
    """
    if source.train_labels is None or source.test_labels is None or source.num_classes is None:
        raise DataError(f"source '{source.name}' has no labels to train a classifier on; use random_features")
    network = FeatureNetwork(source.num_classes, num_features)
    params = _init(network, source, seed)
    state = _optimizer(num_steps).init(params)
    # the loader shuffles examples; here these are their numbers, for images and labels alike
    loader = Loader(np.arange(len(source.train)), min(batch_size, len(source.train)), seed)
    for step in range(num_steps):
        chosen = loader.batch(step)
        params, state = _update(network, num_steps, params, state, source.train[chosen], source.train_labels[chosen])

    def scores(images: np.ndarray) -> np.ndarray:
        return map_batches(lambda _, batch: _apply(network, params, batch)[1], images, BATCH_SIZE)

    logits = scores(source.test)
    declaration = {
        "feature_space": f"FD-classifier-{source.name}",
        "trained_on": {"source": source.name, "fingerprint": source.fingerprint, "split": "train"},
        "num_steps": num_steps,
        "batch_size": loader.batch_size,
        "optimizer": "adam, cosine decay from 0.001",
        "test_accuracy": float((logits.argmax(-1) == source.test_labels).mean()),
    }
    return _features(network, params, source, declaration, seed)._replace(logits=scores)


def random_features(source: Source, *, seed: int = 0, num_features: int = 64) -> Features:
    """The last hidden layer of the same network with its random initial weights: "FD-random"."""
    network = FeatureNetwork(1, num_features)
    return _features(network, _init(network, source, seed), source, {"feature_space": "FD-random"}, seed)


def coordinates() -> Features:
    """Points of the plane, images [N, 1, 1, 2], as they are, [-1, 1]²: distances are those of the plane."""

    def function(images: np.ndarray) -> np.ndarray:
        return np.asarray(to_float(images)).reshape(len(images), 2)

    return Features(function, {"feature_space": "coordinates", "num_features": 2})


def source_features(source: Source, *, seed: int = 0) -> Features:
    """`coordinates` of points, `classifier_features` of images of two classes or more, else `random_features`."""
    if source.image_shape == (1, 1, 2):
        return coordinates()
    if source.num_classes is None or source.num_classes < 2:
        return random_features(source, seed=seed)
    return classifier_features(source, seed=seed)


def _init(network: FeatureNetwork, source: Source, seed: int) -> Any:
    return _jitted_init(network, source.image_shape, jax.random.key(seed))


# weights are arguments, networks static: another seed compiles nothing, no program holds weights as constants
@functools.partial(jax.jit, static_argnums=(0, 1))
def _jitted_init(network: FeatureNetwork, shape: tuple[int, ...], key: Array) -> Any:
    return network.init(key, jnp.zeros((1, *shape)))


@functools.partial(jax.jit, static_argnums=0)
def _apply(network: FeatureNetwork, params: Any, images: Array) -> Any:
    return network.apply(params, to_float(images))


def _optimizer(num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(
    network: FeatureNetwork, num_steps: int, params: Any, state: Any, images: Array, labels: Array
) -> tuple[Any, Any]:
    def loss(params: Any) -> Array:
        logits = _apply(network, params, images)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = _optimizer(num_steps).update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


def _features(network: FeatureNetwork, params: Any, source: Source, declaration: dict[str, Any], seed: int) -> Features:
    def function(images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.shape[1:] != source.image_shape:
            raise ValueError(
                f"got {images.dtype} images of {images.shape[1:]}; these features are of uint8 images of "
                f"{source.image_shape}"
            )
        return map_batches(lambda _, batch: _apply(network, params, batch)[0], images, BATCH_SIZE)

    digest = hashlib.sha256()
    layers: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/")
        layers[name] = list(leaf.shape)
        digest.update(name.encode())
        digest.update(np.asarray(leaf).tobytes())
    return Features(
        function,
        {
            **declaration,
            "network": "convolutions 3x3 with ReLU, strides to 4x4 pixels or fewer, dense, ReLU: features",
            "num_features": network.num_features,
            "layers": layers,
            "feature_seed": seed,
            "weights_sha256": digest.hexdigest(),
        },
    )
