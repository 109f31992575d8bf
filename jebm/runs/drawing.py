"""Generation spread over the devices of a mesh."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from jebm import sharding
from jebm.methods.base import Method, State
from jebm.methods.shared import gathered

__all__ = ["Draw", "batch_program", "batches", "draw", "drawing"]

Draw = Callable[[Array, int, int], np.ndarray]
"""``(key, i, size) -> images``: batch ``i`` of the key, float32 [size, H, W, C]."""


def draw(method: Method, mesh: jax.sharding.Mesh, n: int, key: Array, state: State) -> Array:
    """Inside a compiled program: ``n`` generated images [n, H, W, C], of which every device draws a share.

    Devices that do not divide ``n`` draw a few more, which are dropped: image i does not depend on their number.
    """
    rows = -(-n // mesh.size) * mesh.size
    return sharding.constrain_batch(method.generate(key, gathered(state, averages=True), rows))[:n]


def drawing(method: Method, mesh: jax.sharding.Mesh, n: int) -> Callable[[Array, State], Array]:
    """Compiled ``(key, state) -> images`` [n, H, W, C], drawn by all devices, whole on each.

    The caller has the mesh in force (`jax.set_mesh`).
    """
    return jax.jit(lambda key, state: draw(method, mesh, n, key, state), out_shardings=sharding.replicated(mesh))


def batch_program(method: Method, mesh: jax.sharding.Mesh, size: int) -> Callable[[Array, int | Array, State], Array]:
    """Compiled ``(key, i, state) -> images`` [size, H, W, C], with the key ``fold_in(key, i)``; else as `drawing`."""

    def one_batch(key: Array, i: int | Array, state: State) -> Array:
        return draw(method, mesh, size, jax.random.fold_in(key, i), state)

    return jax.jit(one_batch, out_shardings=sharding.replicated(mesh))


def batches(method: Method, state: State, mesh: jax.sharding.Mesh) -> Draw:
    """`Draw` by all devices of a mesh: their number changes images by rounding only.

    Where they belong to many processes, all of these call it with the same arguments.
    """
    state, programs = sharding.copy_to_all(state, mesh), {}

    def one(key: Array, i: int, size: int) -> np.ndarray:
        if size not in programs:
            programs[size] = batch_program(method, mesh, size)
        with jax.set_mesh(mesh):
            return np.asarray(programs[size](sharding.copy_to_all(key, mesh), i, state))

    return one
