"""Calibration of an encoder's latents by the exact posterior, under a second constraint [inferred].

The abstract of arXiv 2311.04071 names this extension without formulas; those here are our proposal. The exact posterior
of a decoder G with Gaussian errors of variance σ² is itself an energy,

    U(z; x) = ‖x - G(z)‖² / (2σ²) + ½‖z‖²

and a short Langevin chain on it, started at the encoder's sample z_q, gives the calibrated latent z_c. The encoder is
trained on the ELBO under

    C_z = E ‖z_c - z_q‖² ≤ ε_z            (z_c constant; the gradient flows into the encoder alone)

which is the constraint of `calibration` on latents, with a multiplier μ_z; the decoder may reconstruct from z_c.
``β = 2σ²`` gives the weight of the KL term in `vae`, whose loss is 2σ² times the negative ELBO.

A μ_z above 0 pulls z_q towards low U without regard to its entropy, and narrows the encoder. A chain that starts in the
posterior itself moves by less than K s d, the floor that its noise alone reaches; an ε_z above the floor therefore lets
μ_z fall to 0 there, and the optimum is that of the ELBO.

Units: the authors' step ``z - (s/2) ∇U + sqrt(s) ξ`` is `jebm.langevin` with ``η = s/2`` at temperature 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jebm import mcmc
from jebm.energy import Generator, anneal, bind, squared_distance, standard_normal, value
from jebm.errors import check
from jebm.methods.ec.calibration import Constraint

__all__ = ["PosteriorCalibrationConfig", "calibrate_posterior", "evidence_bound", "posterior_energy"]


@dataclasses.dataclass(frozen=True)
class PosteriorCalibrationConfig(Constraint):
    """The chain on the posterior and its constraint, D being the latent size; all values are ours.

    Attributes:
        num_steps: K, steps of the chain. `Constraint` has the other settings of the chain and of the multiplier μ_z.
        hinge: h_z: squared distance from z_q beyond which the chain is pulled back.
        pull: coefficient of ``w_k max(‖z - z_q‖², h_z)``, ``w_k = (K-1-k)/K``; 0 for none.
    """

    num_steps: int = 10
    step_size: float = 1e-3
    dual_initial: float = 1.0
    hinge: float = 0.0
    pull: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, hinge=">=0", pull=">=0")


def posterior_energy(decoder: Generator, x: Array, variance: Array | float) -> Partial:
    """``U(·; x)`` of one latent: the energy of p(z|x), with ``decoder`` from one latent to one x."""
    return bind(_posterior_energy, Partial(decoder) if not isinstance(decoder, Partial) else decoder, x, variance)


def _posterior_energy(decoder: Generator, x: Array, variance: Array, z: Array) -> Array:
    return squared_distance(decoder(z), x) / (2.0 * variance) + standard_normal(z)


def calibrate_posterior(
    key: Array, decoder: Generator, x: Array, z: Array, variance: Array | float, config: PosteriorCalibrationConfig
) -> Array:
    """Calibrated latents z_c [B, d]: one chain per example, on ``U(·; x_i)`` from ``z_i``; no gradient flows.

    Args:
        key: split into one key per chain.
        decoder: G, from one latent to one example.
        x: examples [B, ...].
        z: z_q [B, d], the encoder's samples.
        variance: σ².
        config: see `PosteriorCalibrationConfig`.
    """
    z, x = jax.lax.stop_gradient((z, x))
    decoder = jax.tree.map(jax.lax.stop_gradient, decoder if isinstance(decoder, Partial) else Partial(decoder))

    def chain(key: Array, x: Array, start: Array) -> Array:
        energy = posterior_energy(decoder, x, variance)
        pulled = anneal(_pulled, energy, start, config.pull / config.num_steps, config.hinge, config.num_steps - 1)
        kernel = mcmc.langevin(pulled if config.pull else energy, mcmc.from_half_step(config.step_size))
        return mcmc.sample(key, kernel, start, config.num_steps, trace=())[0].position

    return jax.lax.stop_gradient(jax.vmap(chain)(mcmc.chain_keys(key, z.shape[0]), x, z))


def _pulled(energy: Partial, start: Array, weight: Array, hinge: Array, last: Array, step: Array, z: Array) -> Array:
    distance = jnp.maximum(squared_distance(z, start), hinge)
    return value(energy, z) + weight * (last - step) * distance


def evidence_bound(x: Array, decoded: Array, mu: Array, logvar: Array, variance: Array | float) -> Array:
    """The ELBO of each example [B], in nats: ``log N(x; G(z_q), σ² I) - KL(q(z|x) ‖ N(0, I))``.

    Args:
        x: examples [B, ...].
        decoded: ``G(z_q)``, of the same shape.
        mu: means [B, d] of q.
        logvar: logarithms [B, d] of its variances.
        variance: σ².
    """
    error = jnp.square(x - decoded).reshape(x.shape[0], -1)
    log_likelihood = -0.5 * (error.sum(1) / variance + error.shape[1] * jnp.log(2.0 * jnp.pi * variance))
    return log_likelihood + 0.5 * jnp.sum(1.0 + logvar - jnp.square(mu) - jnp.exp(logvar), -1)
