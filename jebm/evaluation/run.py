"""`jebm evaluate`: the measurements of a trained run, written beside it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from jebm import data
from jebm.config import config_hash
from jebm.data import Source
from jebm.evaluation.measurements import DEFAULT_METRICS, evaluate
from jebm.evaluation.records import Record, run_protocol, write_record
from jebm.methods import FAMILIES, family_of
from jebm.metrics import inception
from jebm.metrics.features import Features, source_features
from jebm.metrics.inception_weights import HOW_TO, installed

if TYPE_CHECKING:
    from jebm.runs.run import Run

__all__ = ["choose_features", "evaluate_run", "with_weights"]

Space = Literal["auto", "inception", "substitute"]
Weights = Literal["raw", "ema"]
SMALLEST = 32  # pixels, for which Inception is taken unasked


def evaluate_run(
    run: "Run",
    *,
    metrics: tuple[str, ...] = DEFAULT_METRICS,
    seed: int | None = None,
    n: int | None = None,
    weights: Weights | None = None,
    space: Space = "auto",
    reference: Literal["test", "train"] = "test",
    outliers: tuple[str, ...] = (),
    say: Callable[[str], Any] = lambda line: None,
    on_record: Callable[[Record], Any] = lambda record: None,
    on_features: Callable[[int], Any] = lambda images: None,
) -> list[Record]:
    """Measures a run and writes records, generated images and raw scores into its directory's ``evaluation``.

    Args:
        run: see `jebm.load`.
        metrics: of `measure.METRICS`.
        seed: of the draws; by default ``evaluation.seed`` of the run.
        n: generated images; by default ``evaluation.num_samples``.
        weights: see `with_weights`; by default those that the configuration generates with.
        space: see `choose_features`.
        reference: the split that generated images are compared with.
        outliers: data sources whose test images the energy should tell from the run's.
        say: called with a line for the user.
        on_record: called with each record once it is written.
        on_features: called with the number of images that have just passed the feature network.

    Raises:
        ValueError: what the measurements refuse, as a `jebm.data.DataError` or `jebm.errors.ConfigError` where data or
            configuration are at fault.
    """
    from jebm.runs.run import load_source

    settings = run.config.evaluation
    seed = settings.seed if seed is None else seed
    source = load_source(run.config)
    others = {name: data.load(name) for name in outliers}
    digest = config_hash(run.config)  # of the training, whichever weights are looked at
    run, weights = with_weights(run, weights)
    protocol = run_protocol(source, seed=seed, step=run.step, weights=weights, config_hash=digest)
    protocol["chains"] = _dataclasses(run.config.method)
    features = choose_features(source, space, say) if {"generation", "long_run"} & set(metrics) else None
    if features is not None:
        features = features._replace(function=functools.partial(_counted, features.function, on_features))
    directory, chain = run.directory.evaluation, run.method.training_chain

    def keep(records: list[Record]) -> None:
        for record in records:
            write_record(directory, record)
            on_record(record)

    return evaluate(
        run.method, run.state, source, jax.random.key(seed), n=settings.num_samples if n is None else n,
        protocol=protocol, metrics=metrics, batch_size=settings.batch_size, features=features, reference=reference,
        evaluations_per_image=run.method.evaluations_per_image,
        others={_unique(name, other, others): other.test for name, other in others.items()},
        temperature=chain.temperature if chain else 1.0, chain=chain,
        directory=directory, on_records=keep,
    )  # fmt: skip


def choose_features(source: Source, space: Space, say: Callable[[str], Any]) -> Features:
    """Inception's features, or the declared substitute's (`features.source_features`).

    ``"auto"`` takes Inception where images have 32 pixels or more and its weights are installed; where only these are
    missing it says how to get them.

    Raises:
        ValueError: ``"inception"`` without weights.
    """
    suits = space == "auto" and min(source.image_shape[:2]) >= SMALLEST
    if space == "inception" or (suits and installed() is not None):
        return inception.inception_features()
    features = source_features(source)
    if suits:
        say(f"{HOW_TO}; until then distances are in the space {features.declaration['feature_space']}")
    return features


def with_weights(run: "Run", weights: Weights | None) -> tuple["Run", Weights]:
    """The run with its raw weights or their moving average in use, and which these are.

    Where the method's configuration has a field ``weights`` it is set. Else the family always uses its averages, and
    raw weights are put in their place in the state, see `jebm.methods.Family`.

    Raises:
        ValueError: a family without averages, asked for them.
    """
    from jebm.runs.run import build

    method = run.config.method
    if hasattr(method, "weights"):
        used: Weights = "raw" if method.weights == "raw" else "ema"
        if weights in (None, used):
            return run, used
        changed = dataclasses.replace(method, weights="raw" if weights == "raw" else "average")
        config = dataclasses.replace(run.config, method=changed)
        return dataclasses.replace(run, config=config, method=build(config)), weights
    averages = FAMILIES[family_of(method)].averages
    if not averages and weights == "ema":
        raise ValueError("this family keeps no moving average; leave --weights out, or give raw")
    if weights != "raw" or not averages:
        return run, "ema" if averages else "raw"
    raw = {average: getattr(run.state, plain) for average, plain in averages}
    return dataclasses.replace(run, state=run.state._replace(**raw)), "raw"


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
