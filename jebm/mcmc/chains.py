"""Running chains: one `lax.scan` drives any kernel; many chains are one `vmap`, with one key per chain."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jebm import sharding
from jebm.energy import PyTree, require_int
from jebm.mcmc.langevin import floating

__all__ = ["Kernel", "chain_keys", "sample", "sample_chains", "warn_of_lost_chains"]


class Kernel(Protocol):
    """A sampler: two pure functions, and a pytree (its parameters are leaves)."""

    def init(self, position: PyTree) -> Any:
        """The state at ``position``; it has an attribute ``position``.

        With an int32 field ``step``, the number of steps made, chains can be resumed from it.
        """

    def step(self, key: Array, state: Any) -> tuple[Any, Any]:
        """The next state, and a NamedTuple of diagnostics."""


def chain_keys(key: Array, num_chains: int) -> Array:
    """One key per chain, ``fold_in(key, i)``: chain i's key does not depend on how many chains there are.

    Examples:
        >>> few, many = (jebm.chain_keys(jax.random.key(0), n) for n in (2, 5))
        >>> bool((jax.random.key_data(few) == jax.random.key_data(many)[:2]).all())
        True
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(require_int(num_chains, "num_chains", 0)))


def sample(
    key: Array,
    kernel: Kernel,
    position: PyTree,
    num_steps: int,
    *,
    burn_in: int = 0,
    thin: int = 1,
    trace: Sequence[str] | None = None,
    positions_every: int = 0,
) -> tuple[Any, dict[str, Array]]:
    """Runs one chain from ``position``.

    Step k draws from ``fold_in(key, k)``, so a longer run begins with the shorter one. The last step is unrolled, so
    that XLA removes its energy and gradient when they are unused (a training chain): K steps cost K gradients.

    A state in the place of the position resumes its chain: with the same key as before, m steps and then n are
    the m + n steps of an unbroken chain.

    A chain that leaves the finite numbers raises a warning, outside compiled programs.

    Args:
        key: a typed PRNG key, for this chain alone.
        kernel: any kernel: `langevin`, `mala`, `hmc`, `nuts`, or your own.
        position: one example, a pytree of float32 (or float64) arrays without a chain axis; or the last state of a
            chain of the same kernel, which has a field ``position``.
        num_steps: an int of at least 0, the steps after the burn-in; static.
        burn_in: steps before them, of which nothing is recorded; static.
        thin: n ≥ 1: of the ``num_steps`` steps n, 2n, ... are recorded; static.
        trace: which fields of the kernel's info to record, such as ``("energy", "gradient_norm")``; by default energy,
            acceptance and Hamiltonian, where the kernel reports them.
        positions_every: m > 0 also records ``info["position"]`` with records m, 2m, ...: 1 records each.

    Returns:
        The last state (``state.position``), and a dict from trace name to an array with a leading axis
        ``num_steps // thin`` (``num_steps // (thin * positions_every)`` for ``"position"``).

    Raises:
        ValueError: a number of steps that is negative or no int, a position of integers or of half precision, a
            name that the kernel's info has not, or a state without a field ``step``.

    Examples:
        >>> kernel = jebm.langevin(jebm.energy.standard_normal, 0.1)
        >>> state, info = jebm.sample(jax.random.key(0), kernel, jnp.zeros(2), 6, positions_every=2)
        >>> state.position.shape, info["energy"].shape, info["position"].shape
        ((2,), (6,), (3, 2))
    """
    counts = _counts(num_steps, burn_in, thin, positions_every)
    position = _start(position)
    state, info, finite = _sample_jitted(key, kernel, position, _names(trace), counts)
    _watch(kernel, finite)
    return state, info


def sample_chains(
    key: Array,
    kernel: Kernel,
    positions: PyTree,
    num_steps: int,
    *,
    burn_in: int = 0,
    thin: int = 1,
    trace: Sequence[str] | None = None,
    positions_every: int = 0,
    mesh: Mesh | None = None,
) -> tuple[Any, dict[str, Array]]:
    """Runs many independent chains, jitted.

    Chain i is ``sample(chain_keys(key, n)[i], kernel, positions[i], ...)``. A chain's draws depend neither on
    the number of chains nor on the devices they are spread over; what is computed from them is compiled for each
    number of chains and devices, so that positions may differ in their last bits.

    Chains that leave the finite numbers are counted in one warning, outside compiled programs.

    Args:
        key: a typed PRNG key.
        kernel: as in `sample`, shared by all chains.
        positions: a pytree whose leaves have a leading chain axis, or the last state of such chains. Of many processes,
            each brings all of them.
        num_steps: as in `sample`.
        burn_in: as in `sample`.
        thin: as in `sample`.
        trace: as in `sample`.
        positions_every: as in `sample`.
        mesh: spread the chains over all devices of this mesh (`jebm.sharding.make_mesh`). Where these do not divide
            the number of chains, some more are run and dropped.

    Returns:
        As `sample`, with a leading chain axis on every leaf: traces are [chains, draws, ...], as ArviZ and blackjax
        take them; see `jebm.diagnostics`.

    Raises:
        ValueError: as `sample`.

    Examples:
        >>> kernel = jebm.mala(jebm.energy.standard_normal, 0.5)
        >>> state, info = jebm.sample_chains(jax.random.key(0), kernel, jnp.zeros((4, 2)), 10, burn_in=5)
        >>> info["acceptance"].shape  # [chains, draws]
        (4, 10)
        >>> state, info = jebm.sample_chains(jax.random.key(0), kernel, state, 10)  # the next ten draws
    """
    counts = _counts(num_steps, burn_in, thin, positions_every)
    positions = _start(positions)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(positions)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"positions need one leading chain axis common to all leaves, got {sorted(sizes)}")
    num_chains = sizes.pop()[0]
    extra = 0 if mesh is None else -num_chains % mesh.size
    keys = chain_keys(key, num_chains + extra)
    if extra:
        positions = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[:1], extra, 0)]), positions)
    if mesh is not None:
        keys, positions = sharding.shard_batch((keys, positions), mesh)
    result = _sample_chains_jitted(keys, kernel, positions, _names(trace), counts)
    if extra:
        result = jax.tree.map(lambda a: a[:num_chains], result)
    elif mesh is not None:  # what is the same in all chains, as the step count, comes back replicated otherwise
        result = sharding.shard_batch(result, mesh)
    state, info, finite = result
    _watch(kernel, finite)
    return state, info


def warn_of_lost_chains(finite: Array, stacklevel: int = 2) -> None:
    """One warning with the count of chains that left the finite numbers; silent where ``finite`` is a tracer.

    Args:
        finite: bool [chains] (or [] of one chain). Of many processes, each speaks of the chains on its own devices.
        stacklevel: of the warning, as in `warnings.warn`.
    """
    if isinstance(finite, jax.core.Tracer):
        return
    here = [np.ravel(shard.data) for shard in finite.addressable_shards if shard.replica_id == 0]
    lost, total = sum(int((~flags).sum()) for flags in here), sum(flags.size for flags in here)
    if lost:
        warnings.warn(
            f"{lost:,} of {total:,} chains left the finite numbers (NaN or infinity): take a smaller step size, or "
            "bound the drift (max_drift of langevin)",
            stacklevel=stacklevel + 1,
        )


def _watch(kernel: Kernel, finite: Array) -> None:
    if getattr(kernel, "noise", None) is None:  # recorded noise is NaN after its end
        warn_of_lost_chains(finite, stacklevel=3)


class _Counts(NamedTuple):
    num_steps: int
    burn_in: int
    thin: int
    positions_every: int


def _counts(num_steps: Any, burn_in: Any, thin: Any, positions_every: Any) -> _Counts:
    return _Counts(
        require_int(num_steps, "num_steps", 0), require_int(burn_in, "burn_in", 0),
        require_int(thin, "thin", 1), require_int(positions_every, "positions_every", 0),
    )  # fmt: skip


def _start(position: PyTree) -> PyTree:
    if not hasattr(position, "position"):
        return jax.tree.map(floating, position)
    if not hasattr(position, "step"):
        raise ValueError(
            f"a chain resumes from a state with a field step, the number of steps made, which {type(position).__name__}"
            " has not: give it one, or begin again from state.position with another key"
        )
    return position


def _sample(
    key: Array, kernel: Kernel, start: PyTree, trace: tuple[str, ...] | None, counts: _Counts
) -> tuple[Any, dict[str, Array], Array]:
    num_steps, burn_in, thin, _ = counts
    every = thin * counts.positions_every
    num_kept = num_steps // every if every else 0

    def body(carry: tuple[Any, PyTree], k: Array) -> tuple[tuple[Any, PyTree], dict[str, Array]]:
        state, kept = carry
        state, info = kernel.step(jax.random.fold_in(key, first + k), state)
        if num_kept:
            # an index out of range drops the write, so only every n-th position lands
            slot = jnp.where((k + 1) % every == 0, (k + 1) // every - 1, num_kept)
            kept = jax.tree.map(lambda buffer, a: buffer.at[slot].set(a, mode="drop"), kept, state.position)
        return (state, kept), _select(info, trace)

    goes_on = hasattr(start, "position")
    state, first = (start, start.step) if goes_on else (kernel.init(start), 0)
    if burn_in:
        step = lambda state, k: (kernel.step(jax.random.fold_in(key, k), state)[0], None)  # noqa: E731
        state, _ = jax.lax.scan(step, state, first + jnp.arange(burn_in))
        first += burn_in
    kept: PyTree = None
    if every:
        kept = jax.tree.map(lambda a: jnp.zeros((num_kept, *a.shape), a.dtype), state.position)
    carry, traces = jax.lax.scan(body, (state, kept), jnp.arange(max(num_steps - 1, 0)))
    if num_steps > 0:
        (state, kept), last = body(carry, jnp.asarray(num_steps - 1))
        traces = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), traces, last)
    traces = jax.tree.map(lambda a: a[thin - 1 :: thin], traces)
    if every:
        traces["position"] = kept
    finite = jax.tree.map(lambda a: jnp.isfinite(a).all(), state.position)
    return state, traces, jax.tree.reduce(jnp.logical_and, finite, jnp.asarray(True))


def _names(trace: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if trace is None else tuple(trace)


def _select(info: Any, trace: tuple[str, ...] | None) -> dict[str, Array]:
    if trace is None:
        trace = tuple(name for name in ("energy", "acceptance", "hamiltonian") if name in info._fields)
    unknown = [name for name in trace if name not in info._fields]
    if unknown:
        raise ValueError(f"trace: {type(info).__name__} has no {unknown}; it has {list(info._fields)}")
    return {name: jax.tree.map(jnp.asarray, getattr(info, name)) for name in trace}


@functools.partial(jax.jit, static_argnames=("trace", "counts"))
def _sample_jitted(key, kernel, start, trace, counts):  # type: ignore[no-untyped-def]
    return _sample(key, kernel, start, trace, counts)


@functools.partial(jax.jit, static_argnames=("trace", "counts"))
def _sample_chains_jitted(keys, kernel, starts, trace, counts):  # type: ignore[no-untyped-def]
    return jax.vmap(lambda key, start: _sample(key, kernel, start, trace, counts))(keys, starts)
