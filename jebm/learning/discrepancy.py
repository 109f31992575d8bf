"""Energy discrepancy: each example is told from points drawn about a noisy copy of it; no chains, no scores."""

import jax
import jax.numpy as jnp
from jax import Array

from jebm.energy import Energy, PyTree, as_partial, require_int, value
from jebm.learning.noise import add_normals
from jebm.learning.noise_contrastive import Classified

__all__ = ["energy_discrepancy"]


def energy_discrepancy(
    key: Array, energy: Energy, batch: PyTree, noise_scale: Array | float, *, num_negatives: int = 16
) -> tuple[Array, Classified]:
    """``E log((1 + Σ_j exp(E(x) - E(x_j)))/M)`` with ``x̃ = x + σ ξ`` and M negatives ``x_j = x̃ + σ ξ_j``.

    Given x̃, x and the x_j are M + 1 candidates of which one is from the data, so that the loss is the cross-entropy of
    finding it: its optimum is the energy of the data, up to a constant, for any σ and any M. The σ says over which
    distances energies are compared: modes much further apart than it get no weights relative to each other.

    Args:
        key: a typed PRNG key.
        energy: of one example; differentiate through its parameters (see `jebm.learning`).
        batch: data, leaves [B, ...].
        noise_scale: σ, the square root of the paper's t.
        num_negatives: M; the energy is evaluated M + 1 times an example.

    Returns:
        The loss, and `Classified`; its accuracy is the share of examples whose energy is below those of all their
        negatives.

    References:
        Schröder et al., "Energy discrepancies: a score-independent loss for energy-based models", arXiv 2307.06431,
        equation 8 with w = 1.
    """
    energy, num_negatives = as_partial(energy), require_int(num_negatives, "num_negatives", 1)
    copy_key, negative_key = jax.random.split(key)
    noisy = add_normals(copy_key, batch, noise_scale)
    repeated = jax.tree.map(lambda a: jnp.repeat(a, num_negatives, 0), noisy)
    negatives = add_normals(negative_key, repeated, noise_scale)
    energies = jax.vmap(lambda x: value(energy, x))
    on_data, on_negatives = energies(batch), energies(negatives).reshape(-1, num_negatives)
    above = on_data[:, None] - on_negatives
    logits = jnp.concatenate([jnp.zeros_like(above[:, :1]), above], 1)
    loss = jnp.mean(jax.nn.logsumexp(logits, 1)) - jnp.log(num_negatives)
    accuracy = jnp.mean(jnp.all(above < 0, 1))
    return loss, Classified(jnp.mean(on_data), jnp.mean(on_negatives), accuracy)
