"""A run read back: `jebm.load` gives a trained model, ready to sample, score or restore."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import data, files, images, mcmc, methods, partials, paths
from jebm.config import Config, to_dict
from jebm.data.source import with_validation
from jebm.energy import Energy, Generator, as_partial, require_int
from jebm.errors import ConfigError, nearest
from jebm.methods.base import Method
from jebm.methods.hat.config import GIVEN
from jebm.methods.shared import chain_kernel
from jebm.runs import packed, show
from jebm.runs.directory import RunDirectory
from jebm.runs.state import fingerprint, initial_state

__all__ = [
    "FrozenGenerator", "Run", "abstract_state", "build", "frozen_generator", "generator_of", "given_function", "load",
    "load_source", "method_of",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained model.

    Its energy and its generator are pytrees whose leaves are the weights: they combine with those of other runs, by
    `jebm.energy`, and are sampled by any kernel.

    Attributes:
        directory: the run directory.
        config: its configuration.
        method: its functions; ``generate`` warns of images that are not finite or far outside [-1, 1].
        state: the method's state, for ``method.generate(key, state, n)`` and the others.
        step: training iterations made.
        meta: the checkpoint's metadata; of a file of `jebm export` its ``name``, ``weights`` and ``card``.
    """

    directory: RunDirectory
    config: Config
    method: Method
    state: Any
    step: int
    meta: dict[str, Any]

    @property
    def energy(self) -> Energy:
        """The energy of one image: the model's density is ``exp(-energy)``."""
        return self.method.energy(self.state)

    @property
    def generator(self) -> Generator:
        """The generator: one latent of law N(0, I) and shape ``method.latent_shape`` in, one image out.

        Raises:
            ConfigError: a model without one.
        """
        return generator_of(self)

    def generate(self, key: Array, n: int) -> Array:
        """``n`` images, float32 [n, H, W, C] about [-1, 1]; image i does not depend on ``n``. Compiled once for each n.

        It warns of images that are not finite or far outside [-1, 1].
        """
        drawn = self._generate(key, self.state, require_int(n, "n", 1))
        images.warn_of_strays(drawn)
        return drawn

    def reconstruct(self, key: Array, batch: Array) -> Array:
        """Images [n, H, W, C] in [-1, 1] through encoder and decoder.

        Raises:
            ConfigError: a model without an encoder.
            ValueError: what are no images of this model.
        """
        if self.method.reconstruct is None:
            raise ConfigError(f"{self.directory.path} holds a model without an encoder: it reconstructs nothing")
        return self._reconstruct(key, self.state, batch)

    def kernel(self) -> mcmc.LangevinKernel:
        """The Langevin kernel of training's chain on images, walking ``energy``.

        Raises:
            ConfigError: a model whose chains of training are annealed, or not on images.
        """
        try:
            return chain_kernel(self.method, self.state)
        except ValueError as error:
            raise ConfigError(f"{self.directory.path}: {error}; take jebm.langevin(run.energy, step_size)") from None

    @functools.cached_property
    def _generate(self) -> Callable[[Array, Any, int], Array]:
        return jax.jit(self.method.generate, static_argnums=2)

    @functools.cached_property
    def _reconstruct(self) -> Callable[[Array, Any, Array], Array]:
        assert self.method.reconstruct is not None
        return jax.jit(self.method.reconstruct)

    def __repr__(self) -> str:
        return show.line(self)

    def _repr_html_(self) -> str:
        return show.page(self)


class FrozenGenerator(NamedTuple):
    """The generator of another run, under the method of this one.

    Training copies its weights into its own state and checkpoints, and what gives them their structure into
    ``generator.json``: the run directory is then whole without the other one.

    Attributes:
        configs: the configuration of the other run; if that one is over a frozen generator itself, then that of the
            run below, and so on.
        fingerprint: 16 hexadecimal digits over weights and architecture.
        generator: one latent in, one image out; its leaves are the weights, or only their shapes and dtypes.
    """

    configs: tuple[Config, ...]
    fingerprint: str
    generator: Generator

    @property
    def has_weights(self) -> bool:
        """Whether the weights are there, and not only their shapes."""
        return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.generator))


def build(config: Config, generator: Generator | None = None) -> Method:
    """The method of a configuration, over ``generator`` or that of the run which the configuration names.

    Raises:
        ConfigError, NoCheckpoint: no such run, or one without a generator.
    """
    if generator is None and (frozen := frozen_generator(config)):
        generator = frozen.generator
    return methods.build(config, generator)


def frozen_generator(config: Config, directory: RunDirectory | None = None) -> FrozenGenerator | None:
    """The generator of the run that a configuration names; None for a method with a generator of its own.

    Args:
        config: the configuration.
        directory: the run of this configuration. If it keeps a generator (`RunDirectory.write_generator`), that one's
            structure is used: without weights, if the other run is gone or has another architecture now.

    Raises:
        ConfigError, NoCheckpoint: no such run, or one without a generator, and none kept in ``directory``.
    """
    path = methods.given_generator(config)
    if path is None:
        return None
    kept = None if directory is None else _kept_generator(directory)
    try:
        run = load(path)
        generator = generator_of(run)
    except ValueError as error:  # a ConfigError or NoCheckpoint
        if kept is not None:
            return kept
        if isinstance(error, ConfigError):
            raise ConfigError(f"method.generator={path}: {error}") from None
        raise
    below = run.directory.read_generator() if methods.given_generator(run.config) else None
    configs = (run.config, *(below[0] if below else ()))
    found = FrozenGenerator(configs, _fingerprint(run.config, generator), generator)
    if kept is None or [c.method for c in kept.configs] == [c.method for c in configs]:
        return found
    return kept._replace(fingerprint=found.fingerprint)


def _kept_generator(directory: RunDirectory) -> FrozenGenerator | None:
    kept = directory.read_generator()
    return None if kept is None else FrozenGenerator(*kept, _abstract_generator(kept[0]))


def _abstract_generator(configs: tuple[Config, ...]) -> Generator:
    """The generator of a run without its weights: leaves are shapes and dtypes."""
    config, *below = configs
    try:
        method = methods.build(config, _abstract_generator(tuple(below)) if below else None)
        if method.generator is None:
            raise ValueError("a model without a generator of its own")
        generator: Generator = jax.eval_shape(method.generator, abstract_state(method, config).method)
    except ValueError as error:
        raise ConfigError(f"generator.json does not describe a generator: {error}") from None
    return generator


def _fingerprint(config: Config, generator: Any) -> str:
    leaves = jax.tree.leaves(generator)
    weights = np.asarray(fingerprint(leaves)).tolist() if leaves else []
    text = json.dumps([weights, to_dict(config)["method"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def generator_of(run: Run) -> Generator:
    """The generator of a trained model: a pure function from one latent to one image [H, W, C], weights as leaves.

    Raises:
        ConfigError: a model without a generator: a Denoising-EBM whose chains walk pixels.
    """
    if run.method.generator is None:
        raise ConfigError(f"{run.directory.path} holds a model without a generator of its own")
    return run.method.generator(run.state)


def abstract_state(method: Method, config: Config) -> Any:
    """The shapes and dtypes of a run's whole state (`jebm.runs.state.TrainState`); no memory is used.

    Raises:
        ConfigError: an array beyond all memory, which XLA would end the process over.
    """
    batch = jax.ShapeDtypeStruct((config.data.batch_size, *method.image_shape), jnp.float32)
    state = jax.eval_shape(lambda b: initial_state(method, config.training.seed, b), batch)
    largest = max(jax.tree.leaves(state), key=lambda leaf: leaf.size)
    if largest.size >= 2**40:
        raise ConfigError(f"an array of shape {largest.shape} is too large for any machine: lower the method's widths")
    return state


def method_of(directory: RunDirectory) -> Method:
    """The method of a run; over a frozen generator, with that one's structure and without its weights.

    Raises:
        ConfigError, NoCheckpoint: no run directory; a generator that is neither kept in it nor there.
    """
    config = directory.read_config()
    if methods.given_generator(config) is None:
        return methods.build(config)
    frozen = _kept_generator(directory) or frozen_generator(config)
    return methods.build(config, frozen.generator if frozen else None)


def given_function(config: Config, generator: Generator) -> FrozenGenerator:
    """A Python function as the frozen generator of a configuration; its code is not kept.

    Raises:
        ConfigError: a configuration that takes no function.
    """
    if getattr(config.method, "generator", None) != GIVEN:
        raise ConfigError(f"a generator is given, which is for a HatEBMConfig with generator={GIVEN!r} alone")
    leaves, structure = jax.tree.flatten(as_partial(generator))
    generator = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
    held = [jnp.asarray(a) for a in partials.closed_over(generator)]
    return FrozenGenerator((), _fingerprint(config, (generator, held)), generator)


def load(path: str | paths.Path, step: int | None = None, generator: Generator | None = None) -> Run:
    """A trained model: a run directory, at its newest whole checkpoint or at that of ``step``; or a file.

        run = jebm.load("digits/ec_vae")    # trained, part of the library

    A file of `jebm export` samples, scores and restores as its run does, and is not trained further. What is written
    about it (scores, a report) goes into a folder of ``~/.cache/jebm/models``, which is ``run.directory``.

    Args:
        path: of the run directory; of a file of `jebm export`, or its address as ``https://...#sha256=HASH``; or the
            name of a model that comes with the library (`jebm.runs.packed.released`).
        step: of the checkpoint; None: the newest.
        generator: for a run of `jebm.refine`: the function that it is over; its weights are read from the checkpoint.

    Raises:
        ConfigError: ``path`` is none of these, or cannot be reached; or a run over a function, without one.
        NoCheckpoint: it has no whole checkpoint (of that step).
        DataError: a file that is damaged, of another version, or another one than its hash says.
    """
    from jebm.runs.checkpoints import Checkpoints, NoCheckpoint

    file = packed.find(str(path))
    if file is not None:
        return _load_file(file, str(path), step, generator)
    try:
        directory = RunDirectory(paths.require_checkpoints(paths.of(path)))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not directory.path.exists() and any(name.split("/")[0] == str(path).split("/")[0] for name in packed.released()):
        hint = nearest(str(path), packed.released())
        raise ConfigError(
            f"{path} is no run directory, nor the name of a trained model{hint}; see 'jebm export --list'"
        )
    config = directory.read_config()
    if not directory.checkpoints.is_dir():
        raise NoCheckpoint(f"{path} has no checkpoint yet: train it with 'jebm train'")
    method = _method_over(directory, config, generator)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = abstract_state(method, config)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), abstract)
    checkpoints = Checkpoints(directory.checkpoints)
    try:
        state, meta = checkpoints.restore(like, step)
    finally:
        checkpoints.close()
    return _run(directory, config, method, state.method, int(state.step), meta)


def _method_over(directory: RunDirectory, config: Config, generator: Generator | None) -> Method:
    if generator is None:
        return method_of(directory)
    return methods.build(config, given_function(config, generator).generator)


def _load_file(file: pathlib.Path, name: str, step: int | None, generator: Generator | None) -> Run:
    from jebm.runs.checkpoints import NoCheckpoint

    model = packed.read(file)
    if step not in (None, model.step):
        raise NoCheckpoint(f"{name} is a file of one checkpoint, that of step {model.step}")
    title = name.replace("/", "-") if name in packed.released() else file.stem
    directory = RunDirectory(files.cache_directory() / "models" / f"{title}-{model.sha256[:16]}")
    if not directory.config.is_file():
        if model.generator is not None:
            directory.write_generator(*model.generator)
        directory.write_config(model.config)
    method = _method_over(directory, model.config, generator)
    state = packed.state_of(model, abstract_state(method, model.config).method)
    meta = {"name": name, "weights": model.weights, "card": model.card}
    return _run(directory, model.config, method, state, model.step, meta)


def _run(directory: RunDirectory, config: Config, method: Method, state: Any, step: int, meta: dict[str, Any]) -> Run:
    if method.generator is not None and methods.given_generator(config):  # its weights are those of the checkpoint
        method = methods.build(config, method.generator(state))
    return Run(directory, config, _warning(method), state, step, meta)


def _warning(method: Method) -> Method:
    """The method with a ``generate`` that warns of stray images when it is called outside a compiled program."""

    def generate(key: Array, state: Any, n: int) -> Array:
        drawn = method.generate(key, state, n)
        images.warn_of_strays(drawn)
        return drawn

    return method._replace(generate=generate)


def load_source(config: Config, image_shape: tuple[int, int, int]) -> data.Source:
    """The images of a configuration, resized for its method (`jebm.methods.base.Method.image_shape`); validation set
    aside.

    Raises:
        ConfigError: a source that is missing or cannot be read, images that cannot be brought to the method's size,
            or of another number of channels.
    """
    height, _, channels = image_shape
    try:
        source = data.load(config.data.source, height, config.data.crop)
        source = with_validation(data.resize_source(source, height), config.data.validation)
    except data.DataError as error:
        raise ConfigError(f"data.source={config.data.source}: {error}") from error
    if source.image_shape[-1] != channels:
        raise ConfigError(
            f"data.source={config.data.source} has {source.image_shape[-1]} channels, method.channels is "
            f"{channels}: set method.channels={source.image_shape[-1]}"
        )
    return source
