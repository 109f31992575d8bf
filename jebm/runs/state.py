"""The state of a run as one pytree, and its fingerprint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jebm.methods.base import Method

__all__ = ["TrainState", "fingerprint", "initial_state"]


class TrainState(NamedTuple):
    """Everything that a run needs to resume.

    The data position is the step: batches are a function of (seed, step). Step n draws from ``fold_in(key, n)``.

    Attributes:
        step: int32, iterations made.
        key: the run's typed PRNG key; only a recovery changes it.
        method: the family's own state.
    """

    step: Array
    key: Array
    method: Any


def initial_state(method: Method, seed: int, batch: Array) -> TrainState:
    """A fresh state; pure in ``seed``, so that it may be built under `jax.jit` or `jax.eval_shape`."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), key, method.init(init_key, batch))


@jax.jit
def fingerprint(state: Any) -> Array:
    """uint32 [number of leaves]: a checksum of every leaf: the sum of hashes of each entry's bits and place.

    Computed on the devices of the arrays, so it costs no transfer and works on sharded ones. A checkpoint carries it,
    and a restored state must give it again.
    """
    return jnp.stack([_checksum(leaf) for leaf in jax.tree.leaves(state)])


def _checksum(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).ravel().astype(jnp.uint32)
    position = jax.lax.iota(jnp.uint32, bits.size) if bits.size else jnp.zeros((0,), jnp.uint32)
    # hashed before it is summed: a change of all entries alike, as a doubling, would cancel in a weighted sum
    mixed = _mix(bits ^ _mix(position + jnp.uint32(1)))
    return jnp.sum(mixed, dtype=jnp.uint32)


def _mix(a: Array) -> Array:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of ``a``."""
    a = (a ^ (a >> 16)) * jnp.uint32(0x85EBCA6B)
    a = (a ^ (a >> 13)) * jnp.uint32(0xC2B2AE35)
    return a ^ (a >> 16)
