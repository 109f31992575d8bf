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
        link: bytes a second between chips, all links of one together.
        clock: cycles a second, as the compiler counts them.
        peak: operations a second on bfloat16, which a TPU takes for float32, too.
    """

    memory: int
    link: float
    clock: float
    peak: float


CHIPS = {
    "v4": Chip(32 << 30, 300e9, 1.05e9, 275e12),
    "v5e": Chip(16 << 30, 200e9, 1.5e9, 197e12),
    "v5p": Chip(95 << 30, 600e9, 1.75e9, 459e12),
    "v6e": Chip(32 << 30, 448e9, 1.75e9, 918e12),
}
KINDS = "cpu:8, v4:2x2x4, v5e:4x4, v5p:2x2x2 or v6e:4x4"
EXTRA = "TPUs are planned by their own compiler, which is not installed: pip install 'jebm[plan]' (or libtpu)"


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
        name: as it was given.
        devices: JAX's, whether or not they are here.
        memory: bytes a device.
        chip: what is known of the chip; None for a CPU.
    """

    name: str
    devices: Sequence[jax.Device]
    memory: int
    chip: Chip | None

    @property
    def num_hosts(self) -> int:
        """Processes that a run would have."""
        return len({device.process_index for device in self.devices})


def topology(name: str, slices: int = 1) -> Topology:
    """The devices that a name stands for, such as "cpu:8" or "v5e:4x4".

    Nothing here takes hold of an accelerator of this machine: JAX is told to use its CPU, so this comes before anything
    else that asks for a device.

    Args:
        name: the kind and the shape of a slice.
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
