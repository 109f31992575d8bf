"""A run seen from outside: its devices, its speed, its memory, and traces of its steps."""

import collections
import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jebm import paths, sharding
from jebm.config import Config
from jebm.energy import PyTree
from jebm.errors import ConfigError
from jebm.runs.starts import duration

__all__ = [
    "Finished", "Profiler", "Speed", "check_folder", "check_profile", "device_memory", "first_lines", "utilization",
]  # fmt: skip

ACCELERATORS = {"/dev/nvidia0": "an NVIDIA GPU", "/dev/kfd": "an AMD GPU", "/dev/accel0": "a TPU"}


def first_lines(config: Config, mesh: jax.sharding.Mesh, state: PyTree) -> list[str]:
    """What a run is going to use, in lines for the user.

    Args:
        config: the experiment.
        mesh: its devices.
        state: its state, abstract, with shardings.
    """
    first, settings = mesh.devices.flat[0], config.training
    hosts = len({device.process_index for device in mesh.devices.flat})
    rows = config.data.batch_size // mesh.size
    parts = "" if settings.microbatches == 1 else f", in {settings.microbatches} microbatches"
    sizes = [(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize, a.size * a.dtype.itemsize)
             for a in jax.tree.leaves(state)]  # fmt: skip
    here, whole = (_bytes(sum(column)) for column in zip(*sizes, strict=True))
    lines = [
        f"devices: {mesh.size} x {first.device_kind} ({first.platform}) on {_hosts(hosts)}; "
        f"mesh {' x '.join(f'{name} {size}' for name, size in mesh.shape.items())}",
        f"batch: {config.data.batch_size} images, {rows} a device{parts}; state: {here} a device, {whole} in all",
    ]
    if unused := _unused(first.platform):
        lines.append(unused)
    return lines


def _hosts(number: int) -> str:
    return "1 host" if number == 1 else f"{number} hosts"


def _unused(platform: str, exists: Callable[[str], bool] = os.path.exists) -> str | None:
    """A line about an accelerator of this machine that the run does not use, or None."""
    present = [name for path, name in ACCELERATORS.items() if exists(path)]
    if platform != "cpu" or not present:
        return None
    if chosen := os.environ.get("JAX_PLATFORMS"):
        reason = f"JAX_PLATFORMS={chosen} says so"
    else:
        reason = "this jaxlib cannot use it: install JAX for it, such as pip install 'jax[cuda12]'"
    return f"WARNING: {present[0]} is present and NOT used, the run is on the CPU: {reason}"


def _bytes(number: int) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000  # type: ignore[assignment]
    return f"{number:.3g} GB"


def device_memory() -> dict[str, int]:
    """``device_bytes`` and ``device_bytes_peak`` in use, the most of this process's devices; empty where unknown."""
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"device_bytes": "bytes_in_use", "device_bytes_peak": "peak_bytes_in_use"}
    return {
        name: max(stats[key] for stats in known)
        for name, key in names.items()
        if known and all(key in stats for stats in known)
    }


class Finished:
    """The steps that the devices have finished: dispatch runs ahead of them."""

    def __init__(self) -> None:
        """Begins with none."""
        self._running: collections.deque[tuple[int, Any]] = collections.deque()
        self._newest = 0

    def started(self, step: int, result: Any) -> None:
        """To be called when ``step`` is dispatched, with one of its results, an array."""
        self._running.append((step, result))

    def newest(self) -> int:
        """The newest finished step; 0 before the first. Nothing is waited for."""
        while self._running and self._running[0][1].is_ready():
            self._newest, _ = self._running.popleft()
        return self._newest


class Speed:
    """Steps and images a second over the steps since the last reading.

    The first step is left out, since it compiles, and so is what happens within `paused`.
    """

    def __init__(self, batch_size: int, now: Callable[[], float] = time.perf_counter) -> None:
        """Begins at the first `started`."""
        self._batch_size, self._now, self._begun = batch_size, now, now()
        self._mark: tuple[int, float] | None = None
        self._paused = self._compiling = 0.0
        self._all_steps, self._all_seconds = 0, 0.0

    def started(self, step: int) -> None:
        """To be called after each step; the first call begins the first window."""
        if self._mark is None:
            self._mark = (step, self._now())
            self._compiling = self._mark[1] - self._begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not counted: samples, checkpoints."""
        begun = self._now()
        try:
            yield
        finally:
            self._paused += self._now() - begun

    def read(self, step: int) -> dict[str, float]:
        """``steps_per_second`` and ``images_per_second``, when ``step`` is done; empty without a step to measure."""
        if self._mark is None or step <= self._mark[0]:
            return {}
        steps, seconds = step - self._mark[0], self._now() - self._mark[1] - self._paused
        self._mark, self._paused = (step, self._now()), 0.0
        self._all_steps, self._all_seconds = self._all_steps + steps, self._all_seconds + seconds
        rate = steps / max(seconds, 1e-9)
        return {"steps_per_second": round(rate, 3), "images_per_second": round(rate * self._batch_size, 3)}

    def last_line(self, start: int, step: int) -> str:
        """A line for the user at the end of the steps ``start + 1`` to ``step``."""
        took = f"steps {start + 1:,} to {step:,} in {duration(self._now() - self._begun)}"
        if not self._all_steps:
            return took
        rate = self._all_steps * self._batch_size / max(self._all_seconds, 1e-9)
        return f"{took} (compilation {duration(self._compiling)}), {rate:,.0f} images/s"


def utilization(operations: float, steps_per_second: float, devices: int, peak: float | None) -> dict[str, float]:
    """``flops_per_second`` of all devices and ``mfu``, their share of the peak; empty where either is not known.

    Args:
        operations: of a step over all devices, `jebm.training.operations.count`.
        steps_per_second: as measured.
        devices: how many.
        peak: operations a second of one device.
    """
    if peak is None or not math.isfinite(operations):
        return {}
    rate = operations * steps_per_second
    return {"flops_per_second": float(f"{rate:.6g}"), "mfu": round(rate / (devices * peak), 5)}


class Profiler:
    """A trace of some steps by `jax.profiler`, for TensorBoard's profile page, Perfetto or XProf."""

    def __init__(self, steps: tuple[int, int] | None, folder: paths.Path, log: Callable[[str], None]) -> None:
        """Traces ``steps``, first and last, into ``folder``; nothing for None."""
        self._steps, self._folder, self._log = steps, folder, log
        self._running = False

    def before(self, step: int) -> None:
        """Starts where ``step``, the next one, is among those to trace."""
        if self._steps is not None and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        """Stops after the last step, when its ``metrics`` are computed."""
        if self._running and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Stops if it runs."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if sharding.is_main():
                self._log(f"profile: {self._folder}")


def check_folder(steps: tuple[int, int] | None, folder: paths.Path) -> None:
    """Looks whether a trace can be written.

    Raises:
        ConfigError: into an object store.
    """
    if steps is not None and paths.is_remote(folder):
        raise ConfigError(f"--profile: traces go to local folders alone, and {folder} is none; take a local --workdir")


def check_profile(steps: tuple[int, int] | None, start: int, end: int) -> None:
    """Compares the steps to trace with those that will be trained, ``start + 1`` to ``end``.

    Raises:
        ConfigError: none of them will be.
    """
    if steps is not None and (steps[1] <= start or steps[0] > end):
        raise ConfigError(f"--profile {steps[0]}:{steps[1]}: this training makes the steps {start + 1} to {end}")
