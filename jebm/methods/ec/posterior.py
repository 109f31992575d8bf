"""Energy-calibrated variational learning: the calibrated posterior, with a constraint of its own [inferred].

That the posterior is calibrated too is an extension named in the abstract of arXiv 2311.04071; formulas are not known,
and these are our proposal. The exact posterior of a decoder G with Gaussian errors of variance σ² is itself an energy,

    U(z; x) = ‖x - G(z)‖² / (2σ²) + ½‖z‖²

and a short Langevin chain on it, started at the encoder's sample z_q, gives the calibrated latent z_c. The encoder is
trained on the ELBO under

    C_z = E ‖z_c - z_q‖² ≤ ε_z            (z_c constant; the gradient flows into the encoder alone)

with a multiplier μ_z by dual ascent, and the decoder may reconstruct from z_c. ``β = 2σ²`` gives the weight of the KL
term in `ec_vae`, whose loss is 2σ² times the negative ELBO.

With μ_z above 0 the constraint pulls z_q towards low U without regard to its entropy, and narrows the encoder. A chain
that starts in the posterior itself moves by less than K s d, the floor that its noise alone reaches; an ε_z above the
floor therefore lets μ_z fall to 0 there, and the optimum is that of the ELBO.

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

__all__ = [
    "PosteriorCalibrationConfig", "calibrate_posterior", "evidence_bound", "floor", "posterior_dual_step",
    "posterior_energy", "posterior_loss", "tolerance",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PosteriorCalibrationConfig:
    """The chain on the posterior, and its constraint; all values are ours.

    Attributes:
        num_steps: K.
        step_size: s; the noise of a step has variance s.
        hinge: h_z: squared distance from z_q beyond which the chain is pulled back.
        pull: coefficient of ``w_k max(‖z - z_q‖², h_z)``, ``w_k = (K-1-k)/K``; 0 for none.
        tolerance: ε_z; None: 1.085 of the floor K s d.
        dual_initial: μ_z at the start.
        dual_rate: step size of the dual ascent.
        dual_max: μ_z is kept in [0, dual_max].
    """

    num_steps: int = 10
    step_size: float = 1e-3
    hinge: float = 0.0
    pull: float = 0.0
    tolerance: float | None = None
    dual_initial: float = 1.0
    dual_rate: float = 1e-2
    dual_max: float = 100.0

    def __post_init__(self) -> None:
        check(
            self, num_steps=">=1", step_size=">0", hinge=">=0", pull=">=0", tolerance=">=0", dual_initial=">=0",
            dual_rate=">=0", dual_max=">=0",
        )  # fmt: skip


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


def posterior_loss(calibrated: Array, z: Array) -> Array:
    """``C_z = mean_b ‖z_c - z_q‖²``, its gradient flowing into ``z`` alone."""
    return jnp.sum(jnp.square(jax.lax.stop_gradient(calibrated) - z)) / z.shape[0]


def floor(config: PosteriorCalibrationConfig, dimension: int) -> float:
    """``K s d``: the expected C_z of a chain with no gradient."""
    return config.num_steps * config.step_size * dimension


def tolerance(config: PosteriorCalibrationConfig, dimension: int) -> float:
    """ε_z: as configured, or 1.085 of the floor."""
    return 1.085 * floor(config, dimension) if config.tolerance is None else config.tolerance


def posterior_dual_step(dual: Array, loss: Array, config: PosteriorCalibrationConfig, dimension: int) -> Array:
    """``μ_z ← clip(μ_z + rate (C_z - ε_z), 0, dual_max)``."""
    return jnp.clip(dual + config.dual_rate * (loss - tolerance(config, dimension)), 0.0, config.dual_max)


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
