"""Flow matching of a potential, and energy matching: optimal transport far from the data, a density at them.

The energy here is a *potential* V: noise follows ``dx = -∇V dt`` to the data in the time from 0 to 1, and there
``dx = -∇V dt + sqrt(2ε) dW`` has the law ``exp(-V/ε_max)``. V knows no time: one function is both field and density.

From Balcerak et al., "Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling"
(arXiv 2504.10612): both losses, the two phases, the temperature ε(t) of `temperatures`, the weight of the flow loss
near t = 1, and, from the released code, half of the negatives from data, half from noise. Optimal transport within a
batch is that of Tong et al. (arXiv 2302.00482). Ours: chains from data are at ε_max from their first step, where the
released command lets them follow ε(t) of the chains from noise; the contrast is neither clamped nor trimmed; one batch
serves both losses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jebm import mcmc, sharding
from jebm.energy import Energy, PyTree, as_partial, require, require_int, squared_distance, value
from jebm.learning.likelihood import Contrast, contrastive_loss, energies, still
from jebm.learning.noise import row

__all__ = [
    "Paths", "energy_matching", "flow_loss", "flow_matching", "half_from_data", "optimal_coupling", "temperatures",
    "transport_paths", "walk",
]  # fmt: skip


class Paths(NamedTuple):
    """Points on straight paths from noise to data.

    Attributes:
        points: ``x_t = (1 - t) x_0 + t x_1``, a pytree as the batch.
        velocities: ``x_1 - x_0``, of the same shapes.
        weights: of each in the loss, [B].
    """

    points: PyTree
    velocities: PyTree
    weights: Array


def optimal_coupling(starts: PyTree, batch: PyTree) -> Array:
    """The permutation π, int32 [B], of the least ``Σ_i ‖x_i - z_π(i)‖²``: exact, by optax's Hungarian algorithm.

    Its cost grows as B³, one step after another: a millisecond for 64 rows on a CPU core.

    Args:
        starts: z, leaves [B, ...].
        batch: x, as many.

    Examples:
        >>> jebm.learning.matching.optimal_coupling(jnp.array([[5.0], [0.0]]), jnp.array([[1.0], [4.0]]))
        Array([1, 0], dtype=int32)
    """
    # sums and no products of matrices: no large sums cancel, and the compiler never stores the differences
    costs = jax.vmap(lambda x: jax.vmap(lambda z: squared_distance(x, z))(starts))(batch)
    rows, columns = optax.assignment.hungarian_algorithm(sharding.constrain_copied(costs))
    return jnp.zeros(len(costs), jnp.int32).at[rows].set(columns.astype(jnp.int32), unique_indices=True)


def transport_paths(
    key: Array, batch: PyTree, start: Callable[[Array], PyTree], cutoff: Array | float = 1.0
) -> Paths:  # fmt: skip
    """Draws of noise, coupled with the batch at the least cost, and a time in [0, 1) for each pair.

    Args:
        key: a typed PRNG key.
        batch: data, leaves [B, ...].
        start: from a key to one draw of noise.
        cutoff: τ*, where weights begin to fall: linearly, from 1 to 0 at t = 1. 1 for weights of 1.
    """
    start_key, time_key = jax.random.split(key)
    size = len(jax.tree.leaves(batch)[0])
    drawn = jax.vmap(start)(mcmc.chain_keys(start_key, size))
    order = optimal_coupling(drawn, batch)
    starts = sharding.constrain_batch(jax.tree.map(lambda z: z[order], drawn))
    times = jax.random.uniform(time_key, (size,))
    points = jax.tree.map(lambda z, x: (1.0 - row(times, x)) * z + row(times, x) * x, starts, batch)
    velocities = jax.tree.map(lambda z, x: x - z, starts, batch)
    falling = (1.0 - times) / jnp.maximum(1.0 - cutoff, 1e-6)
    return Paths(points, velocities, jnp.where(times < cutoff, 1.0, falling))


def flow_loss(energy: Energy, paths: Paths) -> Array:
    """``mean_i w_i |∇V(x_i) + u_i|²/D`` over points x_i of D numbers with velocities u_i and weights w_i."""
    slopes = jax.vmap(jax.grad(lambda x: value(energy, x)))(paths.points)
    size = sum(leaf[0].size for leaf in jax.tree.leaves(slopes))
    squares = jax.vmap(lambda g, u: squared_distance(g, jax.tree.map(jnp.negative, u)))(slopes, paths.velocities)
    return jnp.mean(paths.weights * squares) / size


def flow_matching(
    key: Array, energy: Energy, batch: PyTree, start: Callable[[Array], PyTree], *, cutoff: float = 1.0
) -> tuple[Array, Paths]:
    """`flow_loss` on paths of optimal transport within the batch: the first phase of energy matching.

    Its optimum is the gradient field nearest to ``E[x_1 - x_0 | x_t = x]``, over all t alike since V knows no time. As
    the batch grows, the pairs are those of optimal transport between the two laws. ``exp(-V)`` is no density of data.

    Args:
        key: a typed PRNG key.
        energy: the potential of one example; differentiate through its parameters (see `jebm.learning`).
        batch: data, leaves [B, ...].
        start: from a key to one draw of noise, such as ``jebm.learning.gaussian_noise(0.0 * x, 1.0).draw``.
        cutoff: τ* of `transport_paths`.

    Returns:
        The loss, and `Paths`.

    References:
        Balcerak et al., arXiv 2504.10612, first phase; Tong et al., arXiv 2302.00482, for the coupling.

    Examples:
        >>> def objective(centre, key, batch):
        ...     potential = jebm.energy.bind(lambda c, x: -jnp.sum(c * x), centre)
        ...     return jebm.learning.flow_matching(key, potential, batch, lambda key: jax.random.normal(key, (1,)))
        >>> batch = 3.0 + jax.random.normal(jax.random.key(0), (64, 1))
        >>> gradient, paths = jax.grad(objective, has_aux=True)(jnp.array([3.0]), jax.random.key(1), batch)
        >>> bool(jnp.abs(gradient[0]) < 1.0)  # a translation by 3: V = -3 x
        True
    """
    paths = transport_paths(key, batch, start, cutoff)
    return flow_loss(as_partial(energy), paths), paths


def energy_matching(
    key: Array,
    energy: Energy,
    batch: PyTree,
    start: Callable[[Array], PyTree],
    *,
    temperature: float,
    step_size: float = 0.01,
    num_steps: int = 200,
    contrastive_weight: float = 1e-3,
    ramp_start: float = 1.0,
) -> tuple[Array, Contrast]:
    """``flow_loss + λ (mean V(data) - mean V(negatives))``: the second phase of energy matching.

    Negatives are ends of Langevin chains on V: the first half of them from the data, at ε_max; the others from noise,
    at the temperatures ε(t) of `temperatures`. Where λ is large, the optimum is where the ends of the chains have the
    data's expectations of ``∇_θ V``: with long chains of small steps, ``exp(-V/ε_max)`` is the density of the data. The
    flow loss holds V where no negatives are, and biases it where they are.

    Args:
        key: as in `flow_matching`.
        energy: as there.
        batch: as there.
        start: as there.
        temperature: ε_max.
        step_size: Δt of the chains.
        num_steps: K; they are at time ``K Δt`` at their ends.
        contrastive_weight: λ.
        ramp_start: τ*, of ε(t) and of the weights of the flow loss.

    Returns:
        The loss, and `Contrast` with means of V.

    References:
        Balcerak et al., arXiv 2504.10612, second phase.
    """
    path_key, start_key, chain_key = jax.random.split(key, 3)
    energy = as_partial(energy)
    paths = transport_paths(path_key, batch, start, ramp_start)
    size = len(jax.tree.leaves(batch)[0])
    starts, from_data = half_from_data(batch, jax.vmap(start)(mcmc.chain_keys(start_key, size)))
    table = temperatures(temperature, ramp_start, step_size, num_steps)
    negatives = walk(energy, table, step_size, mcmc.chain_keys(chain_key, size), starts, from_data)
    on_data, on_negatives = energies(energy, batch), energies(energy, negatives)
    loss = flow_loss(energy, paths) + contrastive_weight * contrastive_loss(on_data, on_negatives, 1.0)
    return loss, Contrast(jnp.mean(on_data), jnp.mean(on_negatives), starts, negatives)


def half_from_data(batch: PyTree, fresh: PyTree) -> tuple[PyTree, Array]:
    """The first half of the rows from the batch, the others from ``fresh``; and which are from the batch, bool [B]."""
    size = len(jax.tree.leaves(batch)[0])
    from_data = jnp.arange(size) < size // 2
    return jax.tree.map(lambda x, z: jnp.where(row(from_data, x), x, z), batch, fresh), from_data


def temperatures(maximum: float, ramp_start: float, step_size: float, num_steps: int) -> Array:
    """ε(t) at t = 0, Δt, ...: 0 until τ*, rising linearly to ε_max at t = 1, and ε_max from there. Float32 [K].

    Args:
        maximum: ε_max ≥ 0.
        ramp_start: τ* in [0, 1]; at 1 the ramp is a step.
        step_size: Δt.
        num_steps: K.

    Examples:
        >>> jebm.learning.matching.temperatures(0.1, 0.5, 0.25, 6)
        Array([0.  , 0.  , 0.  , 0.05, 0.1 , 0.1 ], dtype=float32)
    """
    require(maximum, lambda a: a >= 0, "maximum", "must be at least 0")
    require(ramp_start, lambda a: 0 <= a <= 1, "ramp_start", "must be in [0, 1]")
    times = step_size * np.arange(require_int(num_steps, "num_steps", 1))
    rising = (times - ramp_start) / max(1.0 - ramp_start, 1e-6)
    return jnp.asarray(maximum * np.where(times >= 1.0 - 1e-9, 1.0, np.clip(rising, 0.0, 1.0)), jnp.float32)


def walk(energy: Energy, table: Array, step_size: float, keys: Array, starts: PyTree, from_data: Array) -> PyTree:
    """Ends of Langevin chains on V, leaves [B, ...], through which no gradient flows.

    Args:
        energy: V.
        table: the temperatures of chains from noise, [K], the last of them that of chains from data.
        step_size: Δt.
        keys: one for each chain [B].
        starts: leaves [B, ...].
        from_data: which start at data, bool [B].
    """
    held = still(energy)

    def one(key: Array, x: PyTree, near: Array) -> PyTree:
        at = mcmc.table_schedule(jnp.where(near, table[-1], table))
        return mcmc.sample(key, mcmc.langevin(held, step_size, at), x, len(table), trace=())[0].position

    starts = sharding.constrain_batch(jax.lax.stop_gradient(starts))
    return jax.lax.stop_gradient(jax.vmap(one)(keys, starts, from_data))
