"""A model's measurements: functions of a `Method`, its state, a `Source` and a key, that return records.

Images are brought to the 256 levels before they are compared, generated ones too. Batches have one shape, so
each function of the method compiles once.
"""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import Array

from jebm.data import Source, permutation, to_float, to_uint8
from jebm.energy import bind
from jebm.evaluation import annealed_importance as ais
from jebm.evaluation import ood
from jebm.evaluation.batches import map_batches
from jebm.evaluation.cache import write_arrays
from jebm.evaluation.features import Features, source_features
from jebm.evaluation.fidelity import ssim
from jebm.evaluation.generation import evaluate_generation, generate_images
from jebm.evaluation.long_run import evaluate_long_run
from jebm.evaluation.outliers import channel_statistics, compressed_size, one_resolution, outliers
from jebm.evaluation.records import Record, cost, file_stem
from jebm.evaluation.step_sizes import evaluate_step_sizes
from jebm.methods.base import Method, State, TrainingChain

__all__ = [
    "DEFAULT_METRICS", "METRICS", "evaluate", "evaluate_likelihood", "evaluate_ood", "evaluate_reconstruction",
    "evaluate_scores",
]  # fmt: skip

NUM_RESAMPLES = 500  # of the bootstrap


def evaluate_reconstruction(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    protocol: Mapping[str, Any],
    batch_size: int = 256,
) -> list[Record]:
    """Records of ``reconstruct(x)`` against x over the test images; none where there is no encoder.

    ``reconstruction_error``, the mean of ``(x - reconstruct(x))²`` over images and pixels, images in [-1, 1], the
    reconstruction as it comes. From the 256 levels, as files would hold them: ``reconstruction_psnr`` in dB of the
    mean error over all images, and ``reconstruction_ssim`` for images of 11 pixels and more.

    Raises:
        ValueError: an error that is NaN or infinite.
    """
    if method.reconstruct is None:
        return []
    reconstruct = method.reconstruct
    start = time.perf_counter()

    @jax.jit
    def reconstructed(key: Array, i: int, state: State, images: Array) -> Array:
        return reconstruct(jax.random.fold_in(key, i), state, to_float(images))

    x = map_batches(lambda i, batch: reconstructed(key, i, state, batch), source.test, batch_size)
    n = len(source.test)
    shared = {**protocol, "split": "test", **cost("reconstruct", n, time.perf_counter() - start, 1)}
    errors = np.square(x - np.asarray(to_float(source.test))).mean((1, 2, 3))
    scale = "mean squared error per number, images in [-1, 1]"
    records = [Record("reconstruction_error", float(errors.mean(dtype=np.float64)), n, {**shared, "scale": scale})]
    levels = np.asarray(to_uint8(x))
    error = np.square(levels.astype(np.float64) - source.test).mean()
    if error > 0:
        about = {**shared, "scale": "dB of the mean over images, range 255", "rounding": "uint8"}
        records.append(Record("reconstruction_psnr", float(10 * np.log10(255**2 / error)), n, about))
    if min(source.image_shape[:2]) >= 11:
        about = {**shared, "window": "Gaussian 11x11, deviation 1.5", "rounding": "uint8"}
        value = float(ssim(levels, source.test, data_range=255).mean())
        records.append(Record("reconstruction_ssim", value, n, about))
    return records


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

    A score is of a whole batch, so batches are of equal size, at most ``batch_size``, in a random order drawn once,
    and the few images that remain (fewer than there are batches) are left out.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    start = time.perf_counter()
    num_batches = -(-len(source.test) // batch_size)
    size = len(source.test) // num_batches
    # by a permutation: in the order of a file a batch may be of one class
    rows = permutation(0, 0, len(source.test))[: num_batches * size].reshape(num_batches, size)

    @jax.jit
    def scores(key: Array, i: int, state: State, images: Array) -> Mapping[str, Array]:
        return method.scores(jax.random.fold_in(key, i), state, to_float(images))

    values = [jax.device_get(scores(key, i, state, source.test[chosen])) for i, chosen in enumerate(rows)]
    n = num_batches * size
    shared = {
        **protocol,
        "split": "test",
        "batch_size": size,
        **cost("scores", n, time.perf_counter() - start),
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
    others: Mapping[str, np.ndarray] | None = None,
    generated: np.ndarray | None = None,
    batch_size: int = 256,
    directory: Path | None = None,
) -> list[Record]:
    """How well the energy tells test images from outliers: ``auroc_<set>``, ``aupr_<set>`` and ``fpr95_<set>``.

    The sets are those of `outliers.outliers`, as many images each as there are test images, and ``others``, brought to
    one resolution with the test images by one filter (`outliers.one_resolution`). Each record has a bootstrap interval
    and, beside the energy's value, those of the images' compressed size and of their channels' means and deviations:
    an energy that does no better has learnt no more than complexity or brightness.

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
        sets[plain] = one_resolution(source.test, images, source.image_shape[0])
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


def evaluate_likelihood(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    protocol: Mapping[str, Any],
    temperature: float = 1.0,
    num_levels: int = 1000,
    num_chains: int = 64,
    equilibration_steps: int = 1000,
    batch_size: int = 256,
) -> list[Record]:
    """Bounds on ``log Z`` and on the bits per dimension of test images, for ``p(x) = exp(-E(x)/T)/Z`` on [-1, 1]^D.

    Outside the box the density is taken to be 0: without that a network's energy need not have a Z. Records
    ``log_partition_lower`` and ``log_partition_upper`` (see `annealed_importance`), and ``bits_per_dimension_lower``
    and ``bits_per_dimension_upper`` with each: ``(mean E/T + log Z) / (D log 2) + log2 127.5``, of the 256 levels.

    The reverse chains start where the forward ones end, after more MALA steps: not at exact samples. The upper bound
    holds as far as these chains have reached the law; a narrow bracket is necessary, not sufficient. Where none of
    them is as low in energy as the mean test image they have not, and there is no record of an upper bound.

    Raises:
        ValueError: weights or energies that are NaN or infinite.
    """
    start = time.perf_counter()
    energy = bind(functools.partial(_energy_of_one, method, temperature), state)
    base = ais.Base(source.image_shape, "uniform")
    tune_key, forward_key, more_key, reverse_key = jax.random.split(key, 4)
    steps = ais.tune_steps(tune_key, energy, base, num_levels=num_levels)
    forward = ais.forward_weights(forward_key, energy, base, steps, num_chains=num_chains)
    samples = ais.equilibrate(more_key, energy, base, steps[-1], forward.positions, equilibration_steps)
    reverse = ais.reverse_weights(reverse_key, energy, base, steps, samples)
    found = ais.bracket(forward.log_weights, reverse.log_weights)
    reached = float(jax.jit(jax.vmap(energy))(samples).min())
    score = jax.jit(lambda state, images: method.energy(state, to_float(images)) / temperature)
    energies = map_batches(lambda _, batch: score(state, batch), source.test, batch_size).astype(np.float64)
    dimension = int(np.prod(source.image_shape))
    about = {
        **protocol,
        "density": "exp(-E(x)/T)/Z on the box [-1, 1]^D, 0 outside",
        "temperature": temperature,
        "base": "uniform on the box",
        "num_levels": num_levels,
        "transition": "one MALA step a level, step sizes tuned beforehand",
        "reverse_start": f"ends of the forward chains after {equilibration_steps} more steps, not exact samples",
        "lowest_reverse_start_energy": reached,
        "acceptance": [forward.acceptance, reverse.acceptance],
        **found._asdict(),
        **cost("energy", num_chains, time.perf_counter() - start, 2 * num_levels + equilibration_steps),
    }
    bits = lambda log_z: (energies.mean() + log_z) / (dimension * np.log(2)) + np.log2(127.5)  # noqa: E731
    mean_energy = {**about, "split": "test", "mean_energy": float(energies.mean()), "n_chains": num_chains}
    records = [
        Record("log_partition_lower", found.lower, num_chains, about),
        Record("bits_per_dimension_lower", float(bits(found.lower)), len(energies), mean_energy),
    ]
    if reached <= energies.mean():
        records += [
            Record("log_partition_upper", found.upper, num_chains, about),
            Record("bits_per_dimension_upper", float(bits(found.upper)), len(energies), mean_energy),
        ]
    return records


def _energy_of_one(method: Method, temperature: float, state: State, x: Array) -> Array:
    return method.energy(state, x[None])[0] / temperature


METRICS: tuple[str, ...] = ("generation", "reconstruction", "scores", "ood", "likelihood", "long_run", "step_sizes")
"""What `evaluate` can measure."""

DEFAULT_METRICS: tuple[str, ...] = METRICS[:4]
"""What it measures unless told otherwise: the others take long."""


def evaluate(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    n: int,
    protocol: Mapping[str, Any],
    metrics: tuple[str, ...] = DEFAULT_METRICS,
    batch_size: int = 256,
    evaluations_per_image: int | None = None,
    features: Features | None = None,
    reference: Literal["test", "train"] = "test",
    others: Mapping[str, np.ndarray] | None = None,
    temperature: float = 1.0,
    chain: TrainingChain | None = None,
    directory: Path | None = None,
    on_records: Callable[[list[Record]], Any] = lambda records: None,
) -> list[Record]:
    """All records of the named ``metrics``, in order; ``on_records`` sees each group as soon as it is there.

    Each metric has its own key, whichever others are asked for.

    Args:
        method: the bundle.
        state: its state.
        source: the data.
        key: a typed key.
        n: how many images are generated.
        protocol: what all records share, see `records.run_protocol`.
        metrics: of `METRICS`.
        batch_size: images at once.
        evaluations_per_image: network evaluations that one generated image costs.
        features: the feature space; by default `features.source_features`.
        reference: the split that generated images are compared with.
        others: image sets for `evaluate_ood`.
        temperature: T of ``method.energy``, for ``likelihood`` and ``step_sizes``.
        chain: for ``long_run`` and ``step_sizes``, see `jebm.methods.base.Method`.
        directory: where generated images, raw scores and chains are kept beside the records; None: nowhere.
        on_records: called with each group.

    Raises:
        ValueError: a metric that is not in `METRICS`, ``long_run`` without a chain, or what the single evaluations
            refuse.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"no metric '{unknown[0]}'; there are {', '.join(METRICS)}")
    if "long_run" in metrics and chain is None:
        raise ValueError("long_run: this family has no chain on images in training; leave the metric out")
    if features is None and {"generation", "long_run"} & set(metrics):
        features = source_features(source)
    records: list[Record] = []
    images = None
    given = (method, state, source)
    for metric in metrics:
        own_key = jax.random.fold_in(key, METRICS.index(metric))
        if metric == "generation":
            assert features is not None
            images = generate_images(method, state, own_key, n, batch_size=batch_size)
            if directory is not None:
                write_arrays(directory / f"{file_stem('samples', protocol)}-n{n}.npz", {"x": images})
            group = evaluate_generation(
                *given, own_key, n, features=features, protocol=protocol, reference=reference, batch_size=batch_size,
                evaluations_per_image=evaluations_per_image, images=images,
            )  # fmt: skip
        elif metric == "reconstruction":
            group = evaluate_reconstruction(*given, own_key, protocol=protocol, batch_size=batch_size)
        elif metric == "scores":
            group = evaluate_scores(*given, own_key, protocol=protocol, batch_size=batch_size)
        elif metric == "ood":
            group = evaluate_ood(
                *given, own_key, protocol=protocol, others=others, generated=images, batch_size=batch_size,
                directory=directory,
            )  # fmt: skip
        elif metric == "likelihood":
            group = evaluate_likelihood(
                *given, own_key, protocol=protocol, temperature=temperature, batch_size=batch_size
            )
        elif metric == "step_sizes":
            group = evaluate_step_sizes(
                method, state, own_key, protocol=protocol, chain=chain, temperature=temperature
            )
        else:
            assert features is not None
            assert chain is not None
            group, run = evaluate_long_run(*given, own_key, chain=chain, features=features, protocol=protocol)
            if directory is not None:
                write_arrays(directory / f"{file_stem('long_run', protocol)}.npz", run._asdict())
        on_records(group)
        records += group
    return records


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)
