"""The programs of a run, compiled ahead of time for a topology, and what they need."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jebm import sharding
from jebm.config import Config
from jebm.planning import hlo
from jebm.planning.topology import GPU_START, Topology
from jebm.runs import run as runs
from jebm.runs.drawing import batch_program, drawing
from jebm.training.attempt import NUM_PROBES
from jebm.training.placement import mesh_of, placed
from jebm.training.step import make_step, multiplying

__all__ = ["Plan", "Program", "plan"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, on one device.

    Attributes:
        resident: bytes that lie there all the time: the state, and what a program takes.
        temporary: bytes of its intermediate values and results, said by the compiler.
        peak: bytes at once: the compiler's word where it says so, else the sum of the two.
        flops: operations of products in a run of the program, loops counted as often as they turn.
        moved: bytes that go through memory in a run, so counted.
        inside: collectives within loops, ``{kind: (number, bytes)}``.
        outside: collectives outside loops.
        bounds: seconds, estimated, of a run's parts. For a TPU the compiler's "cycles" and, at the links' full speed,
            "collectives"; for a GPU a roofline: "products" at the chip's peak, "memory" at its bandwidth,
            "collectives", and "kernels", the starts of many small ones.
        seconds: estimated, of one run: the sum of the bounds for a TPU, the largest for a GPU; None where nothing is
            known of the chip.
        compilation: seconds that the compilation took here.
    """

    resident: int
    temporary: int
    peak: int
    flops: int
    moved: int
    inside: dict[str, hlo.Collectives]
    outside: dict[str, hlo.Collectives]
    bounds: dict[str, float]
    seconds: float | None
    compilation: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would need and do.

    Attributes:
        topology: its name.
        slices: their number.
        devices: all of them.
        hosts: processes.
        mesh: devices along each axis.
        rows: images of a batch on one device.
        batch_size: images of a training step.
        num_steps: of the training.
        memory: bytes of one device that JAX may use.
        share: what that is of all that the device has.
        state: bytes of the training state on one device.
        batch: bytes of its images of a batch.
        whole_batch: whether the method takes no microbatches.
        programs: the training step, the sample grid (if there is one), and a batch of the evaluation; or one of them.
        runs: how often each of them runs in a training and one evaluation.
    """

    topology: str
    slices: int
    devices: int
    hosts: int
    mesh: dict[str, int]
    rows: int
    batch_size: int
    num_steps: int
    memory: int
    share: float
    state: int
    batch: int
    whole_batch: bool
    programs: dict[str, Program]
    runs: dict[str, int]

    @property
    def too_large(self) -> list[str]:
        """Names of the programs that do not fit a device."""
        return [name for name, program in self.programs.items() if program.peak > self.memory]

    @property
    def images_per_second(self) -> float | None:
        """Estimated, of training, without sample grids."""
        step = self.programs.get("training step")
        return self.batch_size / step.seconds if step and step.seconds else None

    def hours(self, name: str) -> float | None:
        """Estimated, of all runs of a program."""
        seconds = self.programs[name].seconds
        return None if seconds is None else seconds * self.runs[name] / 3600


def plan(
    config: Config, topology: Topology, slices: int = 1, *, only: str | None = None,
    log: Callable[[str], None] = lambda line: None, done: Callable[[str, Program], None] = lambda name, program: None,
) -> Plan:  # fmt: skip
    """Compiles what `jebm train` and `jebm evaluate` would run, and reads the programs. Needs no data.

    Args:
        config: the experiment.
        topology: the devices.
        slices: how many slices they are of.
        only: name of a program: the others are not compiled.
        log: receives a line before each compilation.
        done: receives the name of a program and what was read from it, behind each.

    Raises:
        ConfigError: a batch, or ``training.fsdp``, that does not divide over the devices; a frozen generator that is
            not there.
    """
    mesh = mesh_of(config, topology.devices)
    method = runs.build(config)
    state = placed(runs.abstract_state(method, config), mesh)
    images = jax.ShapeDtypeStruct(
        (config.data.batch_size, *method.image_shape), "uint8", sharding=sharding.batch_sharding(mesh)
    )
    copied = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding.replicated(mesh))  # noqa: E731
    whole, key = jax.tree.map(copied, state.method), copied(state.key)
    probe = np.zeros((NUM_PROBES, *method.image_shape), np.uint8)
    settings, scored = config.training, config.evaluation
    size = min(scored.batch_size, scored.num_samples)
    step = make_step(config, method, jax.tree.map(lambda a: a.sharding, state), probe)
    programs: dict[str, tuple[Any, tuple[Any, ...], int]] = {
        "training step": (step, (state, images), _bytes((state, images))),
        "sample grid": (drawing(method, mesh, settings.num_samples), (key, state.method), _bytes(state)),
        "evaluation batch": (batch_program(method, mesh, size), (key, 0, whole), _bytes(whole)),
    }
    number = {
        "training step": settings.num_steps,
        "sample grid": -(-settings.num_steps // settings.sample_every) if settings.sample_every else 0,
        "evaluation batch": -(-scored.num_samples // size),
    }
    compiled = {}
    with jax.set_mesh(mesh), multiplying(config):  # as the loop does
        for name, (program, arguments, resident) in programs.items():
            if number[name] and only in (None, name):
                log(f"compiling the {name} for {topology.name}")
                begun = time.perf_counter()
                found = program.lower(*arguments).compile(compiler_options=topology.options)
                compiled[name] = _read(found, resident, topology, time.perf_counter() - begun)
                done(name, compiled[name])
    return Plan(
        topology=topology.name, slices=slices, devices=mesh.size, hosts=topology.num_hosts, mesh=dict(mesh.shape),
        rows=config.data.batch_size // mesh.size, batch_size=config.data.batch_size, num_steps=settings.num_steps,
        memory=topology.memory, share=topology.memory / topology.chip.memory if topology.chip else 1.0,
        state=_bytes(state), batch=_bytes(images), whole_batch=method.whole_batch is not None, programs=compiled,
        runs=number,
    )  # fmt: skip


def _bytes(tree: Any) -> int:
    """On one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _read(compiled: jax.stages.Compiled, resident: int, topology: Topology, compilation: float) -> Program:
    lines, memory = hlo.executed(compiled.as_text() or ""), compiled.memory_analysis()
    assert memory is not None  # every backend that is planned for has it
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # the compiler's peak is over what the program takes, which need not be all that is there
    beside = resident - min(resident, memory.argument_size_in_bytes)
    stated = memory.peak_memory_in_bytes if topology.chip is not None else 0  # for a CPU it is of temporaries alone
    inside, outside = (hlo.collectives(lines, looped=looped) for looped in (True, False))
    bounds = {} if topology.chip is None else _bounds(lines, topology)
    together = sum if topology.chip is not None and topology.chip.clock else max
    return Program(
        resident=resident, temporary=temporary, peak=beside + stated if stated else resident + temporary,
        flops=hlo.flops(lines), moved=hlo.moved(lines), inside=inside, outside=outside, bounds=bounds,
        seconds=together(bounds.values()) if bounds else None, compilation=compilation,
    )  # fmt: skip


def _bounds(lines: list[hlo.Executed], topology: Topology) -> dict[str, float]:
    """Estimated seconds of the parts of a program, see `Program`."""
    chip = topology.chip
    assert chip is not None
    kinds = [kind for looped in (True, False) for kind in hlo.collectives(lines, looped=looped).values()]
    speed = chip.network if chip.network and topology.num_hosts > 1 else chip.link
    collectives = sum(kind.num_bytes for kind in kinds) / speed
    if chip.clock:
        return {"cycles": hlo.cycles(lines) / chip.clock, "collectives": collectives}
    products = sum(count / chip.peak[name] for name, count in hlo.flops_by_precision(lines).items())
    return {
        "products": products, "memory": hlo.moved(lines) / chip.bandwidth, "collectives": collectives,
        "kernels": hlo.kernels(lines) * GPU_START,
    }  # fmt: skip
