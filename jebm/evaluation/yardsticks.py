"""What stands beside a score of generated images: real images and null models, at the same number in the same space."""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jebm.data import permutation
from jebm.data.source import fingerprint
from jebm.evaluation.cache import kept
from jebm.evaluation.records import Record
from jebm.metrics import null_models
from jebm.metrics.feature_statistics import FeatureSet, feature_set
from jebm.metrics.features import Features
from jebm.metrics.frechet import frechet_distance, square_root, standard_error
from jebm.metrics.kernel import (
    duplicate_rate,
    duplicate_threshold,
    kernel_distance,
    nearest_distances,
    precision_recall,
)

__all__ = ["COMPARED", "NULLS", "YARDSTICKS", "Estimate", "compared", "is_yardstick", "measured", "same", "verdict"]

VERSION = 1
NEIGHBOURS = 3
MOST_NEAREST = 1000  # images whose nearest training image is looked for
MOST_TRAINING = 50_000  # training images among which

YARDSTICKS = {
    "real": "real images", "gaussian": "pixel Gaussian", "mixture": "mixture of Gaussians",
    "repeats": "repeated training images",
}  # fmt: skip
"""Suffixes of records and what they are of: ``frechet_distance_gaussian``."""

NULLS = tuple(YARDSTICKS)[1:]
DISTANCES = ("kid", "fid", "frechet_distance", "kernel_distance")
COMPARED = (*DISTANCES, "precision", "recall", "duplicates", "nearest_training")
"""Scores that have yardsticks."""


class Estimate(NamedTuple):
    """A number, its standard error where one is known, and more for the record."""

    value: float
    error: float | None = None
    about: dict[str, Any] = {}  # noqa: RUF012


def measured(
    found: FeatureSet, real: FeatureSet, root: np.ndarray, threshold: float, m: int, names: tuple[str, str]
) -> dict[str, Any]:
    """All scores of one set of images against the real ones.

    Args:
        found: the set.
        real: the reference.
        root: `jebm.metrics.frechet.square_root` of the reference.
        threshold: `jebm.metrics.kernel.duplicate_threshold` of m real images.
        m: how many of each are compared one by one.
        names: of the Fréchet and of the kernel distance in this space.
    """
    some, others = found.kept[:m], real.kept[:m]
    kernel = kernel_distance(some, others)
    precision, recall = precision_recall(others, some, neighbours=NEIGHBOURS)
    parts, target = found.parts, real.statistics
    error = standard_error(parts, target, root)
    about = {"kernel": "(x · y / d + 1)^3", "num_blocks": kernel.num_blocks, "block_size": kernel.block_size}
    duplicates = {"duplicate_threshold": threshold, "nominal": 0.01}
    return {
        names[0]: Estimate(
            frechet_distance(found.statistics, target, root), error, {"standard_error_of": "four quarters"}
        ),
        names[1]: Estimate(kernel.value, kernel.standard_error, about),
        "precision": Estimate(precision, None, {"neighbours": NEIGHBOURS}),
        "recall": Estimate(recall, None, {"neighbours": NEIGHBOURS}),
        "duplicates": Estimate(duplicate_rate(some, threshold), None, duplicates),
    }


def nearest_training(images: np.ndarray, training: np.ndarray) -> Estimate:
    """The median distance of images to their nearest training image, root mean square levels of 255.

    Of at most 1,000 images at random, among at most 50,000 training images; of a copy it is 0.
    """
    some = images[np.sort(permutation(0, 0, len(images))[:MOST_NEAREST])]
    among = training[np.sort(permutation(0, 0, len(training))[:MOST_TRAINING])]
    distances = nearest_distances(some, among) / np.sqrt(np.prod(images.shape[1:]))
    about = {"n_nearest": len(some), "n_training": len(among), "lowest": float(distances.min())}
    return Estimate(float(np.median(distances)), None, about)


def compared(
    reference: FeatureSet,
    images: Mapping[str, np.ndarray],
    features: Features,
    *,
    n: int,
    most_compared: int,
    names: tuple[str, str],
    cache_statistics: bool,
) -> dict[str, dict[str, Any]]:
    """Scores of real images and of the null models, by the suffixes of `YARDSTICKS`; from the cache where it has them.

    Args:
        reference: features of the real images that generated ones are compared with.
        images: ``reference``; ``others``, real images that are not in it; ``train``; ``held_out``, never trained on.
        features: the space.
        n: how many images of each.
        most_compared: images of each set that are compared one by one.
        names: of the Fréchet and of the kernel distance.
        cache_statistics: keep the statistics of real images too.

    Returns:
        For each: ``scores``, values and errors by metric, and ``about``, what it is.
    """
    prints = [fingerprint(images[name]) for name in ("reference", "others", "train", "held_out")]
    key = [VERSION, prints, features.declaration, n, most_compared, list(names)]
    measure = functools.partial(_compare, reference, images, features, n, most_compared, names, cache_statistics)
    found: dict[str, dict[str, Any]] = kept("yardsticks", key, measure)
    return found


def _compare(
    reference: FeatureSet, images: Mapping[str, np.ndarray], features: Features, n: int, most_compared: int,
    names: tuple[str, str], cache_statistics: bool,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    train, others, root = images["train"], images["others"], square_root(reference.statistics)
    chosen = np.sort(permutation(0, 0, len(others))[:n])
    real = null_models.Drawn(others[chosen], {"model": "real images of the other split"})
    result = {}
    for name, make in (
        ("real", lambda: real),
        ("gaussian", lambda: null_models.gaussian(train, n)),
        ("mixture", lambda: null_models.mixture(train, n)),
        ("repeats", lambda: null_models.repeats(train, n)),
    ):
        start = time.perf_counter()
        drawn = make()
        seen = feature_set(drawn.images, features, most_kept=most_compared, cache=cache_statistics and name == "real")
        m = min(len(seen.kept), len(reference.kept))
        scores = measured(seen, reference, root, duplicate_threshold(reference.kept[:m]), m, names)
        # real images of the training split are there: held-out ones stand for them
        scores["nearest_training"] = nearest_training(images["held_out"] if name == "real" else drawn.images, train)
        plain = {metric: estimate._asdict() for metric, estimate in scores.items()}
        about = {**drawn.protocol, "wall_time_seconds": time.perf_counter() - start}
        result[name] = {"scores": plain, "about": about, "n": len(drawn.images), "n_compared": m}
    return result


def is_yardstick(metric: str) -> bool:
    """Whether a record is of real images or a null model, and not of a model."""
    stem, _, suffix = metric.rpartition("_")
    return (stem in COMPARED or stem == "energy_distance") and suffix in YARDSTICKS


def same(a: Record, b: Record) -> bool:
    """Whether two records are of the same step, weights, split and feature space."""
    return all(a.protocol.get(k) == b.protocol.get(k) for k in ("step", "weights", "split", "features"))


def verdict(records: Sequence[Record]) -> str | None:
    """One line: which null models the generated images are behind, ahead of or level with; None without a distance.

    By the kernel distance in Inception's space and the Fréchet distance in others; level is within two standard errors
    of the difference. A weak space (`jebm.evaluation.space`) ranks nothing.
    """
    model = next((r for name in ("kid", "frechet_distance") for r in records if r.metric == name), None)
    if model is None:
        return None
    if weak := model.protocol.get("space", {}).get("weak"):
        space = model.protocol["features"]["feature_space"]
        return f"{space} is a weak space ({'; '.join(weak)}): it ranks nothing"
    places: dict[str, list[str]] = {"behind": [], "level with": [], "ahead of": []}
    for suffix in NULLS:
        null = next((r for r in records if r.metric == f"{model.metric}_{suffix}" and same(r, model)), None)
        if null is None:
            continue
        own, other = (float(r.protocol.get("standard_error", 0.0)) for r in (model, null))
        difference = model.value - null.value
        near = abs(difference) <= 2 * float(np.hypot(own, other))
        place = "level with" if near else "behind" if difference > 0 else "ahead of"
        places[place].append(f"the {YARDSTICKS[suffix]} ({null.value:.3g})")
    told = [f"{place} {' and '.join(found)}" for place, found in places.items() if found]
    return f"{model.metric} {model.value:.3g}: {', '.join(told)}" if told else None
