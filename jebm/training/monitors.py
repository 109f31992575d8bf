"""Metrics that the trainer adds to every family's own, inside the compiled step."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import PyTree
from jebm.mcmc.bank import Bank
from jebm.methods.base import Method, Metrics
from jebm.methods.shared import Trained

__all__ = ["measure"]


def measure(method: Method, old: PyTree, new: PyTree, metrics: Metrics, probe: Array) -> Metrics:
    """The metrics of a step, with the monitors beside them.

    Args:
        method: the family.
        old: its state before the step.
        new: its state after the step.
        metrics: the family's own.
        probe: a few images [n, H, W, C] in [-1, 1] that stay the same through the run.

    Returns:
        ``metrics``, and ``energy_gap`` (data minus negatives, where both energies are there),
        ``update_ratio/<network>`` (|θ' - θ| / |θ|) of each network that learns, ``probe_energy`` (mean of T E over the
        probe: its course is the energy's drift on images that do not change), and the mean and largest age of each
        bank, all float32 scalars.
    """
    measured = _ratios(method, old, new) | _ages(new)
    energies = jax.vmap(method.energy(new))(probe)
    measured["probe_energy"] = jnp.mean(method.temperature * energies).astype(jnp.float32)
    if "energy_negative" in metrics and "energy_data" in metrics:
        measured["energy_gap"] = metrics["energy_data"] - metrics["energy_negative"]
    return measured | metrics


def _ratios(method: Method, old: PyTree, new: PyTree) -> Metrics:
    before, after = method.networks(old), method.networks(new)
    ratios: Metrics = {}
    for name, network in before.items():
        if isinstance(network, Trained):
            pairs = zip(jax.tree.leaves(network.params), jax.tree.leaves(after[name].params), strict=True)
            floating = [(a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating)]
            change = optax.tree.norm([b - a for a, b in floating])
            norm = optax.tree.norm([a for a, _ in floating])
            ratios[f"update_ratio/{name}"] = (change / (norm + 1e-30)).astype(jnp.float32)
    return ratios


def _ages(state: PyTree) -> Metrics:
    banks = [b for b in jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, Bank)) if isinstance(b, Bank)]
    ages: Metrics = {}
    for i, bank in enumerate(banks):
        suffix = f"/{i}" if len(banks) > 1 else ""
        ages[f"bank_age_mean{suffix}"] = jnp.mean(bank.ages.astype(jnp.float32))
        ages[f"bank_age_max{suffix}"] = jnp.max(bank.ages).astype(jnp.float32)
    return ages
