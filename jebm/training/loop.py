"""The training loop: any `Method`, one compiled step, checkpoints of everything, resumed bit for bit."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jebm import bank, data, images, runs, sharding
from jebm.config import Config, ConfigError, config_hash, to_dict
from jebm.methods.base import Method, Metrics
from jebm.runs import RunDirectory, abstract_state
from jebm.training.checkpoints import Checkpoints, NoCheckpoint
from jebm.training.records import MetricsFile
from jebm.training.state import TrainState, initial_state

__all__ = ["Diverged", "load_source", "make_step", "train"]


class Diverged(RuntimeError):
    """A metric is no longer finite."""


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


def make_step(
    config: Config, method: Method, placement: Any = None
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """The compiled training step ``(state, uint8 images) -> (state, metrics)``; the old state is given up.

    ``placement``, a tree of shardings, keeps the new state where the old one lay.
    """

    def step(state: TrainState, batch: Array) -> tuple[TrainState, Metrics]:
        data_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = data.preprocess(
            data_key, batch, horizontal_flip=config.data.flip, dequantize=config.data.dequantize
        )
        method_state, metrics = method.update(update_key, state.method, batch)
        return TrainState(state.step + 1, state.key, method_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=None if placement is None else (placement, None))


def train(config: Config, directory: RunDirectory, say: Callable[[str], None] = print) -> TrainState:
    """Trains to ``config.training.num_steps``, going on from the newest whole checkpoint in ``directory``.

    SIGTERM or SIGINT saves a checkpoint and ends the run (`SystemExit` 0): the same command goes on from there.

    Args:
        config: the experiment. It must equal that of a run which is already in ``directory``, but for
            ``training.num_steps`` and what does not change the result (logging, checkpoints, evaluation).
        directory: the run directory, made if need be.
        say: receives lines for the user.

    Raises:
        ConfigError: a configuration that does not fit the data, the devices or the run in ``directory``.
        Diverged: a logged metric is not finite; the newest checkpoint is from before.
    """
    mesh = sharding.make_mesh()
    if config.data.batch_size % mesh.size:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} does not divide over {mesh.size} devices: "
            f"take a multiple of {mesh.size}"
        )
    source = load_source(config)
    try:
        loader = data.Loader(source.train, config.data.batch_size, config.training.seed, config.data.workers)
    except ValueError as error:
        raise ConfigError(f"data.batch_size={config.data.batch_size}: {error}") from None
    _check_same_run(config, directory)
    method = runs.build(config)
    abstract = abstract_state(config)
    placement = bank.placement(abstract, sharding.spread(mesh), sharding.replicated(mesh))
    checkpoints = Checkpoints(directory.checkpoints, config.training.keep_checkpoints)
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placement)
    state = _start(config, method, checkpoints, like, say)
    start = int(state.step)
    if start > config.training.num_steps:
        checkpoints.close()
        raise ConfigError(
            f"training.num_steps={config.training.num_steps}: the run in {directory.path} is at step {start} already"
        )
    directory.write_config(config)
    metrics_file = MetricsFile(directory.metrics, start)
    meta = {"config_hash": config_hash(config), "data_fingerprint": source.fingerprint, "versions": _versions()}
    place = lambda batch: sharding.shard_batch(batch, mesh)  # noqa: E731
    step = make_step(config, method, placement)
    every = config.training
    draw_grid = jax.jit(lambda key, state: method.generate(key, state, every.num_samples))
    pending: tuple[int, Metrics, float] | None = None
    stop, stopping = _StopSignal(), False
    try:
        with stop.listening(), jax.set_mesh(mesh), _progress(config, start) as bar:
            begun = time.perf_counter()
            for done, batch in enumerate(loader.batches(start, every.num_steps - start, place), start + 1):
                state, metrics = step(state, batch)
                bar.update()
                # read a logged step's metrics when the next one is due: the device is never waited for
                if done % every.log_every == 0 or done == every.num_steps:
                    _write(metrics_file, pending, bar)
                    pending = (done, metrics, (done - start) / (time.perf_counter() - begun))
                if every.sample_every and (done % every.sample_every == 0 or done == every.num_steps):
                    _write(metrics_file, pending, bar)
                    pending = None
                    drawn = draw_grid(jax.random.fold_in(state.key, 0), state.method)
                    _require_finite(done, {"a sample": float(jnp.sum(drawn))})
                    images.save_png(directory.samples / f"step_{done:07d}.png", images.grid(drawn))
                stopping = stop.received  # read once: a signal that comes after this waits for the next step
                if done % every.checkpoint_every == 0 or done == every.num_steps or stopping:
                    _write(metrics_file, pending, bar)
                    pending = None
                    _require_finite(done, _floats(metrics) | {"the state": float(_sum_of_magnitudes(state.method))})
                    checkpoints.save(state, meta)
                if stopping:
                    break
            checkpoints.wait()
    finally:
        metrics_file.close()
        checkpoints.close()
    if stopping:
        say(f"stopped by signal after step {int(state.step)}; saved, and the same command goes on from there")
        sys.exit(0)
    return state


def _start(
    config: Config, method: Method, checkpoints: Checkpoints, like: TrainState, say: Callable[[str], None]
) -> TrainState:
    if checkpoints.steps():
        try:
            state, _ = checkpoints.restore(like)
            checkpoints.discard_after(int(state.step))
            say(f"going on from step {int(state.step)}")
            return state
        except NoCheckpoint:
            say("no checkpoint is whole: starting again from step 0; the old ones lie in checkpoints_damaged")
            checkpoints.discard_after(-1)
    size, channels = config.method.image_size, config.method.channels
    shape = (config.data.batch_size, size, size, channels)
    make = jax.jit(
        lambda: initial_state(method, config.training.seed, jnp.zeros(shape)),
        out_shardings=jax.tree.map(lambda a: a.sharding, like),
        # it runs once: on a CPU most of its time would go into optimising the random draws
        compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None,
    )
    return make()


# keys that may differ from those of the run that goes on: they change no number of it
_FREE_KEYS = ("num_steps", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "num_samples",
              "evaluate_at_end")  # fmt: skip


def _check_same_run(config: Config, directory: RunDirectory) -> None:
    if not directory.config.exists():
        return
    old, new = to_dict(directory.read_config()), to_dict(config)
    for tree in (old, new):
        tree.pop("evaluation")
        tree["data"].pop("workers")
        for name in _FREE_KEYS:
            tree["training"].pop(name)
    differing = [key for key, value in _flat(new) if dict(_flat(old)).get(key, None) != value]
    if differing:
        raise ConfigError(
            f"{directory.path} holds a run with another configuration ({', '.join(differing[:4])} differ): "
            "take another --workdir, or remove that one"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in tree.items():
        out += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return out


def _write(file: MetricsFile, pending: tuple[int, Metrics, float] | None, bar: Any) -> None:
    if pending is None:
        return
    step, metrics, rate = pending
    values = _floats(metrics)
    file.write({"step": step, **values, "steps_per_second": round(rate, 3), "time": round(time.time(), 3)})
    bar.set_postfix({name: f"{value:.4g}" for name, value in values.items() if "norm" not in name}, refresh=False)
    _require_finite(step, values)


def _floats(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(jax.device_get(metrics).items())}


@jax.jit
def _sum_of_magnitudes(tree: Any) -> Array:
    """Not finite if an entry of ``tree`` is not."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.sum(jnp.stack([jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in leaves]))


def _require_finite(step: int, values: dict[str, float]) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise Diverged(
            f"step {step}: {', '.join(bad)} is not finite; the newest checkpoint is from before. "
            "Lower the learning rates or the step size, or change training.seed"
        )


@contextmanager
def _progress(config: Config, start: int) -> Iterator[Any]:
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    with tqdm(
        total=config.training.num_steps, initial=start, desc="train", unit="step", dynamic_ncols=True,
        mininterval=15.0 if quiet else 0.2,
    ) as bar:  # fmt: skip
        yield bar


class _StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        def note(number: int, frame: Any) -> None:
            self.received = True

        try:
            old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: signals stay with whoever runs it
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _versions() -> dict[str, str]:
    import flax
    import jaxlib

    import jebm

    return {"jebm": jebm.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__}
