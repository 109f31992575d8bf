"""Gradient accumulation: the update of a large batch in the memory of a part of it.

A batch is taken in parts of equal size, its *microbatches*, one after another: chains, and gradients of losses that are
means over rows. Draws are made for the whole batch before, so that the result is that of the whole batch up to
rounding. Microbatch j holds the rows j, j + M, j + 2M, ...: of a batch that is spread over devices each of them keeps
its own rows. Statistics that couple the rows, as batch normalisation's, allow none of this: see `Method.whole_batch`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jebm import sharding
from jebm.energy import PyTree
from jebm.errors import ConfigError
from jebm.methods.base import Method, Metrics, State

__all__ = ["by_rows", "gradients", "update_of"]


def update_of(method: Method, microbatches: int) -> Callable[[Array, State, Array], tuple[State, Metrics]]:
    """``Method.update`` with this number of microbatches.

    Raises:
        ConfigError: several, of a method whose update needs the whole batch.
    """
    if microbatches == 1:
        return method.update
    if method.whole_batch is not None:
        raise ConfigError(
            f"training.microbatches={microbatches}: not for this method, {method.whole_batch}: set it to 1, and lower "
            "data.batch_size, spread the batch over more devices, or set method.rematerialize where there is one"
        )
    return functools.partial(method.update, microbatches=microbatches)


def by_rows(function: Callable[..., PyTree], microbatches: int, *batch: PyTree) -> PyTree:
    """``function(*batch)`` of a function that treats each row on its own, one microbatch after another.

    Args:
        function: from trees of rows [n, ...] to a tree of rows [n, ...], for any n.
        microbatches: M, which divides the number of rows.
        batch: trees of rows [B, ...].

    Returns:
        A tree of rows [B, ...], in the order of ``batch``.
    """
    if microbatches == 1:
        return function(*batch)
    return _whole(jax.lax.map(lambda part: function(*sharding.constrain_batch(part)), _parts(batch, microbatches)))


def gradients(
    loss: Callable[..., tuple[Array, tuple[PyTree, PyTree]]], microbatches: int, params: PyTree, *batch: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """The gradient of ``loss(params, *batch)``, a mean over rows: the mean of the microbatches' gradients.

    Args:
        loss: to ``(value, (means, rows))``: value and means are means over rows, rows are [n, ...].
        microbatches: M, which divides the number of rows.
        params: what the gradient is taken for.
        batch: trees of rows [B, ...].

    Returns:
        The gradient, ``means`` and ``rows`` of the whole batch.
    """
    differentiate = jax.grad(loss, has_aux=True)
    if microbatches == 1:
        found, (means, rows) = differentiate(params, *batch)
        return found, means, rows

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        found, aux = differentiate(params, *sharding.constrain_batch(part))
        return jax.tree.map(jnp.add, total, found), aux

    total, (means, rows) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), _parts(batch, microbatches))
    mean = jax.tree.map(lambda a: a / microbatches, total)
    return mean, jax.tree.map(lambda a: jnp.mean(a, axis=0), means), _whole(rows)


def _parts(tree: PyTree, number: int) -> PyTree:
    """Rows [B, ...] as [M, B / M, ...]."""

    def split(a: Array) -> Array:
        if a.shape[0] % number:
            raise ValueError(f"a batch of {a.shape[0]} rows does not divide into {number} microbatches")
        return jnp.swapaxes(a.reshape(a.shape[0] // number, number, *a.shape[1:]), 0, 1)

    return jax.tree.map(split, tree)


def _whole(tree: PyTree) -> Any:
    """The inverse of `_parts`."""
    join = lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])  # noqa: E731
    return sharding.constrain_batch(jax.tree.map(join, tree))
