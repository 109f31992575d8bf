"""The training loop: any `Method`, one compiled step, checkpoints of everything, resumed bit for bit."""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import data, images, sharding
from jebm.config import Config, config_hash, to_dict
from jebm.errors import ConfigError
from jebm.mcmc import bank
from jebm.methods.base import Method, Metrics
from jebm.runs import run as runs
from jebm.runs.checkpoints import CheckpointNotRead, Checkpoints, NoCheckpoint
from jebm.runs.directory import RunDirectory
from jebm.runs.run import abstract_state, load_source
from jebm.runs.metrics_log import MetricsFile
from jebm.runs.state import TrainState, initial_state
from jebm.training import identity, monitors, recovery
from jebm.training.lock import locked
from jebm.training.output import Surviving

__all__ = ["Diverged", "make_step", "train"]

ADVICE = "Lower the learning rates or the step size, or change training.seed"
NUM_PROBES = 8  # images of the training set that the monitors watch
GRID_FOLD = 2**32 - 2  # no step's number, and not that of a recovery's key


class Diverged(RuntimeError):
    """The run is no longer healthy, and no recovery is left."""


def make_step(
    config: Config,
    method: Method,
    placement: Any = None,
    probe: np.ndarray | None = None,
    frozen: Sequence[str] = (),
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """The compiled training step ``(state, uint8 images) -> (state, metrics)``; the old state is given up.

    ``placement``, a tree of shardings, keeps the new state where the old one lay. With ``probe``, a few uint8 images,
    the metrics hold the monitors (`jebm.training.monitors`); networks named in ``frozen`` are not to change.
    """

    def step(state: TrainState, batch: Array) -> tuple[TrainState, Metrics]:
        data_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = data.preprocess(data_key, batch, horizontal_flip=config.data.flip, dequantize=config.data.dequantize)
        method_state, metrics = method.update(update_key, state.method, batch)
        if probe is not None:
            watched = data.to_float(jnp.asarray(probe))
            metrics = monitors.measure(method, state.method, method_state, metrics, watched, frozen)
        return TrainState(state.step + 1, state.key, method_state), metrics

    shardings = None
    if placement is not None:
        shardings = (placement, sharding.replicated(jax.tree.leaves(placement)[0].mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def train(
    config: Config,
    directory: RunDirectory,
    say: Callable[[str], None] = print,
    *,
    allow_changed_data: bool = False,
) -> TrainState:
    """Trains to ``config.training.num_steps``, going on from the newest whole checkpoint in ``directory``.

    A run that diverges (`jebm.training.recovery`) goes back to its newest healthy checkpoint, takes a fresh key and
    another order of the data, backs off as ``config.training.recovery`` says, and goes on; a second divergence from
    the same checkpoint goes back to the one before. SIGTERM, SIGINT or SIGHUP saves a checkpoint and ends the run
    (`SystemExit` 0): the same command goes on from there. Where `jax.distributed` runs, all processes call this with
    the same arguments and one shared ``directory``, in which only process 0 writes metrics and pictures. A directory
    takes one training at a time. Output that fails (a closed terminal) does not end a training.

    Args:
        config: the experiment. It must equal that of a run which is already in ``directory``, but for
            ``training.num_steps`` and what does not change the result (logging, checkpoints, evaluation).
        directory: the run directory, made if need be.
        say: receives lines for the user.
        allow_changed_data: go on where the images, or the frozen generator, are not those that the run began with.

    Raises:
        ConfigError: a configuration that does not fit the data, the devices or the run in ``directory``; data or a
            frozen generator that have changed since; processes that differ; another training in ``directory``.
        Diverged: and no attempt is left, or none would help; the newest checkpoint is healthy.
        CheckpointNotWritten: no room, for example; older checkpoints are as they were.
        CheckpointNotRead: a checkpoint that is not provably damaged, but cannot be read; nothing was changed.
    """
    try:
        mesh = sharding.make_mesh(fsdp=config.training.fsdp)
    except ValueError as error:
        raise ConfigError(f"training.fsdp={config.training.fsdp}: {error}") from None
    if config.data.batch_size % mesh.size:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} does not divide over {mesh.size} devices: "
            f"take a multiple of {mesh.size}"
        )
    recovery.check_back_off(config.method, config.training.recovery)
    say = _surviving(say)
    source = load_source(config)
    _loader(config, source, 0)
    _check_same_run(config, directory)
    like = _placed(abstract_state(config), mesh)
    facts = identity.facts(config, source)
    with contextlib.ExitStack() as held:
        problem = _lock(held, directory)
        identity.check_processes(facts, problem)  # all stop where one has to
        stopped, state = _train(config, directory, source, mesh, like, facts, say, allow_changed_data)
    if stopped:
        say(f"stopped by signal after step {int(state.step)}; saved, and the same command goes on from there")
        sys.exit(0)
    return state


def _lock(held: contextlib.ExitStack, directory: RunDirectory) -> str | None:
    """Locks the directory; in words why not."""
    if not sharding.is_main():
        return None
    try:
        held.enter_context(locked(directory.path / "train.lock"))
    except ConfigError as error:
        return str(error)
    return None


def _train(
    config: Config, directory: RunDirectory, source: data.Source, mesh: jax.sharding.Mesh, like: TrainState,
    facts: identity.Facts, say: Callable[[str], None], allow_changed_data: bool,
) -> tuple[bool, TrainState]:  # fmt: skip
    """Whether a signal stopped it, and the state."""
    checkpoints = Checkpoints(directory.checkpoints, config.training.keep_checkpoints)

    def check(meta: dict[str, Any]) -> None:
        changed = identity.changed(meta, facts)
        if changed and not allow_changed_data:
            raise ConfigError(
                f"{directory.path}: {changed}: bring back what it was, take another --workdir, or go on with "
                "--allow-changed-data"
            )

    try:
        past = _start(config, checkpoints, like, say, check)
        start = int(past.state.step)
        if start > config.training.num_steps:
            given = f"training.num_steps={config.training.num_steps}"
            raise ConfigError(f"{given}: the run in {directory.path} is at step {start} already")
        if sharding.is_main():
            with _naming(directory.config):
                directory.write_config(config)
        fixed = {name: value for name, value in facts.items() if name != "configuration" and value is not None}
        with _naming(directory.metrics):
            metrics_file = MetricsFile(directory.metrics, start, len(past.events), sharding.is_main())
        files = _Files(directory, checkpoints, metrics_file, {"config_hash": config_hash(config), **fixed})
        with contextlib.closing(metrics_file):
            while True:
                try:
                    state, stopped = _run(config, source, mesh, like, past, files)
                    return stopped, state
                except _Unhealthy as found:
                    past = _recover(config, like, past.events, found, files, say)
    finally:
        checkpoints.close()


class _Past(NamedTuple):
    """Where a run goes on from: its state, recoveries so far, and the healthy lines that detectors remember."""

    state: TrainState
    events: list[recovery.Event]
    history: list[dict[str, float]]


class _Files(NamedTuple):
    directory: RunDirectory
    checkpoints: Checkpoints
    metrics: MetricsFile
    meta: dict[str, Any]


def _run(
    config: Config, source: data.Source, mesh: jax.sharding.Mesh, like: TrainState, past: _Past, files: _Files
) -> tuple[TrainState, bool]:
    """Trains until the end, a signal (then True), or an unhealthy line (`_Unhealthy`)."""
    every, attempt, (state, events, history) = config.training, len(past.events), past
    tried = dataclasses.replace(config, method=recovery.backed_off(config.method, every.recovery, attempt))
    method, loader = runs.build(tried), _loader(config, source, attempt)
    # every process reads the same rows: a program's constants must be equal everywhere
    probe = data.Loader(source.train, min(NUM_PROBES, len(source.train)), config.training.seed).batch(0)
    frozen = ("generator",) if getattr(config.method, "generator", "") else ()
    step = make_step(tried, method, jax.tree.map(lambda a: a.sharding, like), probe, frozen)
    scale = recovery.scale_of(config.method, probe[0].size)
    draw_grid = jax.jit(
        lambda key, state: method.generate(key, state, every.num_samples), out_shardings=sharding.replicated(mesh)
    )
    start = int(state.step)
    pending: tuple[int, Metrics, float] | None = None

    def flush() -> None:
        nonlocal pending, history
        if pending is not None:
            done, values, rate = pending[0], _floats(pending[1]), pending[2]
            pending = None
            files.metrics.write({"step": done, **values, **_clock(rate)})
            postfix = {name: f"{value:.4g}" for name, value in values.items() if "/" not in name and "norm" not in name}
            bar.set_postfix(postfix, refresh=False)
            _require_healthy(done, recovery.diagnose(every.recovery, history, values))
            if every.recovery.absolute and (found := recovery.senseless(scale, history, values)):
                raise _Unhealthy(done, found.reason, found)
            history = [*history, recovery.watched(values)][-recovery.WINDOW :]

    stop, stopping = _StopSignal(), False
    place = lambda batch: sharding.shard_batch(batch, mesh)  # noqa: E731
    with stop.listening(), jax.set_mesh(mesh), _progress(config, start) as bar:
        begun = time.perf_counter()
        for done, batch in enumerate(loader.batches(start, every.num_steps - start, place), start + 1):
            state, metrics = step(state, batch)
            bar.update()
            # read a logged step's metrics when the next one is due: the device is never waited for
            if done % every.log_every == 0 or done == every.num_steps:
                flush()
                pending = (done, metrics, (done - start) / (time.perf_counter() - begun))
            if every.sample_every and (done % every.sample_every == 0 or done == every.num_steps):
                flush()
                drawn = draw_grid(jax.random.fold_in(state.key, GRID_FOLD), state.method)  # the same latents each time
                _require_healthy(done, _not_finite("a sample", drawn))
                if sharding.is_main():
                    path = files.directory.samples / f"step_{done:07d}.png"
                    with _naming(path):
                        images.save_png(path, images.grid(drawn))
            stopping = stop.agreed(done)  # read once: a signal that comes after this waits for the next step
            if done % every.checkpoint_every == 0 or done == every.num_steps or stopping:
                flush()
                _require_healthy(done, _not_finite("the state", state.method))
                past_as_json = {"recoveries": [e._asdict() for e in events], "history": history}
                files.checkpoints.save(state, files.meta | past_as_json)
            if stopping:
                break
        files.checkpoints.wait()
    return state, stopping


def _recover(
    config: Config, like: TrainState, events: list[recovery.Event], found: "_Unhealthy", files: _Files,
    say: Callable[[str], None],
) -> _Past:  # fmt: skip
    """The healthy past that the next attempt starts from; raises `Diverged` when there is none to make."""
    step, reason, senseless = found.step, found.reason, found.senseless
    allowed = config.training.recovery.max_attempts
    files.checkpoints.wait()
    steps = [s for s in files.checkpoints.steps() if s < step]
    newest = f"the newest checkpoint (step {steps[-1]}) is healthy" if steps else "there is no checkpoint yet"
    ending = None
    if senseless and (senseless.lasting or not steps):  # what backing off does not mend
        ending = f"{senseless.advice}, in another --workdir. No recovery is tried: backing off would not mend it"
    elif len(events) >= allowed:
        ending = (
            f"{len(events)} of {allowed} recoveries are used up, and {newest}. "
            f"{senseless.advice if senseless else ADVICE}, in another --workdir"
        )
    if ending:
        files.metrics.write({"step": step, "event": "diverged", "reason": reason})
        raise Diverged(f"step {step}: {reason}; {ending}")
    if len(steps) > 1 and steps[-1] in [event.restored for event in events]:
        steps.pop()  # it was tried from there: the trouble began earlier
    files.checkpoints.discard_after(steps[-1] if steps else -1)
    past = _start(config, files.checkpoints, like, lambda line: None, lambda meta: None)
    event = recovery.Event(len(events) + 1, step, int(past.state.step), reason)
    # the fold before the attempt's keeps its keys apart from those of the steps
    key = jax.random.fold_in(jax.random.fold_in(past.state.key, 2**32 - 1), event.attempt)
    files.metrics.rewind(event.restored, len(events))
    files.metrics.write({"step": event.restored, "event": "recovery", **event._asdict()})
    say(f"step {step}: {reason}; attempt {event.attempt} of {allowed} goes on from step {event.restored}")
    return _Past(past.state._replace(key=jax.device_put(key, past.state.key.sharding)), [*events, event], past.history)


def _start(
    config: Config, checkpoints: Checkpoints, like: TrainState, say: Callable[[str], None],
    check: Callable[[dict[str, Any]], None],
) -> _Past:  # fmt: skip
    """The newest checkpoint's past, where ``check`` of its meta raises nothing; or a fresh one."""
    if checkpoints.steps():
        try:
            state, meta = checkpoints.restore(like)
            check(meta)
            events, history = _past_of(meta, int(state.step))
            checkpoints.discard_after(int(state.step))
            say(f"going on from step {int(state.step)}")
            return _Past(state, events, history)
        except NoCheckpoint:
            say("no checkpoint is whole: starting again from step 0; the old ones lie in checkpoints_damaged")
            checkpoints.discard_after(-1)
    if getattr(config.method, "generator", "") == "network":
        raise ConfigError(
            "method.generator='network': there are no weights of it in this --workdir; bring them with 'jebm convert "
            "hat-ebm', or name the directory of a run"
        )
    method, size, channels = runs.build(config), config.method.image_size, config.method.channels
    shape = (config.data.batch_size, size, size, channels)
    make = jax.jit(
        lambda: initial_state(method, config.training.seed, jnp.zeros(shape)),
        out_shardings=jax.tree.map(lambda a: a.sharding, like),
        # it runs once: on a CPU most of its time would go into optimising the random draws
        compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None,
    )
    return _Past(make(), [], [])


def _past_of(meta: dict[str, Any], step: int) -> tuple[list[recovery.Event], list[dict[str, float]]]:
    try:
        events = [recovery.Event(**event) for event in meta.get("recoveries", [])]
        history = [{str(k): float(v) for k, v in line.items()} for line in meta.get("history", [])]
        whole = all(type(n) is int and n >= 0 for event in events for n in event[:3])
        if not whole or [event.attempt for event in events] != list(range(1, len(events) + 1)):
            raise ValueError("the recoveries are not numbered")
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointNotRead(
            f"the description (meta) of the checkpoint of step {step} is of another form ({error}): move it away to go "
            "on from an earlier one. Nothing was changed"
        ) from error
    return events, history


def _placed(abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """The abstract state with its shardings: banks spread, large parameters and their like split, the rest copied."""
    split = sharding.split_large(abstract, mesh)
    banks = bank.placement(abstract, sharding.spread(mesh), sharding.replicated(mesh))
    choose = lambda a, s, b: jax.ShapeDtypeStruct(  # noqa: E731
        a.shape, a.dtype, sharding=s if b.is_fully_replicated else b
    )
    placed: TrainState = jax.tree.map(choose, abstract, split, banks)
    return placed


def _loader(config: Config, source: data.Source, attempt: int) -> data.Loader:
    """Every attempt has an order of the data of its own; the first is that of the seed."""
    try:
        seed = (config.training.seed + attempt * 0x9E3779B97F4A7C15) % 2**63
        mesh = sharding.make_mesh(fsdp=config.training.fsdp)
        rows = None if jax.process_count() == 1 else sharding.local_rows(mesh, config.data.batch_size)
        return data.Loader(source.train, config.data.batch_size, seed, config.data.workers, rows)
    except ValueError as error:
        raise ConfigError(f"data.batch_size={config.data.batch_size}: {error}") from None


# keys that may differ from those of the run that goes on: they change no draw and no gradient of it (how often it is
# logged does decide when a divergence is seen)
_FREE_KEYS = ("fsdp", "num_steps", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "num_samples",
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


class _Unhealthy(Exception):
    """A line, or a state, that a run does not go on from."""

    def __init__(self, step: int, reason: str, senseless: recovery.Senseless | None = None) -> None:
        super().__init__(step, reason)
        self.step, self.reason, self.senseless = step, reason, senseless


def _require_healthy(step: int, reason: str | None) -> None:
    if reason:
        raise _Unhealthy(step, reason)


def _not_finite(name: str, tree: Any) -> str | None:
    return None if math.isfinite(float(_sum_of_magnitudes(tree))) else f"{name} is not finite"


def _clock(rate: float) -> dict[str, float]:
    return {"steps_per_second": round(rate, 3), "time": round(time.time(), 3)}


def _floats(metrics: Metrics) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(jax.device_get(metrics).items())}


@jax.jit
def _sum_of_magnitudes(tree: Any) -> Array:
    """Not finite if an entry of ``tree`` is not."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.sum(jnp.stack([jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in leaves]))


@contextmanager
def _progress(config: Config, start: int) -> Iterator[Any]:
    from tqdm import tqdm

    stream = Surviving(sys.stderr)
    with tqdm(
        file=stream, total=config.training.num_steps, initial=start, desc="train", unit="step", dynamic_ncols=True,
        mininterval=0.2 if stream.isatty() else 15.0, disable=not sharding.is_main(),
    ) as bar:  # fmt: skip
        yield bar


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _StopSignal:
    """Turns SIGTERM, SIGINT and SIGHUP into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.received = False

    def agreed(self, step: int) -> bool:
        """Whether to stop after ``step``: of many processes all stop at the same one, whichever got the signal."""
        if jax.process_count() == 1:
            return self.received
        from jax.experimental import multihost_utils

        return bool(multihost_utils.reached_preemption_sync_point(step))

    @contextmanager
    def listening(self) -> Iterator[None]:
        def note(number: int, frame: Any) -> None:
            self.received = True
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)

        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in STOPPING if number != signal.SIGHUP or not nohup]
        if jax.process_count() > 1:  # the runtime's own handler hears SIGTERM, and tells all processes
            numbers = [number for number in numbers if number != signal.SIGTERM]
        try:
            old = {number: signal.signal(number, note) for number in numbers}
        except ValueError:  # not the main thread: signals stay with whoever runs it
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _surviving(say: Callable[[str], None]) -> Callable[[str], None]:
    def said(line: str) -> None:
        with contextlib.suppress(OSError):  # a line that nobody reads ends no training
            say(line)

    return said


@contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """An error of the system that names no file names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
