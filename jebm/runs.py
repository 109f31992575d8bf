"""The run directory, and `jebm.load`: a trained model, ready to sample, score or restore."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jebm import images, methods, paths
from jebm.config import Config, ConfigError, from_dict, to_dict
from jebm.energy import Generator
from jebm.methods.base import Method

__all__ = ["Run", "RunDirectory", "abstract_state", "build", "generator_of", "load"]


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Where a run's files lie."""

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """``config.json``, fully resolved."""
        return self.path / "config.json"

    @property
    def metrics(self) -> pathlib.Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """``checkpoints/<step>/``."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> pathlib.Path:
        """``samples/step_*.png``."""
        return self.path / "samples"

    @property
    def evaluation(self) -> pathlib.Path:
        """``evaluation/*.json``."""
        return self.path / "evaluation"

    @property
    def report(self) -> pathlib.Path:
        """``report.html``."""
        return self.path / "report.html"

    def write_config(self, config: Config) -> None:
        """Writes ``config.json``, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.config.with_suffix(".tmp")
        temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
        temporary.replace(self.config)

    def read_config(self) -> Config:
        """The configuration of the run.

        Raises:
            ConfigError: no run here, or a ``config.json`` that cannot be read.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self.path} is no run directory (it has no config.json): train one with 'jebm train'")
        try:
            return from_dict(json.loads(self.config.read_text()))
        except ConfigError:
            raise
        except (ValueError, RecursionError) as error:  # no JSON, or brackets too deep
            raise ConfigError(f"{self.config} cannot be read: {error}") from None


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        directory: where it lies.
        config: its configuration.
        method: its bundle of functions; ``generate`` warns of images that are not finite or far outside [-1, 1].
        state: the method's state, for ``method.generate(key, state, n)`` and the others.
        step: the training iterations behind it.
        meta: what the checkpoint says of itself.
    """

    directory: RunDirectory
    config: Config
    method: Method
    state: Any
    step: int
    meta: dict[str, Any]


def build(config: Config) -> Method:
    """The method of a configuration, over the generator of another run where it names one (``method.generator``).

    The other run gives the architecture each time; its weights, as they are when training starts, go into the new
    run's own state and checkpoints.

    Raises:
        ConfigError, NoCheckpoint: no such run, or one without a generator.
    """
    path = getattr(config.method, "generator", "")
    if path in ("", "network"):
        return methods.build(config)
    try:
        generator = generator_of(load(path))
    except ConfigError as error:
        raise ConfigError(f"method.generator={path}: {error}") from None
    return methods.hat_ebm(config.method, generator)


def generator_of(run: Run) -> Generator:
    """The generator of a trained model: a pure function from one latent to one image [H, W, C], weights as leaves.

    Raises:
        ConfigError: a model without a generator: a Denoising-EBM whose chains walk pixels.
    """
    family = methods.FAMILIES[methods.family_of(run.config.method)]
    generator = family.generator(run.config.method, run.state)
    if generator is None:
        raise ConfigError(f"{run.directory.path} holds a model without a generator of its own")
    return generator


def abstract_state(config: Config) -> Any:
    """The shapes and dtypes of a run's whole state; no memory is used.

    Raises:
        ConfigError: an array beyond all memory, which XLA would end the process over.
    """
    from jebm.training.state import initial_state

    method = build(config)
    size, channels = config.method.image_size, config.method.channels
    batch = jax.ShapeDtypeStruct((config.data.batch_size, size, size, channels), jnp.float32)
    state = jax.eval_shape(lambda b: initial_state(method, config.training.seed, b), batch)
    largest = max(jax.tree.leaves(state), key=lambda leaf: leaf.size)
    if largest.size >= 2**40:
        raise ConfigError(f"an array of shape {largest.shape} is too large for any machine: lower the method's widths")
    return state


def load(path: str | pathlib.Path, step: int | None = None) -> Run:
    """The run in a directory, at its newest whole checkpoint or at that of ``step``.

    Raises:
        ConfigError: ``path`` is no run directory, or not on this machine.
        NoCheckpoint: it has no whole checkpoint (of that step).
    """
    from jebm.training.checkpoints import Checkpoints, NoCheckpoint

    try:
        directory = RunDirectory(paths.local(str(path)))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    config = directory.read_config()
    if not directory.checkpoints.is_dir():
        raise NoCheckpoint(f"{path} has no checkpoint yet: train it with 'jebm train'")
    checkpoints = Checkpoints(directory.checkpoints)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), abstract_state(config))
    try:
        state, meta = checkpoints.restore(like, step)
    finally:
        checkpoints.close()
    return Run(directory, config, _watched(build(config)), state.method, int(state.step), meta)


def _watched(method: Method) -> Method:
    """The method, which warns where ``generate`` is called outside a compiled program and its chains have strayed."""

    def generate(key: Array, state: Any, n: int) -> Array:
        drawn = method.generate(key, state, n)
        images.warn_of_strays(drawn)
        return drawn

    return method._replace(generate=generate)
