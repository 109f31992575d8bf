"""The run directory, and `jebm.load`: a trained model, ready to sample, score or restore."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jebm import data, images, methods, paths
from jebm.config import Config
from jebm.energy import Generator
from jebm.errors import ConfigError
from jebm.methods.base import Method
from jebm.runs.directory import RunDirectory

__all__ = ["Run", "abstract_state", "build", "generator_of", "load", "load_source"]


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
    from jebm.runs.state import initial_state

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
    from jebm.runs.checkpoints import Checkpoints, NoCheckpoint

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


def load_source(config: Config) -> data.Source:
    """The images of a configuration, brought to the method's size.

    Raises:
        ConfigError: a source that is not there or cannot be read, images that cannot be brought to the method's size,
            or of another number of channels.
    """
    try:
        source = data.load(config.data.source, config.method.image_size, config.data.crop)
        source = data.resize_source(source, config.method.image_size)
    except data.DataError as error:
        raise ConfigError(f"data.source={config.data.source}: {error}") from error
    if source.image_shape[-1] != config.method.channels:
        raise ConfigError(
            f"data.source={config.data.source} has {source.image_shape[-1]} channels, method.channels is "
            f"{config.method.channels}: set method.channels={source.image_shape[-1]}"
        )
    return source
