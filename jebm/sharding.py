"""Devices: the mesh, placement of arrays, start of many processes. Only this module names mesh axes.

A mesh has two axes, "data" and "fsdp". Batches, chains and banks are spread over both; parameters, their averages and
the optimiser's state are split over "fsdp" where they are large, and copied otherwise. The compiler (GSPMD) adds the
communication, so the program is the same for one device, eight devices and eight hosts.
"""

import collections
import ctypes
import functools
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jebm.energy import PyTree, require_int
from jebm.errors import ConfigError, JebmError

__all__ = [
    "Ask", "batch_sharding", "constrain_batch", "constrain_copied", "copy_to_all", "gathered_texts", "initialize",
    "leave", "led", "local_mesh", "local_rows", "make_mesh", "parameter_sharding", "platform", "replicated",
    "shard_batch", "wait_for_all",
]  # fmt: skip

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"
LONGEST_WAIT = 30 * 24 * 3600 * 1000  # milliseconds, for the work of process 0; a dead one ends the others at once
SMALLEST_SPLIT = 65_536  # entries; below, gathering an array costs more than its copies
LOST = 75  # EX_TEMPFAIL, the exit status that asks a scheduler to start the run again

Ask = Callable[[Mapping[str, Any]], None]
"""What process 0 asks of the others, see `led`."""


def initialize(environment: dict[str, str] | None = None) -> bool:
    """Starts `jax.distributed` where this process is one of many; before anything else uses a device.

    That is so where ``JEBM_COORDINATOR`` (host:port), ``JEBM_NUM_PROCESSES`` and ``JEBM_PROCESS_ID`` are set; where
    ``JEBM_DISTRIBUTED=1`` says that JAX finds the others by itself (a TPU pod); or in a SLURM step of several tasks,
    which share the GPUs of their node: one task a node has all of them.

    Args:
        environment: instead of ``os.environ``.

    Returns:
        Whether there was something to start. Errors of JAX, such as a coordinator that does not answer, are raised.
        From then on the loss of another process ends this one, with one line and status 75.

    Raises:
        ConfigError: one or two of the three variables, or a number that is none; GPUs of a node that its tasks do not
            divide.
    """
    environment = dict(os.environ) if environment is None else environment
    names = ("JEBM_COORDINATOR", "JEBM_NUM_PROCESSES", "JEBM_PROCESS_ID")
    given = [environment[name] for name in names if environment.get(name)]
    if given:
        whole = len(given) == len(names) and given[1].isdecimal() and given[2].isdecimal()
        if not whole or not given[0].rpartition(":")[2].isdecimal() or ":" not in given[0]:
            raise ConfigError(f"set all of {', '.join(names)} (host:port and two whole numbers), or none; got {given}")
        _start(coordinator_address=given[0], num_processes=int(given[1]), process_id=int(given[2]))
    elif environment.get("JEBM_DISTRIBUTED") == "1" or environment.get("SLURM_STEP_NUM_TASKS") not in (None, "", "1"):
        _start(local_device_ids=_gpus_of_task(environment))
    else:
        return False
    return True


def _start(**how: Any) -> None:
    """`jax.distributed.initialize`, but the loss of another process ends this one as `leave` does."""
    from jax._src import distributed  # no public function takes what to do then; the default writes a stack

    runtime: Any = distributed._jax
    connect = runtime.get_distributed_runtime_client
    runtime.get_distributed_runtime_client = functools.partial(connect, missed_heartbeat_callback=leave)
    try:
        jax.distributed.initialize(**how)
    finally:
        runtime.get_distributed_runtime_client = connect
    # jaxlib 0.10 cannot pass the reason to a Python function, and aborts
    ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)


def leave(reason: object) -> NoReturn:
    """Ends this process at once, with one line and status 75, since another is lost.

    Its programs may wait for the lost one, and so would its part of the runtime if it ended in order.
    """
    line = f"jebm: a process of this run was lost, or cannot be reached: {reason}"
    try:
        os.write(2, f"\n{' '.join(line.split())[:1000]}\n".encode())
    finally:
        os._exit(LOST)


_ABORTED = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: leave("the runtime of JAX has given up"))


def _gpus_of_task(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this task among those that it sees; None outside SLURM, without GPUs, and where JAX is told.

    Left alone, JAX takes one GPU a task, that of its SLURM_LOCALID.
    """
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    count = len(visible.split(",")) if visible else int(on_node) if on_node.isdecimal() else 0
    if not environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("JAX_LOCAL_DEVICE_IDS") or not count:
        return None
    tasks = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment.get("SLURM_NODEID", "0"))]
    if on_node.isdecimal() and count < int(on_node):  # SLURM has bound GPUs to the task: it sees no others
        return list(range(count))
    if count % tasks:
        raise ConfigError(
            f"{count} GPUs of a node do not divide over its {tasks} tasks: start one task a node "
            f"(--ntasks-per-node=1), which drives all of them, or {count}"
        )
    share, place = count // tasks, int(environment.get("SLURM_LOCALID", "0"))
    return list(range(place * share, (place + 1) * share))


def _tasks_per_node(text: str) -> list[int]:
    """SLURM's ``2(x3),1`` as ``[2, 2, 2, 1]``."""
    found = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in found if part for _ in range(int(part[2] or 1))]


def is_main() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the point of this name; at once where there is one process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gathered_texts(name: str, text: str) -> list[str]:
    """The texts of all processes, in their order, in every one of them; their devices need not be alike.

    Args:
        name: the same in every process.
        text: of this one.
    """
    if jax.process_count() == 1:
        return [text]
    client, name = _store(), _next(name)
    client.key_value_set(f"{name}/{jax.process_index()}", text)
    return [client.blocking_key_value_get(f"{name}/{i}", LONGEST_WAIT) for i in range(jax.process_count())]


def led(name: str, work: Callable[[Ask | None], int], serve: Callable[[dict[str, Any]], Callable[[], object]]) -> int:
    """The status that ``work(ask)`` returns in process 0; the others serve it, and return the same at its end.

    ``ask(request)`` returns once ``serve(request)`` has in each of the other processes, which then call what it
    returned. So a program over the devices of all processes (`make_mesh`) runs in all of them: process 0 starts it
    behind ``ask``, the others in that call. It raises a ConfigError where one could not serve, and none of them calls.

    Args:
        name: of the work.
        work: what it raises leaves process 0, and the others return 1. Where there is one process, it gets None.
        serve: from a request, which is written as JSON, to what is called when all are ready.
    """
    if jax.process_count() == 1:
        return work(None)
    client, name, numbers = _store(), _next(name), itertools.count()
    if not is_main():
        return _serve(client, name, serve)

    def ask(request: Mapping[str, Any]) -> None:
        number = next(numbers)
        client.key_value_set(f"{name}/asked/{number}", json.dumps(request))
        ready = [f"{name}/ready/{number}/{process}" for process in range(1, jax.process_count())]
        problems = [client.blocking_key_value_get(key, LONGEST_WAIT) for key in ready]
        problem = next((problem for problem in problems if problem), "")
        client.key_value_set(f"{name}/begun/{number}", problem)
        if problem:
            raise ConfigError(problem)

    status = 1
    try:
        status = work(ask)
    finally:
        client.key_value_set(f"{name}/asked/{next(numbers)}", json.dumps({"status": status}))
    return status


def _serve(client: Any, name: str, serve: Callable[[dict[str, Any]], Callable[[], object]]) -> int:
    for number in itertools.count():
        request = json.loads(client.blocking_key_value_get(f"{name}/asked/{number}", LONGEST_WAIT))
        if "status" in request:
            return int(request["status"])
        problem = ""
        try:
            begin = serve(request)
        except JebmError as error:
            problem = f"process {jax.process_index()} (on {socket.gethostname()}): {error}"
        client.key_value_set(f"{name}/ready/{number}/{jax.process_index()}", problem)
        if not client.blocking_key_value_get(f"{name}/begun/{number}", LONGEST_WAIT):
            begin()
    raise AssertionError


def _store() -> Any:
    """The processes' common store of texts: the only one that needs no program on the devices."""
    from jax._src import distributed

    return distributed.global_state.client


def _next(name: str) -> str:
    """A key that is new, and the same in all processes, where each asks for ``name`` as often as the others."""
    return f"jebm/{name}/{_store().key_value_increment(f'jebm/{name}/{jax.process_index()}', 1)}"


def local_mesh() -> Mesh:
    """`make_mesh` over the devices of this process."""
    if jax.process_count() == 1:
        return make_mesh()
    devices = np.array(jax.local_devices()).reshape(-1, 1)
    return Mesh(devices, (DATA_AXIS, FSDP_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def make_mesh(num_devices: int | None = None, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes, or the first ``num_devices``: axes "data" and "fsdp".

    Where the devices are in several slices, joined by a slower network, the data axis runs over the slices, and an fsdp
    axis lies within one of them.

    Args:
        num_devices: all of them by default.
        fsdp: devices over which large parameters are split; the data axis has ``num_devices / fsdp``.
        devices: instead of those of all processes; such as a topology's, for which programs are only compiled.

    Raises:
        ValueError: more devices asked for than there are, a number that ``fsdp`` does not divide, or slices of which
            ``num_devices`` takes unequal parts or ``fsdp`` no whole share.
    """
    devices = jax.devices() if devices is None else list(devices)
    num_devices = len(devices) if num_devices is None else require_int(num_devices, "num_devices", 1)
    fsdp = require_int(fsdp, "fsdp", 1)
    if num_devices > len(devices):
        raise ValueError(f"a mesh of {num_devices} devices was asked for; this process sees {len(devices)}")
    if num_devices % fsdp:
        raise ValueError(f"{num_devices} devices do not divide over an fsdp axis of {fsdp}: take a divisor")
    # Auto axes: banks are gathered by index and chains are vmapped over keys, which Explicit axes refuse
    types, devices = (AxisType.Auto, AxisType.Auto), devices[:num_devices]
    slices = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        shape = (num_devices // fsdp, fsdp)
        return jax.make_mesh(shape, (DATA_AXIS, FSDP_AXIS), axis_types=types, devices=devices)
    (size, *others) = set(slices.values())
    if others or size % fsdp:
        sizes = [slices[index] for index in sorted(slices)]
        raise ValueError(f"slices of {sizes} devices take no mesh with an fsdp axis of {fsdp}: it must divide each")
    within, between = (size // fsdp, fsdp), (len(slices), 1)
    # as jax.make_mesh does: on these chips a mesh axis may need a part of a physical one
    split = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")
    placed = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=split)
    return Mesh(placed, (DATA_AXIS, FSDP_AXIS), axis_types=types)


def platform(mesh: Mesh) -> str:
    """What programs on this mesh are compiled for: "cpu", "gpu" or "tpu"."""
    name: str = mesh.devices.flat[0].platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def shard_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Spreads the leading axis of every leaf over the mesh. Of many processes, each brings a whole tree, of which its
    `local_rows` are taken.

    Raises:
        ValueError: a leading axis that the number of devices does not divide.
    """
    sharding = batch_sharding(mesh)

    def place(leaf: Array | np.ndarray) -> Array:
        if leaf.shape[0] % mesh.size:
            raise ValueError(f"a leading axis of {leaf.shape[0]} does not divide over {mesh.size} devices")
        if not sharding.is_fully_addressable and (not isinstance(leaf, Array) or leaf.is_fully_addressable):
            # each process places its own rows
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
        return jax.device_put(leaf, sharding)

    return jax.tree.map(place, tree)


def copy_to_all(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of every leaf on each device of the mesh; of many processes, each brings the same tree."""
    sharding = replicated(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _copy(leaf, sharding), tree)


def _copy(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
    """`jax.device_put` would compare the processes' values by a program."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_copy(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a batch that `shard_batch` takes from this process, int64, ascending."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices if index is not None]))


def parameter_sharding(tree: PyTree, mesh: Mesh, smallest: int = SMALLEST_SPLIT) -> PyTree:
    """Shardings for the arrays of ``tree`` (abstract ones will do) that are no batch: parameters and their like.

    A leaf of at least ``smallest`` entries is split over "fsdp" along its longest axis that divides; others are copied.
    """

    def place(leaf: Array) -> NamedSharding:
        size = mesh.shape[FSDP_AXIS]
        axes = [i for i, n in enumerate(leaf.shape) if n % size == 0]
        if size == 1 or leaf.size < smallest or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP_AXIS))

    return jax.tree.map(place, tree)


def constrain_batch(tree: PyTree) -> PyTree:
    """Inside a compiled program: spreads the leading axis of every leaf over the mesh in force (`jax.set_mesh`).

    What a program draws for itself, such as latents, has no placement of its own; left alone it would be computed in
    full on every device; and where split weights made it, on a part of them. Without a mesh nothing changes, nor does a
    leaf whose leading axis the number of devices does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def spread(leaf: Array) -> Array:
        if leaf.shape[0] % mesh.size:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec((DATA_AXIS, FSDP_AXIS)))

    return jax.tree.map(spread, tree)


def constrain_copied(tree: PyTree) -> PyTree:
    """Inside a compiled program: every device of the mesh in force gets the whole of every leaf, here and once.

    Split parameters that a loop uses would otherwise be gathered in each of its steps. Without a mesh nothing changes.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that keeps a copy on each device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that spreads the leading axis over all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, FSDP_AXIS)))
