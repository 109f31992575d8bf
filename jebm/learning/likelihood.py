"""Likelihood by samples of the model: contrastive divergence, persistent chains, short runs.

All have the gradient ``E_data ∇_θ E - E_negatives ∇_θ E`` and differ in where the chains of the negatives start. Chains
are short and often unadjusted, so an optimum is where the law *of the chains' ends* has the data's expectations of
``∇_θ E``, which is the data's law itself only as the step size goes to 0 and the chains mix. On a Gaussian of precision
λ, of which the data's variance is s², unadjusted Langevin chains with ``a = 1 - ηλ`` and stationary variance
``v∞ = 2η/(1 - a²)`` are at their optimum where

    a^{2K}(v0 - v∞) + v∞ = s²

with v0 the variance of the starts (Agoritsas et al., arXiv 2301.09428): noise for short runs; the data themselves for
contrastive divergence, whose optimum ``v∞ = s²`` depends on no K; the bank for persistent chains.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jebm import mcmc, sharding
from jebm.energy import Energy, PyTree, as_partial, value
from jebm.mcmc import Kernel, bank
from jebm.mcmc.bank import Bank

__all__ = [
    "Contrast", "contrast", "contrastive_divergence", "contrastive_loss", "persistent_contrastive_divergence",
    "short_run_likelihood", "still",
]  # fmt: skip

KernelOf = Callable[[Energy], Kernel]


class Contrast(NamedTuple):
    """What a loss over samples knows beside its value.

    Attributes:
        energy_data: mean energy of the batch.
        energy_negative: mean energy of the negatives.
        starts: where the chains began, a pytree as the batch.
        negatives: where they ended.
        bank: the bank for the next iteration; None without persistent chains.
    """

    energy_data: Array
    energy_negative: Array
    starts: PyTree
    negatives: PyTree
    bank: Bank | None = None


def contrastive_loss(on_data: Array, on_negatives: Array, temperature: float, regularization: float = 0.0) -> Array:
    """``(mean f⁺ - mean f⁻ + α (mean f⁺² + mean f⁻²))/T``, a scalar.

    Without α its gradient is that of minus the log-likelihood, f⁻ being of samples of ``exp(-f/T)``. α > 0 keeps f near
    0, in the units of f (Du & Mordatch, arXiv 1903.08689): a stabiliser, which biases f but not the chains' kernel.

    Args:
        on_data: f of data [n].
        on_negatives: f of negative samples [m].
        temperature: T.
        regularization: α.

    Examples:
        >>> jebm.learning.contrastive_loss(jnp.array([1.0, 3.0]), jnp.array([5.0]), temperature=2.0)
        Array(-1.5, dtype=float32)
    """
    loss = jnp.mean(on_data) - jnp.mean(on_negatives)
    if regularization:
        loss += regularization * (jnp.mean(jnp.square(on_data)) + jnp.mean(jnp.square(on_negatives)))
    return loss / temperature


def contrastive_divergence(
    key: Array, energy: Energy, batch: PyTree, kernel_of: KernelOf, num_steps: int, *, regularization: float = 0.0
) -> tuple[Array, Contrast]:
    """Contrastive divergence, CD-k: the chains of the negatives start at the data.

    Chains that cannot leave the data's modes do not see what the energy does far from them: an energy learnt so need
    not be one to sample from noise.

    Args:
        key: a typed PRNG key.
        energy: of one example; differentiate through its parameters (see `jebm.learning`).
        batch: data, leaves [B, ...].
        kernel_of: makes the kernel of an energy, as ``lambda energy: jebm.langevin(energy, 0.01)``.
        num_steps: k.
        regularization: α of `contrastive_loss`.

    Returns:
        The loss, and `Contrast`.

    References:
        Hinton, "Training products of experts by minimizing contrastive divergence", Neural Computation 14 (2002).

    Examples:
        >>> def objective(centre, key, batch):
        ...     energy = jebm.energy.bind(lambda c, x: 0.5 * jnp.sum((x - c) ** 2), centre)
        ...     return jebm.learning.contrastive_divergence(key, energy, batch, lambda e: jebm.langevin(e, 0.1), 5)
        >>> batch = 3.0 + jax.random.normal(jax.random.key(0), (64, 1))
        >>> gradient, aux = jax.grad(objective, has_aux=True)(jnp.zeros(1), jax.random.key(1), batch)
        >>> bool(gradient[0] < 0)  # the centre is to move up, towards the data
        True
    """
    return contrast(key, energy, batch, batch, kernel_of, num_steps, regularization)


def short_run_likelihood(
    key: Array,
    energy: Energy,
    batch: PyTree,
    kernel_of: KernelOf,
    num_steps: int,
    start: Callable[[Array], PyTree],
    *,
    regularization: float = 0.0,
) -> tuple[Array, Contrast]:
    """Short-run maximum likelihood: each chain starts at fresh noise and makes K steps.

    What is learnt is the chain, a generator of K steps: draw with the same kernel, the same K and the same starts. Its
    energy alone is not that of the data.

    Args:
        key: as in `contrastive_divergence`.
        energy: as there.
        batch: as there.
        kernel_of: as there.
        num_steps: K.
        start: from a key to one start, such as ``jebm.learning.gaussian_noise(0.0 * x, 1.0).draw``.
        regularization: as there.

    Returns:
        The loss, and `Contrast`.

    References:
        Nijkamp et al., "Learning non-convergent non-persistent short-run MCMC toward energy-based model",
        arXiv 1904.09770.
    """
    start_key, chain_key = jax.random.split(key)
    starts = jax.vmap(start)(mcmc.chain_keys(start_key, _size(batch)))
    return contrast(chain_key, energy, batch, starts, kernel_of, num_steps, regularization)


def persistent_contrastive_divergence(
    key: Array,
    energy: Energy,
    batch: PyTree,
    chains: Bank,
    kernel_of: KernelOf,
    num_steps: int,
    start: Callable[[Array], PyTree],
    *,
    rejuvenation: float = 0.05,
    regularization: float = 0.0,
) -> tuple[Array, Contrast]:
    """Persistent contrastive divergence: chains start where those of earlier iterations ended.

    As many rows of the bank as the batch has are drawn; each starts anew with probability ``rejuvenation``. As the
    learning rate, the step size and the rejuvenation go to 0, the optimum goes to that of maximum likelihood.

    Args:
        key: as in `contrastive_divergence`.
        energy: as there.
        batch: as there.
        chains: of starts, ``jebm.mcmc.bank.init(jax.vmap(start)(jebm.chain_keys(key, 8192)))``; then ``aux.bank``
            of the iteration before.
        kernel_of: as there.
        num_steps: of each chain, at each iteration.
        start: from a key to one fresh start.
        rejuvenation: probability in [0, 1] that a chain starts anew.
        regularization: as there.

    Returns:
        The loss, and `Contrast` with the new bank.

    Raises:
        ValueError: a bank of fewer rows than the batch.

    References:
        Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood gradient", ICML 2008;
        Du & Mordatch, arXiv 1903.08689, for the rejuvenation.
    """
    draw_key, start_key, exchange_key, chain_key = jax.random.split(key, 4)
    size = _size(batch)
    indices, rows = bank.draw(draw_key, chains, size)
    fresh = jax.vmap(start)(mcmc.chain_keys(start_key, size))
    starts, ages = bank.rejuvenate(exchange_key, rows, chains.ages[indices], fresh, rejuvenation)
    loss, aux = contrast(chain_key, energy, batch, starts, kernel_of, num_steps, regularization)
    return loss, aux._replace(bank=bank.replace(chains, indices, aux.negatives, ages))


def contrast(
    key: Array,
    energy: Energy,
    batch: PyTree,
    starts: PyTree,
    kernel_of: KernelOf,
    num_steps: int,
    regularization: float = 0.0,
) -> tuple[Array, Contrast]:
    """`contrastive_loss` of the batch and of chains from ``starts``; no gradient flows through the chains."""
    energy = as_partial(energy)
    starts = sharding.constrain_batch(jax.lax.stop_gradient(starts))  # over all devices of a mesh in force
    state, _ = mcmc.sample_chains(key, kernel_of(still(energy)), starts, num_steps, trace=())
    negatives = jax.lax.stop_gradient(state.position)
    on_data, on_negatives = energies(energy, batch), energies(energy, negatives)
    loss = contrastive_loss(on_data, on_negatives, 1.0, regularization)
    return loss, Contrast(jnp.mean(on_data), jnp.mean(on_negatives), starts, negatives)


def still(energy: Energy) -> Energy:
    """The energy with parameters that are not differentiated."""
    return jax.tree.map(jax.lax.stop_gradient, as_partial(energy))


def energies(energy: Energy, batch: PyTree) -> Array:
    """The energy of each example [B]."""
    return jax.vmap(lambda x: value(energy, x))(batch)


def _size(batch: PyTree) -> int:
    return len(jax.tree.leaves(batch)[0])
