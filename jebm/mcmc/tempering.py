"""Parallel tempering: replicas of a chain at several temperatures that exchange their positions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.energy import PyTree, as_partial, is_concrete, require_int
from jebm.mcmc.chains import Kernel, chain_keys
from jebm.mcmc.langevin import floating
from jebm.mcmc.metropolis import named

__all__ = ["ParallelTempering", "TemperingInfo", "TemperingState", "parallel_tempering"]


class TemperingState(NamedTuple):
    """State of a chain of R replicas.

    Attributes:
        position: that of the coldest replica.
        replicas: states of the kernels, leaves [R, ...], from cold to hot.
        walkers: int32 [R], where the replica that is now at a temperature began.
        was_hot: bool [R], whether it has been at the hottest since it was last at the coldest.
        round_trips: int32, of all replicas together, from the coldest to the hottest and back.
        step: int32, the number of steps made.
    """

    position: PyTree
    replicas: Any
    walkers: Array
    was_hot: Array
    round_trips: Array
    step: Array


class TemperingInfo(NamedTuple):
    """Diagnostics of one step; with them ``acceptance`` of the coldest replica, where the kernel reports it.

    Attributes:
        energy: E of the coldest replica after the exchanges.
        energies: of all replicas, [R].
        swap_acceptance: the probability with which each neighbouring pair would exchange, [R - 1].
        walkers: int32 [R], as in the state.
        round_trips: int32, so far.
    """

    energy: Array
    energies: Array
    swap_acceptance: Array
    walkers: Array
    round_trips: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ParallelTempering:
    """``init(position) -> state`` and ``step(key, state) -> (state, info)``; see `parallel_tempering`."""

    kernel_at: Callable[[Array], Kernel]
    temperatures: Array
    steps_per_swap: int = dataclasses.field(metadata={"static": True})

    def init(self, position: PyTree) -> TemperingState:
        """All replicas at ``position``."""
        position = jax.tree.map(floating, position)
        replicas = jax.vmap(lambda t: self.kernel_at(t).init(position))(self.temperatures)
        size, zero = len(self.temperatures), jnp.zeros((), jnp.int32)
        return TemperingState(position, replicas, jnp.arange(size), jnp.zeros(size, bool), zero, zero)

    def step(self, key: Array, state: TemperingState) -> tuple[TemperingState, Any]:
        """``steps_per_swap`` steps of each replica, then the even or the odd neighbours exchange."""
        move_key, swap_key = jax.random.split(key)
        size = len(self.temperatures)
        replicas, infos = jax.vmap(self._run)(self.temperatures, chain_keys(move_key, size), state.replicas)
        energies = infos.energy[:, -1]
        inverse = 1.0 / self.temperatures
        log_ratio = (inverse[:-1] - inverse[1:]) * (energies[:-1] - energies[1:])
        drawn = jnp.log(jax.random.uniform(swap_key, (size - 1,), log_ratio.dtype)) < log_ratio
        # even and odd pairs in turns: a replica keeps its direction, where pairs at random would diffuse
        swap = drawn & (jnp.arange(size - 1) % 2 == state.step % 2)
        order = jnp.arange(size) + jnp.pad(swap, (0, 1)).astype(jnp.int32) - jnp.pad(swap, (1, 0)).astype(jnp.int32)
        positions = jax.tree.map(lambda a: a[order], replicas.position)
        # what a state caches depends on its temperature
        replicas = jax.vmap(lambda t, x: self.kernel_at(t).init(x))(self.temperatures, positions)
        was_hot = state.was_hot[order].at[-1].set(True)
        round_trips = state.round_trips + was_hot[0]
        walkers, energies = state.walkers[order], energies[order]
        cold = jax.tree.map(lambda a: a[0], positions)
        state = TemperingState(cold, replicas, walkers, was_hot.at[0].set(False), round_trips, state.step + 1)
        info: Any = TemperingInfo(energies[0], energies, jnp.exp(jnp.minimum(log_ratio, 0.0)), walkers, round_trips)
        if hasattr(infos, "acceptance"):
            info = named("TemperingInfo", **info._asdict(), acceptance=infos.acceptance[0].mean())
        return state, info

    def _run(self, temperature: Array, key: Array, state: Any) -> tuple[Any, Any]:
        kernel = self.kernel_at(temperature)
        step = lambda state, k: kernel.step(jax.random.fold_in(key, k), state)  # noqa: E731
        state, infos = jax.lax.scan(step, state, jnp.arange(self.steps_per_swap))
        if not hasattr(infos, "energy"):
            raise ValueError(f"parallel_tempering needs a kernel that reports its energy; it has {infos._fields}")
        return state, infos


def parallel_tempering(
    kernel_at: Callable[[Array], Kernel], temperatures: Array, steps_per_swap: int = 1
) -> ParallelTempering:
    """Parallel tempering (replica exchange) over any kernel.

    Replicas i and j, at temperatures T_i and T_j, exchange their positions with probability
    ``min(1, exp((1/T_i - 1/T_j) (E_i - E_j)))``, which leaves ``Π exp(-E(x_i)/T_i)`` invariant. Pairs (0, 1), (2, 3),
    ... and (1, 2), (3, 4), ... take turns, the non-reversible order, in which the number of round trips does not decay
    with the number of replicas. The chain's position is that of the coldest, so that it samples ``exp(-E/T_0)``.

        jebm.parallel_tempering(lambda t: jebm.mala(energy, 0.05 * t, t), [1.0, 2.0, 4.0, 8.0])

    A step costs ``steps_per_swap + 1`` gradients of each replica. States begin again after each exchange: momenta are
    drawn anew, and schedules of the step number count from 0.

    Args:
        kernel_at: the kernel at a temperature, a float32 scalar (traced); it may choose its step size by it. Use the
            same function again, or it compiles again; parameters of an energy that change are bound to it:
            ``jebm.energy.bind(lambda energy, t: jebm.mala(energy, 0.05 * t, t), energy)``.
        temperatures: float [R], R ≥ 2, above 0 and ascending. Leaves: new ones compile nothing.
        steps_per_swap: an int of at least 1; static.

    Raises:
        ValueError: temperatures that are not two or more, above 0 and ascending.

    References:
        Geyer, "Markov chain Monte Carlo maximum likelihood" (1991); Okabe et al., Chemical Physics Letters 335 (2001),
        for the order; Syed et al., "Non-reversible parallel tempering", JRSS B 84 (2022).

    Examples:
        >>> energy = jebm.problems.double_well(8.0).energy
        >>> ladder = jebm.parallel_tempering(lambda T: jebm.mala(energy, 0.05 * T, T), jnp.array([1.0, 4.0]))
        >>> trace = ["energies", "swap_acceptance"]
        >>> _, info = jebm.sample(jax.random.key(0), ladder, jnp.array([1.0]), 4, trace=trace)
        >>> info["energies"].shape, info["swap_acceptance"].shape
        ((4, 2), (4, 1))
    """
    steps_per_swap = require_int(steps_per_swap, "steps_per_swap", 1)
    temperatures = jnp.asarray(temperatures, float)
    known = np.asarray(temperatures) if is_concrete(temperatures) else None
    if temperatures.ndim != 1 or len(temperatures) < 2 or (
        known is not None and not (known[0] > 0 and np.all(np.diff(known) > 0))
    ):  # fmt: skip
        raise ValueError(f"temperatures must be two or more, above 0 and ascending, got {temperatures}")
    return ParallelTempering(as_partial(kernel_at), temperatures, steps_per_swap)
