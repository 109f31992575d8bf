"""Devices: the mesh, and what lies where on it. Only this module names mesh axes."""

import jax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jebm.energy import PyTree

__all__ = ["constrain_batch", "make_mesh", "replicated", "shard_batch", "spread"]

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
    sharding = spread(mesh)

    def place(leaf: Array) -> Array:
        if leaf.shape[0] % mesh.size:
            raise ValueError(f"a leading axis of {leaf.shape[0]} does not divide over {mesh.size} devices")
        return jax.device_put(leaf, sharding)

    return jax.tree.map(place, tree)


def constrain_batch(tree: PyTree) -> PyTree:
    """Inside a compiled program: spreads the leading axis of every leaf over the mesh in force (`jax.set_mesh`).

    What a program draws for itself, such as latents, has no placement of its own; left alone it would be computed in
    full on every device. Without a mesh nothing changes.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that keeps a copy on each device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh) -> NamedSharding:
    """The sharding that spreads the leading axis over all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))
