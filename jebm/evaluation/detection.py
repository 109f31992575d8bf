"""Out-of-distribution detection of a trained model."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jebm.data import Source, to_float
from jebm.evaluation.records import Record, cost, file_stem
from jebm.files import write_arrays
from jebm.methods.base import Method, State
from jebm.metrics import detection as ood
from jebm.metrics.batches import map_batches
from jebm.metrics.outlier_sets import channel_statistics, compressed_size, match_resolutions, outliers

__all__ = ["evaluate_ood"]


NUM_RESAMPLES = 500  # of the bootstrap


def evaluate_ood(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    protocol: Mapping[str, Any],
    others: Mapping[str, np.ndarray] | None = None,
    generated: np.ndarray | None = None,
    batch_size: int = 256,
    directory: Path | None = None,
) -> list[Record]:
    """How well the energy tells test images from outliers: ``auroc_<set>``, ``aupr_<set>`` and ``fpr95_<set>``.

    The sets are those of `outlier_sets.outliers`, as many images each as there are test images, and ``others``, brought
    to one resolution with the test images by one filter (`outlier_sets.match_resolutions`). Each record has a bootstrap
    interval and, beside the energy's value, those of the images' compressed size and of their channels' means and
    deviations: an energy that does no better has learnt no more than complexity or brightness.

    Args:
        method: the bundle.
        state: its state.
        source: the data.
        key: a typed key.
        protocol: what all records share.
        others: names, and uint8 images [N, H, W, C] of any size.
        generated: uint8 [n, H, W, C], whose scores are written beside the others, for histograms; not recorded.
        batch_size: images scored at once.
        directory: where to write all scores, as ``ood_scores-*.npz`` and, for OpenOOD, ``openood-*/<set>.npz``.

    Raises:
        ValueError: energies that are NaN or infinite.
    """
    energy = jax.jit(lambda state, images: method.energy(state, to_float(images)))

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        energies = map_batches(lambda _, batch: energy(state, batch), images, batch_size)
        return {
            "energy": energies,
            "compressed_size": compressed_size(images),
            "channel_statistics": channel_statistics(images, source.train),
        }

    start = time.perf_counter()
    sets: dict[str, tuple[np.ndarray, np.ndarray, list[str]]] = {
        name: (source.test, images, []) for name, images in outliers(key, source.test).items()
    }
    for name, images in (others or {}).items():
        plain = _plain(name)
        plain += "-given" * (plain in sets)  # called as one of those that are made
        sets[plain] = match_resolutions(source.test, images, source.image_shape[0])
    inliers = scores(source.test)
    shared_time = time.perf_counter() - start
    records, arrays = [], {f"{kind}/in": values for kind, values in inliers.items()}
    for name, (inside_images, images, steps) in sets.items():
        start = time.perf_counter()
        inside = inliers if inside_images is source.test else scores(inside_images)
        outside = scores(images)
        n = len(inside_images)
        about = {
            **protocol,
            "split": "test",
            "score": "energy, higher is further from the data",
            "outliers": name,
            "n_outliers": len(images),
            "resize": steps,
            **cost("energy", n + len(images), shared_time + time.perf_counter() - start, 1),
        }
        for measure in (ood.auroc, ood.aupr, ood.fpr95):
            of = {f"{measure.__name__}_of_{kind}": measure(inside[kind], outside[kind]) for kind in inside}
            value = of.pop(f"{measure.__name__}_of_energy")
            interval = ood.bootstrap_interval(measure, inside["energy"], outside["energy"], num_resamples=NUM_RESAMPLES)
            how = {**about, "bootstrap_interval_95": list(interval), "num_resamples": NUM_RESAMPLES, **of}
            records.append(Record(f"{measure.__name__}_{name}", value, n, how))
        arrays |= {f"{kind}/{name}": values for kind, values in outside.items()}
        if inside is not inliers:
            arrays |= {f"{kind}/in-for-{name}": values for kind, values in inside.items()}
        if directory is not None:
            folder = directory / file_stem("openood", protocol)
            ood.write_scores(folder, name, inside["energy"], outside["energy"])
    if directory is not None:
        if generated is not None:
            arrays |= {f"{kind}/samples": values for kind, values in scores(generated[: len(source.test)]).items()}
        write_arrays(directory / f"{file_stem('ood_scores', protocol)}.npz", arrays)
    return records


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)
