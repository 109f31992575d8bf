"""Devices that are not here: topologies by name, and what is known of their chips."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jebm.errors import ConfigError, shown

__all__ = ["CHIPS", "Chip", "Topology", "topology"]


class Chip(NamedTuple):
    """A kind of accelerator, from its maker's data sheet.

    Attributes:
        memory: bytes.
        bandwidth: of the memory, bytes a second.
        link: bytes a second that a chip sends to the others of its slice or node, over all of its links.
        peak: operations a second, dense, by the names of `hlo.flops_by_precision`.
        clock: cycles a second, as a TPU's compiler counts them; 0 for a GPU, whose compiler counts none.
        network: bytes a second of a GPU to other nodes; 0 for a TPU, whose slices are joined by their links.
    """

    memory: int
    bandwidth: float
    link: float
    peak: dict[str, float]
    clock: float = 0.0
    network: float = 0.0


def _tpu_peak(bfloat16: float) -> dict[str, float]:
    # its matrix unit multiplies bfloat16: float32 in one pass unless asked, in six for "highest"
    return {"bfloat16": bfloat16, "default": bfloat16, "float32": bfloat16 / 6}


def _gpu_peak(bfloat16: float, tensorfloat32: float, float32: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "default": tensorfloat32, "float32": float32}


# TPUs: cloud.google.com/tpu/docs, a page for each version. GPUs: data sheets of NVIDIA's A100, H100 and H200 (SXM), and
# of the DGX systems for networks (a 200 or 400 Gb/s adapter a GPU); NVLink one way, half of what the sheets add up.
CHIPS = {
    "v4": Chip(32 << 30, 1228e9, 300e9, _tpu_peak(275e12), clock=1.05e9),
    "v5e": Chip(16 << 30, 819e9, 200e9, _tpu_peak(197e12), clock=1.5e9),
    "v5p": Chip(95 << 30, 2765e9, 600e9, _tpu_peak(459e12), clock=1.75e9),
    "v6e": Chip(32 << 30, 1640e9, 448e9, _tpu_peak(918e12), clock=1.75e9),
    "a100": Chip(84_987_740_160, 2039e9, 300e9, _gpu_peak(312e12, 156e12, 19.5e12), network=25e9),
    "h100": Chip(84_929_347_584, 3352e9, 450e9, _gpu_peak(989e12, 494e12, 67e12), network=50e9),
    "h200": Chip(149_250_113_536, 4800e9, 450e9, _gpu_peak(989e12, 494e12, 67e12), network=50e9),
}
# what the compiler is told of a GPU besides: multiprocessors, their float32 units, compute capability, bytes of shared
# memory of a multiprocessor, those a block may ask for, bytes of the second cache, clock, name
GPUS = {
    "a100": (108, 64, 8, 167_936, 166_912, 41_943_040, 1.41, "NVIDIA A100-SXM4-80GB"),
    "h100": (132, 128, 9, 233_472, 232_448, 52_428_800, 1.98, "NVIDIA H100 80GB HBM3"),
    "h200": (132, 128, 9, 233_472, 232_448, 52_428_800, 1.98, "NVIDIA H200"),
}
GPU_START = 2e-6  # seconds from one small kernel to the next, as is usual; no data sheet has it
GPU_SHARE = 0.75  # of a GPU's memory is what JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
KINDS = "cpu:8, v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:4x4, or nodes x GPUs, a100:1x8, h100:2x8, h200:2x8"
NONE = "which is not installed: pip install"
EXTRA = f"TPUs are planned by their own compiler, {NONE} libtpu"
EXTRA_GPU = f"GPUs are planned by their own compiler, {NONE} 'jax[cuda12]' (no GPU is needed)"


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
        name: as it was given.
        devices: JAX's, whether or not they are here.
        memory: bytes of a device that JAX may use.
        chip: what is known of the chip; None for a CPU.
        options: of the compiler.
    """

    name: str
    devices: Sequence[jax.Device]
    memory: int
    chip: Chip | None
    options: dict[str, str] = {}

    @property
    def num_hosts(self) -> int:
        """Processes that a run would have."""
        return len({device.process_index for device in self.devices})


def topology(name: str, slices: int = 1) -> Topology:
    """The devices that a name stands for, such as "cpu:8", "v5e:4x4" or "h100:2x8".

    Nothing here takes hold of an accelerator of this machine: JAX is told to use its CPU, so this comes before anything
    else that asks for a device.

    Args:
        name: the kind, and the shape of a slice or the numbers of nodes and of GPUs of each.
        slices: how many of them, joined by the slower network.

    Raises:
        ConfigError: an unknown kind or shape; a compiler that is not installed; a process that has its devices already.
    """
    kind, _, shape = name.partition(":")
    if kind in ("cpu", *CHIPS) and not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", shape):
        raise ConfigError(f"--topology {shown(name)}: give a kind and a shape, such as {KINDS}")
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        return _cpu(name, shape, slices)
    if kind in GPUS:
        return _gpu(name, kind, slices)
    if kind in CHIPS:
        return _tpu(name, kind, slices)
    raise ConfigError(f"--topology {shown(name)}: there are {KINDS}")


def _cpu(name: str, shape: str, slices: int) -> Topology:
    if slices > 1 or "x" in shape:
        raise ConfigError(
            f"--topology {name} with --slices {slices}: CPU devices are one row of one slice, such as cpu:8"
        )
    number = int(shape)
    try:
        jax.config.update("jax_num_cpu_devices", number)
        devices = jax.devices("cpu")
    except RuntimeError:  # they are made once in a process
        devices = jax.devices("cpu")
    if len(devices) < number:
        raise ConfigError(
            f"--topology {name}: this process has {len(devices)} CPU devices already: run it in a fresh one, without "
            "xla_force_host_platform_device_count in XLA_FLAGS"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Topology(name, devices[:number], memory // number, None)


def _tpu(name: str, kind: str, slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"--topology {name}: {EXTRA}")
    from jax.experimental import topologies

    jax.config.update("jax_enable_compilation_cache", False)  # such programs cannot be read back without a chip
    # no chip is looked for, and several plans may run at a time
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for variable, value in {**quiet, "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_STDERR_LOG_LEVEL": "3"}.items():
        os.environ.setdefault(variable, value)
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices
    except Exception as error:  # of the plugin, in many kinds
        raise ConfigError(f"--topology {name}: libtpu has no such slice: {shown(str(error))}") from None
    assert len(devices) % math.prod(map(int, name.partition(":")[2].split("x"))) == 0
    return Topology(name, devices, CHIPS[kind].memory, CHIPS[kind])


def _gpu(name: str, kind: str, slices: int) -> Topology:
    numbers = name.partition(":")[2].split("x")
    if slices > 1 or len(numbers) != 2:
        raise ConfigError(
            f"--topology {name} with --slices {slices}: GPUs are nodes x GPUs of one slice, such as {kind}:2x8"
        )
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise ConfigError(f"--topology {name}: {EXTRA_GPU}")
    from jax.experimental import topologies

    jax.config.update("jax_enable_compilation_cache", False)  # such programs cannot be read back without a GPU
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # that there is no GPU is no news
    shape = "x".join([numbers[0], "1", numbers[1]])  # nodes, processes of each, GPUs of each
    try:
        devices = topologies.get_topology_desc(
            platform="cuda", target_config=_target_config(kind), topology=shape
        ).devices
    except Exception as error:  # of the plugin, in many kinds
        raise ConfigError(f"--topology {name}: the plugin for GPUs refuses it: {shown(str(error))}") from None
    # the fastest of several kernels would be chosen by running them
    options = {"xla_gpu_autotune_level": "0"}
    return Topology(name, devices, int(GPU_SHARE * CHIPS[kind].memory), CHIPS[kind], options)


def _target_config(kind: str) -> str:
    """XLA's ``GpuTargetConfigProto`` of a GPU, as text."""
    cores, units, capability, shared, most_shared, cache, clock, description = GPUS[kind]
    chip = CHIPS[kind]
    return f"""
        gpu_device_info {{
            threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
            core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
            shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {most_shared}
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
            memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {cache} device_memory_size: {chip.memory}
            cuda_compute_capability {{ major: {capability} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 7 }}
        runtime_version {{ major: 12 minor: 8 }}
        device_description_str: "{description}"
    """
