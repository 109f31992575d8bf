"""Training in a notebook: `jebm.fit` and `jebm.refine`, over the same function as ``jebm train``."""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from jebm import files, images, paths
from jebm.config import Config
from jebm.data import ImageSet, Source, points
from jebm.energy import Generator
from jebm.errors import ConfigError, DataError
from jebm.evaluation.run import evaluate_run
from jebm.methods import HatEBMConfig
from jebm.methods.hat.config import GIVEN
from jebm.report import live, looks
from jebm.runs.directory import RunDirectory
from jebm.runs.run import Run, load
from jebm.training.loop import train

__all__ = ["fit", "refine"]

Data = str | os.PathLike[str] | Source | np.ndarray | Array


def fit(
    config: Config,
    data: Data | None = None,
    workdir: str | os.PathLike[str] | None = None,
    *,
    log: Callable[[str], Any] = print,
) -> Run:
    """Trains a configuration and returns the run, at its newest checkpoint.

    It is `jebm.training.train`, as ``jebm train`` calls it: a second call with the same ``workdir`` resumes from the
    newest checkpoint, with the same bits; a run that diverges recovers; metrics, sample grids and a report are in
    ``run.directory``. An interrupt saves a checkpoint first.

        run = jebm.fit(config, images, "runs/mine")     # uint8 [N, H, W, C]

    Args:
        config: the experiment; with ``training.evaluate_at_end`` it is scored, too.
        data: images, instead of those of ``config.data.source``: an array [N, H, W] or [N, H, W, C], uint8 or floating
            in [-1, 1] (rounded to 256 levels), a tenth of which is held out; a `jebm.data.Source` in memory; the name
            of a source, as ``"digits"``; or the path of an ``.npz`` file or of a folder of pictures. Arrays are kept in
            ``data.npz`` of the run directory, so that the run is whole without them.
        workdir: the run directory; by default a new temporary one.
        log: receives lines for the user.

    Raises:
        DataError: data that are no images of these.
        ConfigError: as `jebm.training.train`; other images than those that the run in ``workdir`` was trained on.
        Diverged: and no recovery is left.
        KeyboardInterrupt: after an interrupt, once the checkpoint is written.
    """
    return _fit(config, data, workdir, log, None)


def refine(
    generator: Generator,
    data: Data | None,
    config: Config,
    workdir: str | os.PathLike[str] | None = None,
    *,
    log: Callable[[str], Any] = print,
) -> Run:
    """Trains an energy over any pure generator (Hat EBM, arXiv 2210.16486) and returns the run.

        hat = jebm.methods.HatEBMConfig("refinement", generator="given", latent_size=16, ...)
        run = jebm.refine(jebm.energy.bind(decode, weights), images, jebm.config.Config(hat), "runs/refined")

    The generator's leaves (`jebm.energy.bind`, or the parameters of an nnx or equinox module) are copied into the run's
    checkpoints and stay as they are; its code is not, so that `jebm.load` of the run takes ``generator`` again.

    Args:
        generator: of one latent [latent_size], for a retrofit [H/2, W/2, 1], to one image [H, W, C] in [-1, 1]; pure
            and differentiable.
        data: as in `fit`; None for those of ``config.data.source``.
        config: an experiment whose method is a `jebm.methods.HatEBMConfig` with ``generator="given"``, a refinement or
            a retrofit.
        workdir: as in `fit`.
        log: as in `fit`.

    Raises:
        ConfigError: another method, or a generator of other shapes; and as `fit`.
    """
    if not isinstance(config.method, HatEBMConfig) or config.method.generator != GIVEN:
        raise ConfigError(
            f"refine needs a configuration of HatEBMConfig with generator={GIVEN!r}, got {type(config.method).__name__}"
            f"{_generator_of(config)}"
        )
    return _fit(config, data, workdir, log, generator)


def _generator_of(config: Config) -> str:
    given = getattr(config.method, "generator", None)
    return "" if given is None else f" with generator={given!r}"


def _fit(
    config: Config, data: Data | None, workdir: str | os.PathLike[str] | None, log: Callable[[str], Any],
    generator: Generator | None,
) -> Run:  # fmt: skip
    directory = RunDirectory(_folder(workdir))
    config = config if data is None else _on(config, data, directory)
    try:
        with live.during(directory, "jebm.fit" if generator is None else "jebm.refine", log) as on_grid:
            train(config, directory, log, generator=generator, on_grid=on_grid)
    except SystemExit:  # a signal; a notebook's kernel is to live on
        raise KeyboardInterrupt("the training is saved: the same call with this workdir resumes") from None
    run = load(directory.path, generator=generator)
    if config.training.evaluate_at_end:
        evaluate_run(run, log=log)
    looks.report(run)
    return run


def _folder(workdir: str | os.PathLike[str] | None) -> paths.Path:
    if workdir is None:
        return pathlib.Path(tempfile.mkdtemp(prefix="jebm-"))
    try:
        return paths.require_checkpoints(paths.of(workdir))
    except ValueError as error:
        raise ConfigError(f"workdir={os.fspath(workdir)!r}: {error}") from None


def _on(config: Config, data: Data, directory: RunDirectory) -> Config:
    """The configuration with these data as its source."""
    if isinstance(data, str | os.PathLike):
        return dataclasses.replace(config, data=dataclasses.replace(config.data, source=_name(os.fspath(data))))
    arrays = _of_source(data) if isinstance(data, Source) else {"x": _levels(data)}
    path = (directory.path if paths.is_remote(directory.path) else directory.path.resolve()) / "data.npz"
    if path.exists():
        with path.open("rb") as stream, np.load(stream) as kept:
            same = set(kept.files) == set(arrays) and all(np.array_equal(kept[name], arrays[name]) for name in arrays)
        if not same:
            raise ConfigError(f"{directory.path} holds a run on other images: take another workdir, or remove that one")
    else:
        files.write_arrays(path, arrays)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=f"npz:{path}"))


def _name(text: str) -> str:
    """The name of a source; a path that is there is a folder of pictures, or an archive."""
    if ":/" in text:
        return f"npz:{text}" if text.endswith(".npz") and text.startswith(("gs://", "s3://")) else text
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        return f"folder:{path}"
    return f"npz:{path}" if path.suffix == ".npz" and ":" not in text else text


def _of_source(source: Source) -> dict[str, np.ndarray]:
    if isinstance(source.train, ImageSet) or isinstance(source.test, ImageSet):
        raise DataError(f"the images of {source.name!r} are read from files as they are needed: give the name")
    if source.image_shape == points.SHAPE:
        raise DataError(f"{source.name!r} is a set of points: give the name, 'points:{source.name}'")
    labels = {"y_train": source.train_labels, "y_test": source.test_labels}
    return {
        "x_train": source.train, "x_test": source.test, **{n: a for n, a in labels.items() if a is not None}
    }  # fmt: skip


def _levels(data: Any) -> np.ndarray:
    """An array of images as uint8 [N, H, W, C]."""
    array = np.asarray(data)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise DataError(
            f"data have shape {np.shape(data)}; images are [N, H, W] or [N, H, W, C] with C = 1 or 3 (the rules of "
            "jebm.learning take arrays of any shape)"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"data are {array.dtype}; images are uint8 in 0..255, or floating in [-1, 1]")
    low, high = float(np.min(array)), float(np.max(array))
    if low < -1.0 or high > 1.0:
        raise DataError(f"data run from {low:.4g} to {high:.4g}; floating images lie in [-1, 1]: rescale them")
    if low >= 0.0:
        raise DataError(
            f"data run from {low:.4g} to {high:.4g}; floating images lie in [-1, 1], black being -1: pass 2 * data - 1"
        )
    return images.to_uint8(array)
