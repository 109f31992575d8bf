"""The prior of a trained run."""

import jax
import jax.numpy as jnp

from jebm import energy as energies
from jebm.methods.shared import prior_samples
from jebm.restoration.sampler import Prior
from jebm.runs.run import Run

__all__ = ["prior"]

SAMPLES = 64  # generated samples over which the energy's standard deviation is taken


def prior(run: Run, num_samples: int = SAMPLES) -> Prior:
    """A trained run as the prior of a restoration: its generator, where its family has one, and its energy.

    The energy of the latent chain is divided by its standard deviation over ``num_samples`` generated images [ours], so
    that an energy weight means the same for every family; the refinement's is the family's own.
    """
    method, energy = run.method, run.method.energy(run.state)
    if method.generator is None or method.latent_shape is None:
        return Prior(None, energy, jnp.zeros(method.image_shape))
    generator = method.generator(run.state)
    z = prior_samples(jax.random.key(0), num_samples, method.latent_shape)
    deviation = jax.jit(lambda generator, z: jnp.std(jax.lax.map(lambda z: energy(generator(z)), z)))(generator, z)
    scaled = energies.scale(energy, 1.0 / jnp.maximum(deviation, 1e-12))
    return Prior(generator, scaled, jnp.zeros(method.latent_shape), energy)
