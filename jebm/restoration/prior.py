"""The prior of a trained run."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jebm import energy as energies
from jebm.methods import FAMILIES, family_of
from jebm.methods.hat.networks import code_shape
from jebm.restoration.sampler import Prior
from jebm.runs.run import Run, load

__all__ = ["image_shape", "prior_of"]


SAMPLES = 64  # generated samples over which the energy's standard deviation is taken


def prior_of(run: Run) -> Prior:
    """The prior that a trained run is: its generator, where its family has one, and its energy.

    E of the latent chain is divided by its standard deviation over 64 generated images [ours], so that an energy
    weight means the same for every family; the refinement's is E as the family has it, over its temperature.

    A Denoising-EBM has a generator where its chains walk latents: the decoder, with latents of N(0, I).

    Raises:
        ConfigError: the generator belongs to another run that is not there.
    """
    config, method = run.config.method, run.method
    one = Partial(lambda state, x: method.energy(state, x[None])[0], run.state)
    native = energies.temper(one, config.temperature) if family_of(config) == "hat_ebm" else one
    path = getattr(config, "generator", "")
    other = run if path in ("", "network") else load(path)
    generator = FAMILIES[family_of(other.config.method)].generator(other.config.method, other.state)
    if generator is None:
        return Prior(None, native, jnp.zeros(image_shape(run)))
    latent = jnp.zeros(_latent_shape(config))
    z = jax.random.normal(jax.random.key(0), (SAMPLES, *latent.shape))
    deviation = jax.jit(lambda generator, z: jnp.std(jax.lax.map(lambda z: one(generator(z)), z)))(generator, z)
    return Prior(generator, energies.scale(one, 1.0 / jnp.maximum(deviation, 1e-12)), latent, native)


def _latent_shape(config: Any) -> tuple[int, ...]:
    if family_of(config) == "hat_autoencoder" or getattr(config, "application", "") == "retrofit":
        return code_shape(config.image_size)
    return (config.latent_size,)


def image_shape(run: Run) -> tuple[int, int, int]:
    """(H, W, C) of the run's images."""
    method = run.config.method
    return (method.image_size, method.image_size, method.channels)
