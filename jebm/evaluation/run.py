"""`jebm evaluate`: the measurements of a trained run, written beside it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from jebm import data
from jebm.config import config_hash
from jebm.data import Source
from jebm.errors import ConfigError
from jebm.evaluation.measurements import DEFAULT_METRICS, evaluate
from jebm.evaluation.records import Record, run_protocol, write_record
from jebm.evaluation.subject import Subject
from jebm.methods.base import State, Weights
from jebm.methods.shared import has_ema, with_weights
from jebm.metrics import inception
from jebm.metrics.features import Features, source_features
from jebm.metrics.inception_weights import HOW_TO, installed
from jebm.runs.drawing import Draw
from jebm.runs.run import Run, load_source

__all__ = ["choose_features", "evaluate_run", "run_weights"]

Space = Literal["auto", "inception", "substitute"]
SMALLEST = 32  # pixels, for which Inception is taken unasked


def evaluate_run(
    run: Run,
    *,
    metrics: tuple[str, ...] = DEFAULT_METRICS,
    seed: int | None = None,
    n: int | None = None,
    weights: Weights | None = None,
    space: Space = "auto",
    reference: Literal["test", "train", "validation"] = "test",
    outliers: tuple[str, ...] = (),
    num_resamples: int = 500,
    longest: int = 100,
    draw: Draw | None = None,
    log: Callable[[str], Any] = lambda line: None,
    on_record: Callable[[Record], Any] = lambda record: None,
    on_features: Callable[[int], Any] = lambda images: None,
) -> list[Record]:
    """Measures a run and writes records, generated images and raw scores into its directory's ``evaluation``.

    Args:
        run: see `jebm.load`.
        metrics: of `jebm.evaluation.METRICS`.
        seed: of the draws; by default ``evaluation.seed`` of the run.
        n: generated images; by default ``evaluation.num_samples``.
        weights: raw weights or their moving average; by default those that the family generates with.
        space: see `choose_features`.
        reference: the split that generated images are compared with; ``"validation"`` stands for the test images in all
            measurements.
        outliers: data sources whose test images the energy should separate from the run's.
        num_resamples: bootstrap resamples of an interval.
        longest: of a long run, times the steps of training: 1, 10, 100 or 1000.
        draw: how batches of images are generated, with the ``weights``; None: by the devices of this process.
        log: called with a line for the user.
        on_record: called with each record once it is written.
        on_features: called with the number of images that have just passed the feature network.

    Raises:
        ValueError: what the measurements refuse, as a `jebm.data.DataError` or `jebm.errors.ConfigError` where data or
            configuration are at fault.
    """
    settings = run.config.evaluation
    seed = settings.seed if seed is None else seed
    source = load_source(run.config, run.method.image_shape)
    others = {name: data.load(name) for name in outliers}
    digest = config_hash(run.config)  # of the training, whichever weights are looked at
    state, weights = run_weights(run, weights)
    protocol = run_protocol(source, seed=seed, step=run.step, weights=weights, config_hash=digest)
    protocol["chains"] = _dataclasses(run.config.method)
    features = choose_features(source, space, log) if {"generation", "long_run"} & set(metrics) else None
    if features is not None:
        features = features._replace(function=functools.partial(_counted, features.function, on_features))
    directory = run.directory.evaluation

    def keep(records: list[Record]) -> None:
        for record in records:
            write_record(directory, record)
            on_record(record)

    subject = Subject(
        method=run.method,
        state=state,
        source=source,
        protocol=protocol,
        features=features,
        num_samples=settings.num_samples if n is None else n,
        batch_size=settings.batch_size,
        reference=reference,
        others={_unique(name, other, others): other.test for name, other in others.items()},
        num_resamples=num_resamples,
        longest=longest,
        draw=draw,
        directory=directory,
    )
    return evaluate(jax.random.key(seed), subject, metrics, keep)


def choose_features(source: Source, space: Space, log: Callable[[str], Any]) -> Features:
    """Inception's features, or the declared substitute's (`features.source_features`).

    ``"auto"`` takes Inception where images have 32 pixels or more and its weights are installed; where only these are
    missing, ``log`` is called with how to get them.

    Raises:
        ValueError: ``"inception"`` without weights.
    """
    suits = space == "auto" and min(source.image_shape[:2]) >= SMALLEST
    if space == "inception" or (suits and installed() is not None):
        return inception.inception_features()
    features = source_features(source)
    if suits:
        log(f"{HOW_TO}; until then distances are in the space {features.declaration['feature_space']}")
    return features


def run_weights(run: Run, weights: Weights | None = None) -> tuple[State, Weights]:
    """The run's state with raw weights or their moving average in use, and which these are.

    Args:
        run: the run.
        weights: None: those that the family generates with.

    Raises:
        ConfigError: averages of a model that keeps none; other weights than a file of `jebm export` holds.
    """
    if weights not in (None, held := run.meta.get("weights", weights)):
        raise ConfigError(f"weights={weights!r}: {run.meta['name']} holds its {held!r} weights alone")
    if weights is None:
        return run.state, run.method.weights if has_ema(run.state) else "raw"
    if weights == "raw" and not has_ema(run.state):
        return run.state, "raw"
    return with_weights(run.state, weights), weights


def _counted(function: Callable[[np.ndarray], np.ndarray], count: Callable[[int], Any], x: np.ndarray) -> np.ndarray:
    values = function(x)
    count(len(x))
    return values


def _dataclasses(config: Any) -> dict[str, Any]:
    """The parts of a method's configuration that are records of their own: its chains."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: dataclasses.asdict(value) for name, value in values.items() if dataclasses.is_dataclass(value)}  # type: ignore[arg-type]


def _unique(name: str, source: Source, all_of_them: dict[str, Source]) -> str:
    """A source's short name, or what the user typed where two have the same."""
    return source.name if sum(other.name == source.name for other in all_of_them.values()) == 1 else name
