"""Noise-contrastive estimation: data are told from noise of a known law."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jebm import mcmc
from jebm.energy import Energy, PyTree, as_partial, require_int, value
from jebm.learning.noise import Noise

__all__ = ["Classified", "noise_contrastive_estimation"]


class Classified(NamedTuple):
    """What a loss that tells data from noise knows beside its value.

    Attributes:
        energy_data: mean energy of the batch.
        energy_negative: mean energy of the noise.
        accuracy: the share that is classified rightly; by noise-contrastive estimation of data and of noise in equal
            parts.
    """

    energy_data: Array
    energy_negative: Array
    accuracy: Array


def noise_contrastive_estimation(
    key: Array, energy: Energy, batch: PyTree, noise: Noise, *, ratio: int = 1
) -> tuple[Array, Classified]:
    """``-E log σ(G(x)) - ν E log σ(-G(y))`` with ``G = -E - log p_noise - log ν``, x data and y noise.

    Its optimum is the *normalised* energy of the data, ``∫ exp(-E) = 1``: an energy with a free constant learns its
    log-normaliser. It is good where the noise covers the data and is like them.

    Args:
        key: a typed PRNG key.
        energy: of one example; differentiate through its parameters (see `jebm.learning`).
        batch: data, leaves [B, ...].
        noise: the known law, such as `jebm.learning.gaussian_noise`.
        ratio: ν, draws of noise for each example.

    Returns:
        The loss, and `Classified`.

    References:
        Gutmann and Hyvärinen, "Noise-contrastive estimation of unnormalized statistical models, with applications to
        natural image statistics", JMLR 13 (2012).
    """
    energy, ratio = as_partial(energy), require_int(ratio, "ratio", 1)
    size = len(jax.tree.leaves(batch)[0])
    drawn = jax.vmap(noise.draw)(mcmc.chain_keys(key, ratio * size))

    def logits(x: PyTree) -> tuple[Array, Array]:
        values = jax.vmap(lambda x: value(energy, x))(x)
        return jax.vmap(noise.energy)(x) - values - jnp.log(ratio), values

    (on_data, energies_data), (on_noise, energies_noise) = logits(batch), logits(drawn)
    loss = jnp.mean(jax.nn.softplus(-on_data)) + ratio * jnp.mean(jax.nn.softplus(on_noise))
    accuracy = 0.5 * (jnp.mean(on_data > 0) + jnp.mean(on_noise < 0))
    return loss, Classified(jnp.mean(energies_data), jnp.mean(energies_noise), accuracy)
