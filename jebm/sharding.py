"""Devices: the mesh, and what lies where on it. Only this module names mesh axes."""

import jax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jebm.energy import PyTree

__all__ = ["abstract_replicated", "make_mesh", "replicated", "shard_batch"]

DATA_AXIS = "data"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over all devices, or the first ``num_devices``, with one axis "data" for batches and chains.

    Raises:
        ValueError: more devices asked for than there are.
    """
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise ValueError(f"a mesh of {num_devices} devices was asked for; this process sees {len(devices)}")
    # Auto axes: banks are gathered by index and chains are vmapped over keys, which Explicit axes refuse
    types, devices = (AxisType.Auto,), devices[:num_devices]
    return jax.make_mesh((num_devices,), (DATA_AXIS,), axis_types=types, devices=devices)


def shard_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Spreads the leading axis of every leaf over the mesh.

    Raises:
        ValueError: a leading axis that the number of devices does not divide.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def place(leaf: Array) -> Array:
        if leaf.shape[0] % mesh.size:
            raise ValueError(f"a leading axis of {leaf.shape[0]} does not divide over {mesh.size} devices")
        return jax.device_put(leaf, sharding)

    return jax.tree.map(place, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that keeps a copy on each device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def abstract_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes and dtypes of ``tree`` with that sharding, as a target to restore onto."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
