"""A model's measurements: functions of a `Method`, its state, a `Source` and a key, that return records.

Images are brought to the 256 levels before they are compared, generated ones too. Batches have one shape, so
each function of the method compiles once.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.data import Source, permutation, to_float, to_uint8
from jebm.evaluation.batches import map_batches
from jebm.evaluation.features import Features, source_features
from jebm.evaluation.frechet import frechet_distance, statistics
from jebm.evaluation.ood import auroc, auroc_interval, compressed_size, outliers
from jebm.evaluation.records import Record
from jebm.methods.base import Method, State

__all__ = [
    "METRICS", "evaluate", "evaluate_generation", "evaluate_ood", "evaluate_reconstruction",
    "evaluate_scores", "generate_images",
]  # fmt: skip


def generate_images(method: Method, state: State, key: Array, n: int, *, batch_size: int = 256) -> np.ndarray:
    """``n`` generated images as a file would hold them: uint8 [n, H, W, C].

    Batch ``i`` has the key ``fold_in(key, i)``; each has ``min(batch_size, n)`` images, a surplus is dropped.

    Raises:
        ValueError: generated images that hold NaN or an infinity; n or a batch size below 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} images in batches of {batch_size}; both must be at least 1")
    size = min(batch_size, n)

    @jax.jit
    def one_batch(key: Array, i: int, state: State) -> tuple[Array, Array]:
        images = method.generate(jax.random.fold_in(key, i), state, size)
        return to_uint8(images), jnp.isfinite(images).all((1, 2, 3))

    batches = [jax.device_get(one_batch(key, i, state)) for i in range(-(-n // size))]
    images, finite = (np.concatenate(parts)[:n] for parts in zip(*batches, strict=True))
    if not finite.all():
        raise ValueError(f"{n - finite.sum():,} of {n:,} generated images hold NaN or an infinity")
    return images


def evaluate_generation(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    n: int,
    *,
    features: Features,
    protocol: Mapping[str, Any],
    batch_size: int = 256,
    evaluations_per_image: int | None = None,
) -> list[Record]:
    """The Fréchet distance of ``n`` generated images to the test images, and what real images get.

    Records ``frechet_distance`` and, for scale, ``frechet_distance_real``: as many training images (all, if
    there are fewer than ``n``) against the same test images.

    Args:
        method: the bundle.
        state: its state.
        source: real images.
        key: a typed key.
        n: how many images to generate.
        features: the feature space.
        protocol: what all records of this evaluation share, see `records.run_protocol`.
        batch_size: images generated at once.
        evaluations_per_image: network evaluations that one generated image costs, as far as the caller knows.

    Raises:
        ValueError: fewer than two images on a side, generated images that are not finite or of another size.
    """
    start = time.perf_counter()
    images = generate_images(method, state, key, n, batch_size=batch_size)
    generation_time = time.perf_counter() - start
    held_out = statistics(features.function(source.test))
    distance = frechet_distance(statistics(features.function(images)), held_out)
    model_time = time.perf_counter() - start

    start = time.perf_counter()
    chosen = permutation(0, 0, len(source.train))[:n]
    real = frechet_distance(statistics(features.function(source.train[np.sort(chosen)])), held_out)
    common = {
        **protocol,
        "split": "test",
        "n_reference": len(source.test),
        "features": features.declaration,
        "rounding": "uint8",
    }
    return [
        Record(
            "frechet_distance",
            distance,
            n,
            {
                **common,
                **_cost("generate", n, model_time, evaluations_per_image),
                "generation_time_seconds": generation_time,
                "batch_size": batch_size,
            },
        ),
        Record(
            "frechet_distance_real",
            real,
            len(chosen),
            {**common, "compared": "training images", **_cost(None, 0, time.perf_counter() - start)},
        ),
    ]


def evaluate_reconstruction(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    protocol: Mapping[str, Any],
    batch_size: int = 256,
) -> list[Record]:
    """The record ``reconstruction_error``: the mean of ``(x - reconstruct(x))²`` over test images and pixels.

    Images are in [-1, 1], the reconstruction as it comes, not rounded. Nothing where there is no encoder.

    Raises:
        ValueError: an error that is NaN or infinite.
    """
    if method.reconstruct is None:
        return []
    reconstruct = method.reconstruct
    start = time.perf_counter()

    @jax.jit
    def errors(key: Array, i: int, state: State, images: Array) -> Array:
        x = to_float(images)
        return jnp.square(reconstruct(jax.random.fold_in(key, i), state, x) - x).mean((1, 2, 3))

    values = map_batches(lambda i, batch: errors(key, i, state, batch), source.test, batch_size)
    n, scale = len(source.test), "mean squared error per number, images in [-1, 1]"
    cost = _cost("reconstruct", n, time.perf_counter() - start, 1)
    value = float(values.mean(dtype=np.float64))
    return [Record("reconstruction_error", value, n, {**protocol, "split": "test", "scale": scale, **cost})]


def evaluate_scores(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    protocol: Mapping[str, Any],
    batch_size: int = 256,
) -> list[Record]:
    """The family's own ``method.scores``, averaged over test batches: a record ``score_<name>`` each.

    A score is of a whole batch, so batches are of equal size, at most ``batch_size``, and the few images that
    remain (fewer than there are batches) are left out.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    start = time.perf_counter()
    num_batches = -(-len(source.test) // batch_size)
    size = len(source.test) // num_batches
    batches = source.test[: num_batches * size].reshape(num_batches, size, *source.image_shape)

    @jax.jit
    def scores(key: Array, i: int, state: State, images: Array) -> Mapping[str, Array]:
        return method.scores(jax.random.fold_in(key, i), state, to_float(images))

    values = [jax.device_get(scores(key, i, state, batch)) for i, batch in enumerate(batches)]
    n = num_batches * size
    shared = {
        **protocol,
        "split": "test",
        "batch_size": size,
        **_cost("scores", n, time.perf_counter() - start),
    }
    return [
        Record(f"score_{name}", float(np.mean([v[name] for v in values], dtype=np.float64)), n, shared)
        for name in sorted(values[0])
    ]


def evaluate_ood(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    protocol: Mapping[str, Any],
    batch_size: int = 256,
) -> list[Record]:
    """How well the energy tells test images from outliers: a record ``auroc_<outliers>`` for each set.

    The sets are those of `ood.outliers`, as many images each as there are test images. The protocol has a
    bootstrap interval and what the compressed size of the images alone achieves.

    Raises:
        ValueError: energies that are NaN or infinite.
    """
    energy = jax.jit(lambda state, images: method.energy(state, to_float(images)))

    def energies(images: np.ndarray) -> np.ndarray:
        return map_batches(lambda _, batch: energy(state, batch), images, batch_size)

    start = time.perf_counter()
    inside, inside_size, n = energies(source.test), compressed_size(source.test), len(source.test)
    inside_time = time.perf_counter() - start
    records = []
    for name, images in outliers(key, source.test).items():
        start = time.perf_counter()
        outside = energies(images)
        about = {
            **protocol,
            "split": "test",
            "score": "energy, higher is further from the data",
            "outliers": name,
            "n_outliers": len(images),
            "bootstrap_interval_95": list(auroc_interval(inside, outside)),
            "auroc_of_compressed_size": auroc(inside_size, compressed_size(images)),
            **_cost("energy", n + len(images), inside_time + time.perf_counter() - start, 1),
        }
        records.append(Record(f"auroc_{name}", auroc(inside, outside), n, about))
    return records


METRICS: tuple[str, ...] = ("generation", "reconstruction", "scores", "ood")
"""What `evaluate` can measure."""


def evaluate(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    n: int,
    protocol: Mapping[str, Any],
    metrics: tuple[str, ...] = METRICS,
    batch_size: int = 256,
    evaluations_per_image: int | None = None,
    on_records: Callable[[list[Record]], Any] = lambda records: None,
) -> list[Record]:
    """All records of the named ``metrics``, in order; ``on_records`` sees each group as soon as it is there.

    ``n`` images are generated, compared by `features.source_features`. Each metric has its own key, whichever
    others are asked for.

    Raises:
        ValueError: a metric that is not in `METRICS`, or what the single evaluations refuse.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"no metric '{unknown[0]}'; there are {', '.join(METRICS)}")
    records: list[Record] = []
    for metric in metrics:
        own_key = jax.random.fold_in(key, METRICS.index(metric))
        if metric == "generation":
            group = evaluate_generation(
                method, state, source, own_key, n, features=source_features(source), protocol=protocol,
                batch_size=batch_size, evaluations_per_image=evaluations_per_image,
            )  # fmt: skip
        else:
            function = {
                "reconstruction": evaluate_reconstruction, "scores": evaluate_scores, "ood": evaluate_ood
            }[metric]  # fmt: skip
            group = function(method, state, source, own_key, protocol=protocol, batch_size=batch_size)
        on_records(group)
        records += group
    return records


def _cost(
    function: str | None, images: int, seconds: float, evaluations_per_image: int | None = None
) -> dict[str, Any]:
    return {
        "method_function": function,
        "images_through_method": images,
        "network_evaluations_per_image": evaluations_per_image,
        "wall_time_seconds": seconds,
    }
