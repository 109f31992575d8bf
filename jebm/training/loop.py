"""The training loop: any `Method`, one compiled step, checkpoints of everything, resumed bit for bit.

The file is in the order of a training: the start, a recovery, and `train` around them and `jebm.training.attempt`.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jebm import data, sharding
from jebm.config import Config, config_hash
from jebm.energy import Generator
from jebm.errors import ConfigError, JebmError
from jebm.mcmc.bank import Bank
from jebm.methods import accumulation
from jebm.methods.shared import Trained
from jebm.runs import run as runs
from jebm.runs.checkpoints import CheckpointNotRead, Checkpoints, NoCheckpoint
from jebm.runs.directory import RunDirectory
from jebm.runs.metrics_log import MetricsFile
from jebm.runs.run import abstract_state, load_source
from jebm.runs.state import TrainState, initial_state
from jebm.training import identity, meters, recovery, writers
from jebm.training.attempt import Files, ResumePoint, Training, Unhealthy, attempt
from jebm.training.lock import locked
from jebm.training.output import naming, surviving_log
from jebm.training.placement import mesh_of, placed

__all__ = ["Diverged", "train"]

ADVICE = "Lower the learning rates or the step size, or change training.seed"


class Diverged(RuntimeError):
    """The run is no longer healthy, and no recovery is left."""


# --- the start ---------------------------------------------------------------------------------------------------


def _start(
    training: Training, checkpoints: Checkpoints, log: Callable[[str], None], check: Callable[[dict[str, Any]], None]
) -> ResumePoint:
    """The newest whole checkpoint, if ``check`` of its meta raises nothing; or a fresh start."""
    if checkpoints.steps():
        try:
            state, meta = checkpoints.restore(training.abstract)
            check(meta)
            events, history = _read_meta(meta, int(state.step))
            checkpoints.discard_after(int(state.step))
            log(f"resuming from step {int(state.step)}")
            return ResumePoint(state, events, history)
        except NoCheckpoint:
            log("no checkpoint is whole: starting again from step 0; the old ones are in checkpoints_damaged")
            checkpoints.discard_after(-1)
    _require_frozen_weights(training)
    config, method = training.config, training.method
    batch = (config.data.batch_size, *method.image_shape)
    # it runs once: on a CPU most of its time would go into optimising the random draws, unless there is a bank to fill
    is_bank = lambda node: isinstance(node, Bank)  # noqa: E731
    filled = any(map(is_bank, jax.tree.leaves(training.abstract, is_leaf=is_bank)))
    hasty = sharding.platform(training.mesh) == "cpu" and not filled
    make = jax.jit(
        lambda: initial_state(method, config.training.seed, jnp.zeros(batch)),
        out_shardings=jax.tree.map(lambda a: a.sharding, training.abstract),
        compiler_options={"xla_backend_optimization_level": 0} if hasty else None,
    )
    return ResumePoint(make(), [], [])


def _require_frozen_weights(training: Training) -> None:
    """A network that does not learn gets no random weights."""
    generator, networks = training.generator, training.method.networks(training.abstract.method)
    frozen = [name for name, network in networks.items() if not isinstance(network, Trained)]
    if frozen and generator is None:
        raise ConfigError(
            f"method.{frozen[0]} is a frozen network, and there are no weights of it in this --workdir; bring them "
            "with 'jebm convert', or name the directory of a run"
        )
    if generator is not None and not generator.has_weights:
        raise ConfigError(
            "method.generator: its run is gone, or has another architecture than when this run began, and there is no "
            "whole checkpoint here: bring it back, or take another --workdir"
        )


def _read_meta(meta: dict[str, Any], step: int) -> tuple[list[recovery.Event], list[dict[str, float]]]:
    try:
        events = [recovery.Event(**event) for event in meta.get("recoveries", [])]
        history = [{str(k): float(v) for k, v in line.items()} for line in meta.get("history", [])]
        whole = all(type(n) is int and n >= 0 for event in events for n in event[:3])
        if not whole or [event.attempt for event in events] != list(range(1, len(events) + 1)):
            raise ValueError("the recoveries are not numbered")
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointNotRead(
            f"the description (meta) of the checkpoint of step {step} is of another form ({error}): move it away to "
            "resume from an earlier one. Nothing was changed"
        ) from error
    return events, history


# --- a recovery --------------------------------------------------------------------------------------------------


def _recover(
    training: Training, events: list[recovery.Event], unhealthy: Unhealthy, files: Files, log: Callable[[str], None]
) -> ResumePoint:
    """The healthy point that the next attempt starts from; raises `Diverged` if no attempt is left."""
    step, reason, senseless = unhealthy.step, unhealthy.reason, unhealthy.senseless
    allowed = training.config.training.recovery.max_attempts
    files.checkpoints.wait()
    steps = [s for s in files.checkpoints.steps() if s < step]
    newest = f"the newest checkpoint (step {steps[-1]}) is healthy" if steps else "there is no checkpoint yet"
    ending = None
    if senseless and (senseless.lasting or not steps):  # backing off would not mend it
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
    point = _start(training, files.checkpoints, lambda line: None, lambda meta: None)
    event = recovery.Event(len(events) + 1, step, int(point.state.step), reason)
    # the fold before the attempt's keeps its keys apart from those of the steps
    key = jax.random.fold_in(jax.random.fold_in(point.state.key, 2**32 - 1), event.attempt)
    files.metrics.rewind(event.restored, len(events))
    for writer in files.writers:
        writer.rewind(event.restored)
    files.metrics.write({"step": event.restored, "event": "recovery", **event._asdict()})
    log(f"step {step}: {reason}; attempt {event.attempt} of {allowed} resumes from step {event.restored}")
    state = point.state._replace(key=jax.device_put(key, point.state.key.sharding))
    return ResumePoint(state, [*events, event], point.history)


# --- training ----------------------------------------------------------------------------------------------------


def train(
    config: Config,
    directory: RunDirectory,
    log: Callable[[str], None] = print,
    *,
    allow_changed_data: bool = False,
    generator: Generator | None = None,
    profile: tuple[int, int] | None = None,
    on_grid: Callable[[data.Source], Any] | None = None,
    peak: float | None = None,
) -> TrainState:
    """Trains to ``config.training.num_steps``, from the newest whole checkpoint in ``directory`` if there is one.

    A run that diverges (`jebm.training.recovery`) returns to its newest healthy checkpoint, takes a fresh key and
    another order of the data, and backs off as ``config.training.recovery`` says; a second divergence from the same
    checkpoint returns to the one before. SIGTERM, SIGINT or SIGHUP saves a checkpoint and ends the run (`SystemExit`
    0), which the same command resumes. With `jax.distributed`, all processes call this with the same arguments and one
    shared ``directory``, in which only process 0 writes metrics and pictures. A directory takes one training at a time.
    Output that fails (a closed terminal) does not end a training.

    Args:
        config: the experiment. It must equal that of a run which is already in ``directory``, but for
            ``training.num_steps`` and what does not change the result (logging, checkpoints, evaluation).
        directory: the run directory, created if missing.
        log: receives lines for the user.
        allow_changed_data: resume although the images, or the frozen generator, differ from those at the start.
        generator: the function that a configuration with ``method.generator="given"`` is over (`jebm.refine`).
        profile: first and last step of those that `jax.profiler` traces, into ``<directory>/profile``.
        on_grid: called on process 0, when training begins and after each sample grid, with the images; what it raises
            is logged, and ends nothing.
        peak: operations a second of one device, of which ``mfu`` in the metrics is a share; None: unknown, without it.

    Raises:
        ConfigError: a configuration that does not fit the data, the devices or the run in ``directory``; data or a
            frozen generator that have changed since; processes that differ; another training in ``directory``.
        Diverged: and no attempt is left, or none would help; the newest checkpoint is healthy.
        CheckpointNotWritten: no room, for example; older checkpoints are as they were.
        CheckpointNotRead: a checkpoint that is not provably damaged, but cannot be read; nothing was changed.
    """
    log = surviving_log(log)
    training, facts, problem = None, None, None
    try:
        meters.check_folder(profile, directory.path)
        training, facts = _prepared(config, directory, log, generator, peak)
    except JebmError as error:
        if jax.process_count() == 1:
            raise
        problem = str(error)
    with contextlib.ExitStack() as held:
        problem = problem or _lock(held, directory)
        identity.check_processes(facts, problem)  # if one has a problem, all stop
        assert training is not None
        assert facts is not None
        for line in meters.first_lines(config, training.mesh, training.abstract):
            log(line)
        state, stopped = _train(training, directory, facts, log, allow_changed_data, profile, on_grid)
    if stopped:
        log(f"stopped by signal after step {int(state.step)}; saved, and the same command resumes from there")
        sys.exit(0)
    return state


def _prepared(
    config: Config, directory: RunDirectory, log: Callable[[str], None], generator: Generator | None, peak: float | None
) -> tuple[Training, identity.Facts]:
    """What a process does before it meets the others; nothing is written."""
    mesh = mesh_of(config)
    recovery.check_back_off(config.method, config.training.recovery)
    identity.check_same_configuration(config, directory)
    writers.check(config.training.writers, directory)
    frozen = runs.given_function(config, generator) if generator else runs.frozen_generator(config, directory)
    method = runs.build(config, frozen.generator if frozen else None)
    accumulation.update_of(method, config.training.microbatches)  # refused before anything is written
    source = load_source(config, method.image_shape)
    try:
        data.steps_per_epoch(len(source.train), config.data.batch_size)
    except ValueError as error:
        raise ConfigError(f"data.batch_size={config.data.batch_size}: {error}") from None
    if frozen and not frozen.has_weights:
        log("method.generator: another run than when this one began, or none: the weights kept here are used")
    training = Training(config, method, frozen, source, mesh, placed(abstract_state(method, config), mesh), peak)
    return training, identity.facts(config, source, frozen)


def _lock(held: contextlib.ExitStack, directory: RunDirectory) -> str | None:
    """Locks the directory; returns the reason if it cannot."""
    if not sharding.is_main():
        return None
    try:
        held.enter_context(locked(directory.path / "train.lock"))
    except ConfigError as error:
        return str(error)
    return None


def _looking(
    on_grid: Callable[[data.Source], Any] | None, source: data.Source, log: Callable[[str], None]
) -> Callable[[], None]:
    """``on_grid`` on process 0, whose errors end nothing."""

    def look() -> None:
        try:
            if on_grid is not None and sharding.is_main():
                on_grid(source)
        except Exception as error:
            log(f"training goes on, but was not shown: {error}")

    return look


def _train(
    training: Training, directory: RunDirectory, facts: identity.Facts, log: Callable[[str], None],
    allow_changed_data: bool, profile: tuple[int, int] | None, on_grid: Callable[[data.Source], Any] | None,
) -> tuple[TrainState, bool]:  # fmt: skip
    """The state, and whether a signal stopped it."""
    config, generator = training.config, training.generator
    checkpoints = Checkpoints(directory.checkpoints, config.training.keep_checkpoints)

    def check(meta: dict[str, Any]) -> None:
        changed = identity.changed(meta, facts)
        if changed and not allow_changed_data:
            raise ConfigError(
                f"{directory.path}: {changed}: restore it, take another --workdir, or resume with --allow-changed-data"
            )

    held = contextlib.ExitStack()
    try:
        point = _start(training, checkpoints, log, check)
        start = int(point.state.step)
        if start > config.training.num_steps:
            given = f"training.num_steps={config.training.num_steps}"
            raise ConfigError(f"{given}: the run in {directory.path} is at step {start} already")
        meters.check_profile(profile, start, config.training.num_steps)
        profiler = meters.Profiler(profile, directory.path / "profile", log)
        names = config.training.writers if sharding.is_main() else ()
        beside = held.enter_context(writers.opened(names, directory, config, start))
        if sharding.is_main():
            with naming(directory.config):
                directory.write_config(config)
                if generator and generator.configs:
                    directory.write_generator(generator.configs, generator.fingerprint)
        fixed = {name: value for name, value in facts.items() if name != "configuration" and value is not None}
        with naming(directory.metrics):
            metrics_file = MetricsFile(directory.metrics, start, len(point.events), sharding.is_main())
        meta = {"config_hash": config_hash(config), **fixed}
        look = _looking(on_grid, training.source, log)
        files = Files(directory, checkpoints, metrics_file, meta, profiler, look, log, beside)
        with contextlib.closing(metrics_file):
            look()
            while True:
                try:
                    return attempt(training, point, files)
                except Unhealthy as unhealthy:
                    point = _recover(training, point.events, unhealthy, files, log)
    finally:
        with contextlib.closing(checkpoints):
            held.close()
