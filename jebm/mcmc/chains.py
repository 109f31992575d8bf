"""Running chains: one `lax.scan` drives any kernel; many chains are one `vmap`, with one key per chain."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jebm import sharding
from jebm.energy import PyTree, require_int
from jebm.errors import short_traceback
from jebm.mcmc.langevin import LangevinKernel, floating

__all__ = ["Kernel", "chain_keys", "sample", "sample_chains", "warn_of_lost_chains"]

BLOCK = 16  # steps whose noise is drawn at once
SMALL = 64  # numbers in a position at most, for that: blocks of larger ones would cost memory


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
    return _chain_keys(key, require_int(num_chains, "num_chains", 0))


@functools.partial(jax.jit, static_argnums=1)  # op by op it would cost more than some hundred steps
def _chain_keys(key: Array, num_chains: int) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_chains))


@short_traceback
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
    progress: bool = False,
) -> tuple[Any, dict[str, Array]]:
    """Runs one chain from ``position``.

    Step k draws from ``fold_in(key, k)``, so a longer run begins with the shorter one; `langevin` draws the noise of
    small positions, of 64 numbers at most, in blocks of 16 steps, block b from ``fold_in(key, b)``. The last step is
    unrolled, so that XLA removes its energy and gradient when they are unused (a training chain): K steps cost K
    gradients.

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
        progress: show a bar of the steps that are done. The run is then made in some twenty pieces, each going on from
            the one before: the draws are the same, at the price of waiting for each piece.

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
    run = functools.partial(_sample_jitted, key, kernel)
    state, info, finite = (_in_pieces(run, 0) if progress else run)(_start(position), _names(trace), counts)
    _watch(kernel, finite)
    return state, info


@short_traceback
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
    progress: bool = False,
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
        progress: as in `sample`.
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
    run = functools.partial(_sample_chains_jitted, keys, kernel)
    result = (_in_pieces(run, 1) if progress else run)(positions, _names(trace), counts)
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
        warn_of_lost_chains(finite, stacklevel=4)


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


def _in_pieces(run: Callable, axis: int) -> Callable:
    """``run`` in pieces, with a bar; ``axis`` is that of steps in its traces."""
    from tqdm import tqdm

    def go(start: PyTree, trace: tuple[str, ...] | None, counts: _Counts) -> tuple[Any, dict[str, Array], Array]:
        unit = counts.thin * max(counts.positions_every, 1)
        records = counts._replace(burn_in=0)
        pieces: list[tuple[int, Any, _Counts]] = [(n, (), _Counts(n, 0, 1, 0)) for n in _parts(counts.burn_in, 1)]
        pieces += [(n, trace, records._replace(num_steps=n)) for n in _parts(counts.num_steps, unit) or [0]]
        infos = []
        with tqdm(total=counts.burn_in + counts.num_steps, unit="step", smoothing=0) as bar:
            for n, names, part in pieces:
                start, info, finite = jax.block_until_ready(run(start, names, part))
                infos.append(info)
                bar.update(n)
        infos = infos[len(_parts(counts.burn_in, 1)) :]
        return start, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis), *infos), finite

    return go


def _parts(num_steps: int, unit: int) -> list[int]:
    """About twenty equal parts of whole units, and what is left."""
    size = unit * max(num_steps // (20 * unit), 1)
    whole, rest = divmod(num_steps, size)
    return whole * [size] + ([rest] if rest else [])


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
    goes_on = hasattr(start, "position")
    state, first = (start, start.step) if goes_on else (kernel.init(start), 0)
    step, ahead = _steps(key, kernel, state.position, first)

    def body(carry: tuple[Any, Any, PyTree], k: Array) -> tuple[tuple[Any, Any, PyTree], dict[str, Array]]:
        state, ahead, kept = carry
        state, ahead, info = step(state, ahead, burn_in + k)
        if num_kept:
            # an index out of range drops the write, so only every n-th position lands
            slot = jnp.where((k + 1) % every == 0, (k + 1) // every - 1, num_kept)
            kept = jax.tree.map(lambda buffer, a: buffer.at[slot].set(a, mode="drop"), kept, state.position)
        return (state, ahead, kept), _select(info, trace)

    if burn_in:
        (state, ahead), _ = jax.lax.scan(lambda c, k: (step(*c, k)[:2], None), (state, ahead), jnp.arange(burn_in))
    kept: PyTree = None
    if every:
        kept = jax.tree.map(lambda a: jnp.zeros((num_kept, *a.shape), a.dtype), state.position)
    carry, traces = jax.lax.scan(body, (state, ahead, kept), jnp.arange(max(num_steps - 1, 0)))
    state, _, kept = carry
    if num_steps > 0:
        (state, _, kept), last = body(carry, jnp.asarray(num_steps - 1))
        traces = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), traces, last)
    traces = jax.tree.map(lambda a: a[thin - 1 :: thin], traces)
    if every:
        traces["position"] = kept
    finite = jax.tree.map(lambda a: jnp.isfinite(a).all(), state.position)
    return state, traces, jax.tree.reduce(jnp.logical_and, finite, jnp.asarray(True))


def _steps(key: Array, kernel: Any, position: PyTree, first: Array | int) -> tuple[Callable, PyTree]:
    """``(state, ahead, k) -> (state, ahead, info)``, the k-th step of a run whose chain has made ``first``.

    ``ahead`` is the noise drawn in advance, leaves [BLOCK, ...]; None where each step draws its own.
    """
    # not of a subclass, which may have a step or a draw of its own
    in_blocks = type(kernel) is LangevinKernel and kernel.noise is None
    if not in_blocks or optax.tree.size(position) > SMALL:

        def one(state: Any, ahead: None, k: Array) -> tuple[Any, None, Any]:
            state, info = kernel.step(jax.random.fold_in(key, first + k), state)
            return state, ahead, info

        return one, None
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct((BLOCK, *a.shape), a.dtype), position)

    def draw(k: Array) -> PyTree:
        """Noise of the steps k, ..., k + BLOCK - 1: a block, or of a chain that goes on parts of two."""
        block = lambda b: kernel.draw(jax.random.fold_in(key, b), rows)  # noqa: E731
        if isinstance(first, int):
            return block(k // BLOCK)
        b, offset = jnp.divmod(first + k, BLOCK)
        both = jax.tree.map(lambda *two: jnp.concatenate(two), block(b), block(b + 1))
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, offset, BLOCK), both)

    def step(state: Any, ahead: PyTree, k: Array) -> tuple[Any, PyTree, Any]:
        # no chain's own number in the condition, or vmap would draw at each step
        ahead = jax.lax.cond(k % BLOCK == 0, draw, lambda _: ahead, k)
        state, info = kernel.advance(jax.tree.map(lambda a: a[k % BLOCK], ahead), state)
        return state, ahead, info

    return step, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), rows)


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
