"""Sample banks: entries kept on the devices between training steps.

A bank is a pytree in the method's state: it is part of the checkpoint, and a resumed run has the same bits. Its
functions are pure. It serves generator targets (Hat EBM, arXiv 2210.16486: rows are drawn, used once, and
overwritten) and persistent chains:

    indices, entries = bank.draw(draw_key, state, n)
    starts, ages = bank.rejuvenate(key, entries, state.ages[indices], fresh, probability=0.05)
    ...                                                             # chains go from starts to ends
    state = bank.replace(state, indices, ends, ages)

Draws do not depend on the devices over which the rows are spread: they are over the whole bank. (The released Hat EBM
code lets each device draw from its own slice.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.energy import PyTree, is_concrete, require_int

__all__ = ["Bank", "draw", "init", "placement", "read", "rejuvenate", "replace", "divisible_size"]


class Bank(NamedTuple):
    """N entries and their ages.

    Attributes:
        entries: a pytree of arrays [N, ...] whose rows belong together, as ``{"z": ..., "image": ...}``.
        ages: int32 [N], calls of `replace` since an entry was written, or since its chain was started.
    """

    entries: PyTree
    ages: Array

    @property
    def size(self) -> int:
        """N."""
        return self.ages.shape[0]


def init(entries: PyTree) -> Bank:
    """A bank of these entries, all of age 0.

    Raises:
        ValueError: leaves without one leading axis common to all.

    Examples:
        >>> from jebm.mcmc import bank
        >>> chains = bank.init({"x": jnp.zeros((100, 2))})
        >>> indices, rows = bank.draw(jax.random.key(0), chains, 10)
        >>> chains = bank.replace(chains, indices, {"x": rows["x"] + 1.0})
        >>> int((chains.ages == 0).sum()), float(chains.entries["x"].sum())
        (10, 20.0)
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(entries)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"entries of a bank need one leading axis common to all leaves, got {sorted(sizes)}")
    (size,) = sizes.pop()
    return Bank(jax.tree.map(jnp.asarray, entries), jnp.zeros(size, jnp.int32))


def divisible_size(size: int, batch_size: int) -> int:
    """``size`` rounded down to a multiple of ``batch_size``, at least one batch: 10,000 and 128 give 9,984.

    Examples:
        >>> from jebm.mcmc import bank
        >>> bank.divisible_size(10_000, 128)
        9984
    """
    return max(size // batch_size, 1) * batch_size


def draw(key: Array, bank: Bank, n: int) -> tuple[Array, PyTree]:
    """``n`` distinct rows, uniformly at random.

    Returns:
        Their indices, int32 [n], and their entries.

    Raises:
        ValueError: more rows than the bank has, or a number that is negative or no int.
    """
    if require_int(n, "n", 0) > bank.size:
        raise ValueError(f"{n} distinct rows cannot be drawn from a bank of {bank.size}: enlarge the bank")
    indices = jax.random.choice(key, bank.size, (n,), replace=False).astype(jnp.int32)
    return indices, jax.tree.map(lambda a: a[indices], bank.entries)


def read(bank: Bank, indices: Array) -> PyTree:
    """The entries at these rows, int [n].

    Raises:
        ValueError: a row that the bank has not. Inside a compiled program its values are NaN instead (the least integer
            of an integer leaf).
    """
    _check_rows(bank, indices)
    return jax.tree.map(lambda a: a.at[indices].get(mode="fill", wrap_negative_indices=False), bank.entries)


def _check_rows(bank: Bank, indices: Array) -> None:
    shape, dtype = jnp.shape(indices), jnp.result_type(indices)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"indices must be int [n], got {dtype} of shape {shape}")
    if is_concrete(indices):
        rows = np.asarray(indices)
        if rows.size and not 0 <= rows.min() <= rows.max() < bank.size:
            raise ValueError(f"indices {rows.min()} to {rows.max()} are outside a bank of {bank.size} rows")


def replace(bank: Bank, indices: Array, entries: PyTree, ages: Array | None = None) -> Bank:
    """``entries`` written at distinct ``indices``; all other rows grow older by one.

    Args:
        bank: the bank.
        indices: distinct rows, as `draw` gives them.
        entries: their new content.
        ages: int32 [n], of the new entries: 0 by default, those of `rejuvenate` for chains that were continued.

    Raises:
        ValueError: entries or ages that are not n rows as the bank's, and, outside a compiled program, a row that the
            bank has not or that comes twice.
    """
    _check_rows(bank, indices)
    n = len(indices)
    expected = jax.tree.map(lambda a: (n, *a.shape[1:]), bank.entries)
    given = jax.tree.map(jnp.shape, entries)
    if given != expected or (ages is not None and jnp.shape(ages) != (n,)):
        raise ValueError(
            f"for {n} indices entries of shapes {expected} and as many ages are needed, got {given}"
            + ("" if ages is None else f" and ages {jnp.shape(ages)}")
        )
    if is_concrete(indices) and len(np.unique(np.asarray(indices))) < n:
        raise ValueError(f"indices must be distinct, got {np.asarray(indices).tolist()}")
    written = jax.tree.map(lambda a, new: a.at[indices].set(new, unique_indices=True), bank.entries, entries)
    ages = jnp.zeros(indices.shape, jnp.int32) if ages is None else ages
    return Bank(written, (bank.ages + 1).at[indices].set(ages, unique_indices=True))


def rejuvenate(
    key: Array, entries: PyTree, ages: Array, fresh: PyTree, probability: Array | float
) -> tuple[PyTree, Array]:
    """Each drawn entry is exchanged for a fresh start with this probability.

    Args:
        key: a typed key.
        entries: drawn entries, leaves [n, ...].
        ages: theirs, int32 [n].
        fresh: starts to take instead, as ``entries``.
        probability: in [0, 1], of an exchange.

    Returns:
        The starts, and their ages after the coming `replace`: 0 where fresh, else one more than before.
    """
    exchange = jax.random.bernoulli(key, probability, ages.shape)
    select = lambda new, old: jnp.where(exchange.reshape(-1, *(1,) * (old.ndim - 1)), new, old)  # noqa: E731
    return jax.tree.map(select, fresh, entries), jnp.where(exchange, 0, ages + 1)


def placement(state: PyTree, spread: Any, copied: Any) -> PyTree:
    """Placement of a state's leaves: ``spread`` (a sharding of the leading axis) for a bank's, else ``copied``.

    A bank whose rows do not divide over the devices of ``spread`` is copied, too.
    """

    def place(node: Any) -> Any:
        divides = isinstance(node, Bank) and node.size % spread.num_devices == 0
        return jax.tree.map(lambda _: spread if divides else copied, node)

    return jax.tree.map(place, state, is_leaf=lambda node: isinstance(node, Bank))
