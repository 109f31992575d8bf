"""Whether a feature space may rank models: its classifier's accuracy, and its answer to spoilt real images."""

import functools
from typing import Any

import numpy as np

from jebm.data import Source, permutation
from jebm.data.source import fingerprint
from jebm.evaluation.cache import kept
from jebm.metrics.features import Features
from jebm.metrics.kernel import kernel_distance
from jebm.metrics.null_models import corruptions

__all__ = ["space_quality", "weaknesses"]

VERSION = 1
MOST = 500  # images of each kind
MOST_OF_INCEPTION = 100  # of which each takes a quarter of a second
FEWEST = 20  # for a kernel distance
LOWEST_ACCURACY = 0.75  # of a classifier whose features may rank
ORDER = (
    ("real", "noise_weak"), ("noise_weak", "noise_strong"), ("real", "blur_weak"), ("blur_weak", "blur_strong"),
    ("real", "half_of_the_classes"), ("half_of_the_classes", "one_class"),
)  # fmt: skip


def space_quality(source: Source, features: Features) -> dict[str, Any]:
    """What is known of a feature space, for the record: measured once per space and data, then read from the cache.

    Kernel distances, unbiased at any number, of real training images and of the same ones made worse and worse
    (`jebm.metrics.null_models.corruptions`) to other training images; no test image is looked at.

    Returns:
        JSON values: ``distances`` by name, ``n`` (images of each kind), ``test_accuracy`` where the space has a
        classifier, and ``weak``: why it ranks nothing (`weaknesses`); empty for a space that does.
    """
    n = min(MOST_OF_INCEPTION if features.declaration["feature_space"] == "Inception" else MOST, len(source.train) // 3)
    accuracy = features.declaration.get("test_accuracy")
    known: dict[str, Any] = {"n": n} if accuracy is None else {"n": n, "test_accuracy": accuracy}
    if n < FEWEST:
        return {**known, "distances": {}, "weak": [f"{len(source.train)} training images are too few to judge it"]}
    key = [VERSION, fingerprint(source.train, source.train_labels), features.declaration, n]
    distances = kept("spaces", key, functools.partial(_measure, source, features, n))
    return {**known, "distances": distances, "weak": weaknesses(distances, accuracy)}


def weaknesses(distances: dict[str, float], accuracy: float | None) -> list[str]:
    """Why a space ranks nothing, a clause each.

    Its classifier is right in less than 75 % of test images; or real images are not nearer than spoilt ones, or less
    spoilt ones not nearer than more spoilt ones.
    """
    found = []
    if accuracy is not None and accuracy < LOWEST_ACCURACY:
        found.append(f"its classifier is right in {accuracy:.0%} of test images")
    for near, far in ORDER:
        if far in distances and not distances[near] < distances[far]:
            found.append(f"{far.replace('_', ' ')} is no farther than {near.replace('_', ' ')}")
    return found


def _measure(source: Source, features: Features, n: int) -> dict[str, float]:
    order = permutation(0, 0, len(source.train))
    reference = features.function(source.train[np.sort(order[:n])])
    rest = order[n : n + 10 * n]
    labels = None if source.train_labels is None else source.train_labels[rest]
    spoilt = corruptions(source.train[rest], labels, n)
    return {
        name: kernel_distance(features.function(images), reference).value
        for name, images in spoilt.items()
        if len(images) >= FEWEST
    }
