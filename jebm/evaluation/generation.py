"""Sample quality: Fréchet and kernel distances, precision and recall."""

import functools
import time

import numpy as np
from jax import Array

from jebm import sharding
from jebm.data import permutation, to_uint8
from jebm.errors import DataError
from jebm.evaluation.records import Record, cost, file_stem
from jebm.evaluation.subject import Samples, Subject
from jebm.files import write_arrays
from jebm.methods.base import Method, State
from jebm.metrics.feature_statistics import MOST_KEPT, feature_set
from jebm.metrics.frechet import extrapolated, frechet_distance, square_root
from jebm.metrics.kernel import classifier_score, energy_distance, kernel_distance, precision_recall
from jebm.runs.drawing import Draw, batches

__all__ = ["draw_samples", "evaluate_generation", "generate_images"]

NEIGHBOURS = 3


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
    """Distances of generated images to real ones, and what other real images get.

    In Inception's space the records are ``fid``, ``fid_real``, ``fid_infinity`` and ``kid``; in any other they are
    ``frechet_distance``, ``frechet_distance_real``, ``frechet_distance_infinity`` and ``kernel_distance``. Then
    ``precision`` and ``recall``, ``classifier_score`` where the space has a classifier, and of points
    ``energy_distance`` and ``energy_distance_real``.

    ``*_real`` is for scale: as many images of the other split (all, if there are fewer) against the same reference.
    ``*_infinity`` is left out where a quarter of n is less than the number of features: its line would not be one.

    Args:
        key: a typed key.
        subject: see `Subject`; at least 20 images.
        most_compared: images of each set, drawn at random, that kernel distance, precision and recall compare.

    Raises:
        ValueError: fewer than 20 images on a side, generated images that are not finite or of another size.
    """
    features, source, reference = subject.feature_space(), subject.source, subject.reference
    subject = draw_samples(key, subject) if subject.samples is None else subject
    assert subject.samples is not None
    images, n = subject.samples.images, len(subject.samples.images)
    inception = features.declaration["feature_space"] == "Inception"
    frechet, kernel = ("fid", "kid") if inception else ("frechet_distance", "kernel_distance")
    start = time.perf_counter()
    real_images, others = (source.test, source.train) if reference == "test" else (source.train, source.test)
    real = feature_set(real_images, features, most_kept=most_compared, cache=inception)
    target = real.statistics
    fake = feature_set(images, features, most_kept=most_compared)
    root = square_root(target)
    distance = frechet_distance(fake.statistics, target, root)
    common = {
        **subject.protocol,
        "split": reference,
        "n_reference": target.n,
        "reference_statistics_sha256": real.sha256,
        "features": features.declaration,
        "rounding": "uint8",
    }
    generated = {
        **common,
        **cost(
            "generate", n, subject.samples.seconds + time.perf_counter() - start, subject.method.evaluations_per_image
        ),
        "generation_time_seconds": subject.samples.seconds,
        "batch_size": subject.batch_size,
    }
    record = functools.partial(Record, n=n)
    records = [record(frechet, distance, protocol=generated)]

    start = time.perf_counter()
    chosen = permutation(0, 0, len(others))[:n]
    other = feature_set(others[np.sort(chosen)], features, cache=inception)
    compared = {"compared": "real images of the other split", **cost(None, 0, time.perf_counter() - start)}
    records.append(
        Record(f"{frechet}_real", frechet_distance(other.statistics, target, root), len(chosen), {**common, **compared})
    )
    if min(part.n for part in fake.parts) >= len(target.mean):
        how = {"regression": "mean distance of the quarters, halves and whole on 1/n, read at 0"}
        limit = extrapolated(fake.parts, target, root)
        records.append(record(f"{frechet}_infinity", limit, protocol={**generated, **how}))

    m = min(len(fake.kept), len(real.kept))
    some = {**generated, "n_compared": m, "most_compared": most_compared, "compared": "a random choice, seed 0"}
    kid = kernel_distance(fake.kept[:m], real.kept[:m])
    blocks = {"standard_error": kid.standard_error, "num_blocks": kid.num_blocks, "block_size": kid.block_size}
    records.append(record(kernel, kid.value, protocol={**some, "kernel": "(x · y / d + 1)^3", **blocks}))
    for name, value in zip(
        ("precision", "recall"), precision_recall(real.kept[:m], fake.kept[:m], neighbours=NEIGHBOURS), strict=True
    ):
        records.append(record(name, value, protocol={**some, "neighbours": NEIGHBOURS}))
    if features.declaration["feature_space"] == "coordinates":
        records.append(record("energy_distance", energy_distance(fake.kept[:m], real.kept[:m]), protocol=some))
        k = min(m, len(other.kept))
        value = energy_distance(other.kept[:k], real.kept[:k])
        records.append(Record("energy_distance_real", value, k, {**common, **compared, "n_compared": k}))
    if features.logits is not None:
        score, deviation = classifier_score(features.logits(images))
        about = {"num_splits": 10, "deviation_of_splits": deviation, "note": "not the Inception score"}
        records.append(record("classifier_score", score, protocol={**generated, **about}))
    return records
