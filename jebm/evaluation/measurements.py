"""A model's measurements: functions of a key and a `Subject` that return records.

Images are brought to the 256 levels before they are compared, generated ones too. Batches have one shape, so each
function of the method compiles once.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jebm.errors import ConfigError
from jebm.evaluation.detection import evaluate_ood
from jebm.evaluation.generation import draw_samples, evaluate_generation
from jebm.evaluation.held_out import evaluate_scores
from jebm.evaluation.likelihood import evaluate_likelihood
from jebm.evaluation.long_run import evaluate_long_run
from jebm.evaluation.reconstruction import evaluate_reconstruction
from jebm.evaluation.records import Record
from jebm.evaluation.step_sizes import evaluate_step_sizes
from jebm.evaluation.subject import Subject

__all__ = ["DEFAULT_METRICS", "METRICS", "evaluate"]

METRICS: dict[str, Callable[[Array, Subject], list[Record]]] = {
    "generation": evaluate_generation,
    "reconstruction": evaluate_reconstruction,
    "scores": evaluate_scores,
    "ood": evaluate_ood,
    "likelihood": evaluate_likelihood,
    "long_run": evaluate_long_run,
    "step_sizes": evaluate_step_sizes,
}
"""The metrics of `evaluate`."""

DEFAULT_METRICS: tuple[str, ...] = tuple(METRICS)[:4]
"""Those of them that are measured by default; the others take long."""

OF_FEATURES = {"generation", "long_run"}


def evaluate(
    key: Array,
    subject: Subject,
    metrics: tuple[str, ...] = DEFAULT_METRICS,
    on_records: Callable[[list[Record]], Any] = lambda records: None,
) -> list[Record]:
    """All records of the named ``metrics``, in order.

    Each metric has its own key, whichever others are asked for.

    Args:
        key: a typed key.
        subject: what is measured.
        metrics: of `METRICS`.
        on_records: called with the records of each metric as soon as they are there.

    Raises:
        ConfigError: a metric that is not in `METRICS`, or ``long_run`` of a family without a chain on images.
        ValueError: what the single measurements refuse.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise ConfigError(f"no metric '{metric}'; there are {', '.join(METRICS)}")
    if "long_run" in metrics and subject.method.chain is None:
        raise ConfigError("long_run: this family has no chain on images in training; leave the metric out")
    if OF_FEATURES & set(metrics):
        subject = subject._replace(features=subject.feature_space())
    records: list[Record] = []
    for metric in metrics:
        own_key = jax.random.fold_in(key, list(METRICS).index(metric))
        if metric == "generation" and subject.samples is None:
            subject = draw_samples(own_key, subject)  # kept for the metrics after it
        group = METRICS[metric](own_key, subject)
        on_records(group)
        records += group
    return records
