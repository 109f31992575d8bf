"""One attempt of a training: from a point that it can resume from to the end, a signal, or an unhealthy line."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jebm import data, images, sharding
from jebm.config import Config
from jebm.methods.base import Method, Metrics
from jebm.runs import run as runs
from jebm.runs.checkpoints import Checkpoints
from jebm.runs.directory import RunDirectory
from jebm.runs.drawing import drawing
from jebm.runs.metrics_log import MetricsFile
from jebm.runs.run import FrozenGenerator
from jebm.runs.state import TrainState
from jebm.training import meters, operations, recovery, writers
from jebm.training.output import naming, progress, ticking
from jebm.training.signals import StopSignal
from jebm.training.step import make_step, multiplying

__all__ = ["NUM_PROBES", "Files", "ResumePoint", "Training", "Unhealthy", "attempt"]

NUM_PROBES = 8  # images of the training set that the monitors watch
GRID_FOLD = 2**32 - 2  # no step's number, and not that of a recovery's key


# --- data --------------------------------------------------------------------------------------------------------


def _loader(config: Config, source: data.Source, mesh: jax.sharding.Mesh, attempt: int) -> data.Loader:
    """Each recovery attempt shuffles the data with its own seed; attempt 0 uses training.seed."""
    seed = (config.training.seed + attempt * 0x9E3779B97F4A7C15) % 2**63
    rows = None if jax.process_count() == 1 else sharding.local_rows(mesh, config.data.batch_size)
    return data.Loader(source.train, config.data.batch_size, seed, config.data.workers, rows)


# --- the start ---------------------------------------------------------------------------------------------------


class Training(NamedTuple):
    """Shared parts of all attempts of a training.

    Attributes:
        config: the experiment.
        method: its method, before any back-off.
        generator: the frozen generator of another run under it, loaded once; or None.
        source: the images.
        mesh: the devices.
        abstract: shapes, dtypes and shardings of the state.
        peak: operations a second of a device; None where unknown.
    """

    config: Config
    method: Method
    generator: FrozenGenerator | None
    source: data.Source
    mesh: jax.sharding.Mesh
    abstract: TrainState
    peak: float | None


class Files(NamedTuple):
    """The files of a training, and the facts that go into each checkpoint."""

    directory: RunDirectory
    checkpoints: Checkpoints
    metrics: MetricsFile
    meta: dict[str, Any]
    profiler: meters.Profiler
    on_grid: Callable[[], None]
    log: Callable[[str], None]
    writers: list[writers.Writer]


class ResumePoint(NamedTuple):
    """State, past recoveries, and recent healthy metrics."""

    state: TrainState
    events: list[recovery.Event]
    history: list[dict[str, float]]


# --- an attempt --------------------------------------------------------------------------------------------------


class Unhealthy(Exception):
    """Metrics, or a state, that must not be trained further."""

    def __init__(self, step: int, reason: str, senseless: recovery.Senseless | None = None) -> None:
        super().__init__(step, reason)
        self.step, self.reason, self.senseless = step, reason, senseless


def attempt(training: Training, point: ResumePoint, files: Files) -> tuple[TrainState, bool]:
    """Trains until the end, a signal (then True), or an unhealthy line (`Unhealthy`)."""
    config, method, generator, source, mesh, abstract, peak = training
    settings, number, (state, events, history) = config.training, len(point.events), point
    if number:
        config = dataclasses.replace(config, method=recovery.backed_off(config.method, settings.recovery, number))
        method = runs.build(config, generator.generator if generator else None)
    loader = _loader(config, source, mesh, number)
    # every process reads the same rows: a program's constants must be equal everywhere
    probe = data.Loader(source.train, min(NUM_PROBES, len(source.train)), settings.seed).batch(0)
    step = make_step(config, method, jax.tree.map(lambda a: a.sharding, abstract), probe)
    scale = recovery.Scale(probe[0].size, method.temperature)
    draw_grid = drawing(method, mesh, settings.num_samples)
    start = int(state.step)
    pending: tuple[int, Metrics] | None = None
    speed, profiler, finished = meters.Speed(config.data.batch_size), files.profiler, meters.Finished()
    work = math.nan

    def flush() -> None:
        nonlocal pending, history
        if pending is not None:
            done, values = pending[0], _floats(pending[1])
            pending = None
            clock = speed.read(done)
            if clock:
                clock |= meters.utilization(work, clock["steps_per_second"], mesh.size, peak)
            line = {**values, **clock, **meters.device_memory()}
            written = files.metrics.write({"step": done, **line, "time": round(time.time(), 3)})
            for writer in files.writers:
                writer.scalars(done, {name: written[name] for name in line if written[name] is not None})
            shown = [name for name in config.method.SUMMARY.progress if name in values]
            bar.set_postfix({name: f"{values[name]:.4g}" for name in shown}, refresh=False)
            _require_healthy(done, recovery.diagnose(settings.recovery, history, values))
            if settings.recovery.absolute and (senseless := recovery.senseless(scale, history, values)):
                raise Unhealthy(done, senseless.reason, senseless)
            history = [*history, recovery.watched(values)][-recovery.WINDOW :]

    stop, stopping = StopSignal(), False
    place = lambda batch: sharding.shard_batch(batch, mesh)  # noqa: E731
    with (
        stop.listening(), jax.set_mesh(mesh), multiplying(config), contextlib.closing(profiler),
        progress(settings.num_steps, start, sharding.is_main()) as bar,
    ):  # fmt: skip
        for done, batch in enumerate(loader.batches(start, settings.num_steps - start, place), start + 1):
            profiler.before(done)
            with ticking(bar, "compiling") if done == start + 1 else contextlib.nullcontext():
                if peak is not None and done == start + 1:  # the call below finds what is traced here
                    work = operations.count(step.trace(state, batch).jaxpr)
                state, metrics = step(state, batch)
            profiler.after(done, metrics)
            speed.started(done)
            finished.started(done, next(iter(metrics.values())))
            bar.update(max(0, finished.newest() - bar.n))
            last = done == settings.num_steps
            # read a logged step's metrics when the next one is due: the device is never waited for
            if done % settings.log_every == 0 or last:
                flush()
                pending = (done, metrics)
            if settings.sample_every and (done % settings.sample_every == 0 or last):
                flush()
                with speed.paused(), ticking(bar, "sample grid"):
                    drawn = draw_grid(jax.random.fold_in(state.key, GRID_FOLD), state.method)  # always the same latents
                    _require_healthy(done, _not_finite("a sample", drawn))
                    if sharding.is_main():
                        path = files.directory.samples / f"step_{done:07d}.png"
                        grid = images.grid(drawn)
                        with naming(path):
                            images.save_png(path, grid)
                        for writer in files.writers:
                            writer.image(done, "samples", grid)
                        files.on_grid()
            stopping = stop.agreed(done)  # read once: a signal that comes after this waits for the next step
            if done % settings.checkpoint_every == 0 or last or stopping:
                flush()
                with speed.paused():
                    _require_healthy(done, _not_finite("the state", state.method))
                    files.metrics.sync()
                    past = {"recoveries": [event._asdict() for event in events], "history": history}
                    files.checkpoints.save(state, files.meta | past)
            if stopping:
                break
        files.checkpoints.wait()
        bar.update(int(state.step) - bar.n)
    if (done := int(state.step)) > start:
        files.log(speed.last_line(start, done))
    return state, stopping


def _require_healthy(step: int, reason: str | None) -> None:
    if reason:
        raise Unhealthy(step, reason)


def _not_finite(name: str, tree: Any) -> str | None:
    return None if math.isfinite(float(_sum_of_magnitudes(tree))) else f"{name} is not finite"


@jax.jit
def _sum_of_magnitudes(tree: Any) -> Array:
    """Not finite if an entry of ``tree`` is not."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.sum(jnp.stack([jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in leaves]))


def _floats(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(jax.device_get(metrics).items())}
