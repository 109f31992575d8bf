"""Out-of-distribution detection of a trained model."""

import time

import numpy as np
from jax import Array

from jebm.evaluation.records import Record, cost, file_stem
from jebm.evaluation.subject import Subject, energies
from jebm.files import write_arrays
from jebm.metrics import detection
from jebm.metrics.outlier_sets import channel_statistics, compressed_size, match_resolutions, outliers

__all__ = ["evaluate_ood"]


def evaluate_ood(key: Array, subject: Subject) -> list[Record]:
    """Separation of test images from outliers by the energy: ``auroc_<set>``, ``aupr_<set>`` and ``fpr95_<set>``.

    The sets are those of `outlier_sets.outliers`, as many images each as there are test images, and ``others``, brought
    to one resolution with the test images by one filter (`outlier_sets.match_resolutions`). Each record has a bootstrap
    interval and, beside the energy's value, those of the images' compressed size and of their channels' means and
    deviations: an energy that does no better has learnt no more than complexity or brightness.

    Generated images (``subject.samples``) are scored beside the others for histograms, and not recorded. In the
    subject's directory all scores are written, as ``ood_scores-*.npz`` and, for OpenOOD, ``openood-*/<set>.npz``.

    Raises:
        ValueError: energies that are NaN or infinite.
    """
    energy, source, directory = energies(subject), subject.source, subject.directory

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "energy": energy(images),
            "compressed_size": compressed_size(images),
            "channel_statistics": channel_statistics(images, source.train),
        }

    start = time.perf_counter()
    sets: dict[str, tuple[np.ndarray, np.ndarray, list[str]]] = {
        name: (subject.held_out, images, []) for name, images in outliers(key, subject.held_out).items()
    }
    for name, images in subject.others.items():
        plain = _plain(name)
        plain += "-given" * (plain in sets)  # called as one of those that are made
        sets[plain] = match_resolutions(subject.held_out, images, source.image_shape[0])
    inliers = scores(subject.held_out)
    shared_time = time.perf_counter() - start
    records, arrays = [], {f"{kind}/in": values for kind, values in inliers.items()}
    for name, (inside_images, images, steps) in sets.items():
        start = time.perf_counter()
        inside = inliers if inside_images is subject.held_out else scores(inside_images)
        outside = scores(images)
        n = len(inside_images)
        about = {
            **subject.protocol,
            "split": subject.split,
            "score": "energy, higher is further from the data",
            "outliers": name,
            "n_outliers": len(images),
            "resize": steps,
            **cost("energy", n + len(images), shared_time + time.perf_counter() - start, 1),
        }
        for measure in (detection.auroc, detection.aupr, detection.fpr95):
            values = {f"{measure.__name__}_of_{kind}": measure(inside[kind], outside[kind]) for kind in inside}
            value = values.pop(f"{measure.__name__}_of_energy")
            interval = detection.bootstrap_interval(
                measure, inside["energy"], outside["energy"], num_resamples=subject.num_resamples
            )
            how = {**about, "bootstrap_interval_95": list(interval), "num_resamples": subject.num_resamples, **values}
            records.append(Record(f"{measure.__name__}_{name}", value, n, how))
        arrays |= {f"{kind}/{name}": values for kind, values in outside.items()}
        if inside is not inliers:
            arrays |= {f"{kind}/in-for-{name}": values for kind, values in inside.items()}
        if directory is not None:
            folder = directory / file_stem("openood", subject.protocol)
            detection.write_scores(folder, name, inside["energy"], outside["energy"])
    if directory is not None:
        if subject.samples is not None:
            some = subject.samples.images[: len(subject.held_out)]
            arrays |= {f"{kind}/samples": values for kind, values in scores(some).items()}
        write_arrays(directory / f"{file_stem('ood_scores', subject.protocol)}.npz", arrays)
    return records


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)
