"""A model's measurements: functions of a `Method`, its state, a `Source` and a key, that return records.

Images are brought to the 256 levels before they are compared, generated ones too. Batches have one shape, so
each function of the method compiles once.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import Array

from jebm.data import Source
from jebm.evaluation.detection import evaluate_ood
from jebm.evaluation.generation import evaluate_generation, generate_images
from jebm.evaluation.held_out import evaluate_scores
from jebm.evaluation.likelihood import evaluate_likelihood
from jebm.evaluation.long_run import evaluate_long_run
from jebm.evaluation.reconstruction import evaluate_reconstruction
from jebm.evaluation.records import Record, file_stem
from jebm.evaluation.step_sizes import evaluate_step_sizes
from jebm.files import write_arrays
from jebm.methods.base import Chain, Method, State
from jebm.metrics.features import Features, source_features

__all__ = ["DEFAULT_METRICS", "METRICS", "evaluate"]

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
    chain: Chain | None = None,
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
            group = evaluate_step_sizes(method, state, own_key, protocol=protocol, chain=chain, temperature=temperature)
        else:
            assert features is not None
            assert chain is not None
            group, run = evaluate_long_run(*given, own_key, chain=chain, features=features, protocol=protocol)
            if directory is not None:
                write_arrays(directory / f"{file_stem('long_run', protocol)}.npz", run._asdict())
        on_records(group)
        records += group
    return records
