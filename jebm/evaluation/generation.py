"""Sample quality: Fréchet and kernel distances, precision and recall."""

import time
from typing import Any

import numpy as np
from jax import Array

from jebm import sharding
from jebm.data import permutation, to_uint8
from jebm.errors import DataError
from jebm.evaluation.records import Record, cost, file_stem
from jebm.evaluation.space import space_quality
from jebm.evaluation.subject import Samples, Subject
from jebm.evaluation.yardsticks import Estimate, compared, measured, nearest_training
from jebm.files import write_arrays
from jebm.methods.base import Method, State
from jebm.metrics.feature_statistics import MOST_KEPT, feature_set
from jebm.metrics.frechet import extrapolated, square_root
from jebm.metrics.kernel import classifier_score, duplicate_threshold, energy_distance
from jebm.runs.drawing import Draw, batches

__all__ = ["draw_samples", "evaluate_generation", "generate_images"]


def generate_images(
    method: Method, state: State, key: Array, n: int, *, batch_size: int = 256, draw: Draw | None = None
) -> np.ndarray:
    """``n`` generated images as a file would hold them: uint8 [n, H, W, C].

    Batch ``i`` has the key ``fold_in(key, i)``; each has ``min(batch_size, n)`` images, a surplus is dropped. All
    devices draw: their number changes images by rounding only.

    Args:
        method: the family's functions.
        state: the model's.
        key: a typed key.
        n: how many images.
        batch_size: images at once.
        draw: of this method and state; None: by the devices of this process (`jebm.runs.drawing.batches`).

    Raises:
        ValueError: generated images that hold NaN or an infinity; n or a batch size below 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} images in batches of {batch_size}; both must be at least 1")
    size = min(batch_size, n)
    draw = batches(method, state, sharding.local_mesh()) if draw is None else draw
    levels, broken = [], 0
    for i in range(-(-n // size)):
        images = draw(key, i, size)[: n - i * size]
        broken += len(images) - int(np.isfinite(images).all((1, 2, 3)).sum())
        levels.append(np.asarray(to_uint8(np.nan_to_num(images))))
    if broken:
        raise DataError(f"{broken:,} of {n:,} generated images hold NaN or an infinity")
    return np.concatenate(levels)


def draw_samples(key: Array, subject: Subject) -> Subject:
    """The subject with its ``num_samples`` images, generated and, in its directory, written as ``samples-*.npz``."""
    start = time.perf_counter()
    images = generate_images(
        subject.method, subject.state, key, subject.num_samples, batch_size=subject.batch_size, draw=subject.draw
    )
    samples = Samples(images, time.perf_counter() - start)
    if subject.directory is not None:
        name = f"{file_stem('samples', subject.protocol)}-n{subject.num_samples}.npz"
        write_arrays(subject.directory / name, {"x": images})
    return subject._replace(samples=samples)


def evaluate_generation(key: Array, subject: Subject, *, most_compared: int = MOST_KEPT) -> list[Record]:
    """Distances of generated images to real ones, and what real images and null models get.

    In Inception's space the distances are ``fid``, ``fid_infinity`` and ``kid``; in any other they are
    ``frechet_distance``, ``frechet_distance_infinity`` and ``kernel_distance``. Then ``precision`` and ``recall``,
    ``duplicates`` (`jebm.metrics.kernel.duplicate_rate`), ``nearest_training``, the median distance of an image to its
    nearest training image in grey levels, ``classifier_score`` where the space has a classifier, and of points
    ``energy_distance``.

    Beside each, at the same number of images: ``*_real``, images of the other split (all, if there are fewer) against
    the same reference, for ``nearest_training`` held-out ones; and of three null models that know training images
    alone (`jebm.metrics.null_models`) ``*_gaussian``, ``*_mixture`` and ``*_repeats``. They are measured once and kept
    in the cache directory. `jebm.evaluation.yardsticks.verdict` says in a line what comes of it; ``space`` in the
    protocol is `jebm.evaluation.space.space_quality`.

    ``*_infinity`` is left out where a quarter of n is less than the number of features: its line would not be one.

    Args:
        key: a typed key.
        subject: see `Subject`; at least 20 images.
        most_compared: images of each set, drawn at random, that kernel distance, precision, recall and duplicates
            compare.

    Raises:
        ValueError: fewer than 20 images on a side, generated images that are not finite or of another size.
    """
    features, source, reference = subject.feature_space(), subject.source, subject.reference
    subject = draw_samples(key, subject) if subject.samples is None else subject
    assert subject.samples is not None
    images, n = subject.samples.images, len(subject.samples.images)
    inception = features.declaration["feature_space"] == "Inception"
    names = ("fid", "kid") if inception else ("frechet_distance", "kernel_distance")
    start = time.perf_counter()
    real_images, others = (subject.held_out, source.train)[:: -1 if reference == "train" else 1]
    real = feature_set(real_images, features, most_kept=most_compared, cache=inception)
    fake = feature_set(images, features, most_kept=most_compared)
    m = min(len(fake.kept), len(real.kept))
    target = real.statistics
    root = square_root(target)
    found = measured(fake, real, root, duplicate_threshold(real.kept[:m]), m, names)
    found["nearest_training"] = nearest_training(images, source.train)
    common = {
        **subject.protocol,
        "split": reference,
        "n_reference": target.n,
        "reference_statistics_sha256": real.sha256,
        "features": features.declaration,
        "space": space_quality(source, features),
        "rounding": "uint8",
        "most_compared": most_compared,
        "compared": "a random choice, seed 0",
    }
    generated = {
        **common,
        **cost(
            "generate", n, subject.samples.seconds + time.perf_counter() - start, subject.method.evaluations_per_image
        ),
        "generation_time_seconds": subject.samples.seconds,
        "batch_size": subject.batch_size,
    }
    some = {**generated, "n_compared": m}

    def record(metric: str, estimate: Estimate, protocol: dict[str, Any], n: int = n) -> Record:
        error = {} if estimate.error is None else {"standard_error": estimate.error}
        return Record(metric, estimate.value, n, {**protocol, **error, **estimate.about})

    yardsticks = compared(
        real,
        {"reference": real_images, "others": others, "train": source.train, "held_out": subject.held_out},
        features, n=n, most_compared=most_compared, names=names, cache_statistics=inception,
    )  # fmt: skip
    beside = {
        f"{metric}_{suffix}": record(
            f"{metric}_{suffix}",
            Estimate(**estimate),
            {**common, **cost(None, 0, 0.0), **of["about"], "n_compared": of["n_compared"]},
            of["n"],
        )
        for suffix, of in yardsticks.items()
        for metric, estimate in of["scores"].items()
    }
    frechet, kernel = names
    records = [record(frechet, found.pop(frechet), generated), beside.pop(f"{frechet}_real")]
    if min(part.n for part in fake.parts) >= len(target.mean):
        how = {"regression": "mean distance of the quarters, halves and whole on 1/n, read at 0"}
        records.append(
            record(f"{frechet}_infinity", Estimate(extrapolated(fake.parts, target, root)), {**generated, **how})
        )
    records += [record(metric, found.pop(metric), some) for metric in (kernel, "precision", "recall")]
    if features.declaration["feature_space"] == "coordinates":
        value = energy_distance(fake.kept[:m], real.kept[:m])
        records.append(record("energy_distance", Estimate(value), some))
        other = feature_set(others[np.sort(permutation(0, 0, len(others))[:n])], features, most_kept=most_compared)
        k = min(m, len(other.kept))
        value = energy_distance(other.kept[:k], real.kept[:k])
        about = {**common, "model": "real images of the other split", "n_compared": k}
        records.append(record("energy_distance_real", Estimate(value), about, k))
    if features.logits is not None:
        score, deviation = classifier_score(features.logits(images))
        about = {"num_splits": 10, "deviation_of_splits": deviation, "note": "not the Inception score"}
        records.append(record("classifier_score", Estimate(score), {**generated, **about}))
    records += [record(metric, estimate, some) for metric, estimate in found.items()]
    return records + list(beside.values())
