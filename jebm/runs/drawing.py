"""Generation spread over the devices of a mesh."""

from collections.abc import Callable

import jax
from jax import Array

from jebm import sharding
from jebm.methods.base import Method, State
from jebm.methods.shared import gathered

__all__ = ["draw", "drawing"]


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
