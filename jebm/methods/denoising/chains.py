"""Chains of Denoising-EBM (arXiv 2303.03887): short semantic chains, and annealed refinement by the texture energy.

The paper says: fast MCMC on the semantic energy gives a "semantic image", which the texture energy refines at pixel
level. Everything below that sentence is our reconstruction, after neighbouring methods.

*Semantic chains* at noise level σ, in this library's convention ``x' = x - η ∇E(x) + √(2ηT) ξ``:

* on pixels, the network's energy F with η = ½ and ``T = τ(σ) = (bσ)²``, that is ``x' = x - ½ ∇F(x, σ) + bσ ξ``: the
  density is ``exp(-F/τ)``. (Gao et al., arXiv 2012.08125, divide the network's output by the squared step instead.)
* on compact latents, ``F(z, σ)/τ + ½‖z‖²`` at T = 1, with one τ for all levels: the reference N(0, I) makes
  ``exp(-F/τ)`` a density.

With tens of steps neither chain comes near its density: it is a short-run sampler whose drift the energy learns.

*Refinement* is annealed Langevin (NCSN) with the detached drift ``-u/σ`` at T = 1 and ``η = ε (σ/σ_min)²``; or, without
noise, the probability flow ``dx/dσ = -u(x, σ)`` by Heun's rule, which has the same law at every σ for an exact u and
needs tens of evaluations where annealed Langevin needs hundreds (Karras et al., arXiv 2206.00364).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jebm import energy as energies
from jebm import mcmc
from jebm.energy import bind
from jebm.errors import ConfigError, check
from jebm.methods.denoising.energies import (
    NoisePredictor,
    denoise,
    flow_ladder,
    ladder_step_size,
    noise_ladder,
    optimal_ladder,
    texture,
)

__all__ = ["SemanticChainConfig", "RefinementConfig", "anneal_semantic", "refine", "run_level", "temperature"]

SemanticFunction = Callable[[Array, Array], Array]
"""``(x, σ) -> F`` of one image or latent."""


@dataclasses.dataclass(frozen=True)
class SemanticChainConfig:
    """A semantic chain; defaults as in Gao et al. (arXiv 2012.08125) [pixels] and ours [latents].

    Attributes:
        num_steps: K, at each noise level.
        sampling_steps: steps at each level when images are made; None for K.
        noise_scale: b of a chain on pixels; 0.01414 is b² = 2e-4.
        latent_step_size: η of a chain on latents, of the whole energy at T = 1.
        latent_temperature: τ of a chain on latents. The regularisation holds F to about 1, so a density that is to
            rule out most of the latent space needs a small τ.
        max_drift: bound on the length of a step's drift, in units of ``σ √D`` on pixels and ``√d`` on latents, or None.
            *Changes the law sampled* where it bites.
    """

    num_steps: int = 30
    sampling_steps: int | None = None
    noise_scale: float = 0.01414
    latent_step_size: float = 0.2
    latent_temperature: float = 0.01
    max_drift: float | None = 0.3

    def __post_init__(self) -> None:
        check(
            self, num_steps=">=1", sampling_steps=">=1", noise_scale=">0", latent_step_size=">0",
            latent_temperature=">0", max_drift=">0",
        )  # fmt: skip

    def when_sampling(self) -> "SemanticChainConfig":
        """The chain with as many steps as images are made with."""
        return self if self.sampling_steps is None else dataclasses.replace(self, num_steps=self.sampling_steps)


@dataclasses.dataclass(frozen=True)
class RefinementConfig:
    """The second stage; levels and step sizes follow the rules of `denoising_energies` unless given.

    Attributes:
        solver: ``"langevin"``, annealed; or ``"heun"``, the probability flow, which draws nothing.
        sigma_start: σ_J, where the semantic stage hands over.
        steps_per_level: T (annealed Langevin only).
        num_levels: from σ_J to σ_min; or None for `optimal_ladder`, and for 18 of a flow's levels.
        step_size: ε at σ_min, or None for `ladder_step_size` (annealed Langevin only).
        drift: ``"detached"``, or the ``"full"`` gradient of the texture energy: an ablation with another law
            (annealed Langevin only).
    """

    solver: Literal["langevin", "heun"] = "langevin"
    sigma_start: float = 0.2
    steps_per_level: int = 5
    num_levels: int | None = None
    step_size: float | None = None
    drift: Literal["detached", "full"] = "detached"

    def __post_init__(self) -> None:
        check(self, sigma_start=">0", steps_per_level=">=1", num_levels=">=2", step_size=">0")
        if self.solver == "heun" and self.drift == "full":
            raise ConfigError("drift='full' belongs to solver='langevin': a flow follows u itself")

    def ladder(self, sigma_start: float, sigma_min: float, dimension: int) -> np.ndarray:
        """The noise levels from ``sigma_start`` down for images of ``dimension`` numbers.

        Raises:
            ConfigError: a ladder that does not fall.
        """
        if self.solver == "heun":
            return flow_ladder(sigma_start, sigma_min, self.num_levels or 18)
        if self.num_levels is None:
            return optimal_ladder(sigma_start, sigma_min, dimension)
        return noise_ladder(sigma_start, sigma_min, self.num_levels)

    def evaluations(self, num_levels: int) -> int:
        """Evaluations of u that one image costs over so many levels, the last denoising step included."""
        return 2 * (num_levels - 1) + 1 if self.solver == "heun" else num_levels * self.steps_per_level + 1


def temperature(config: SemanticChainConfig, sigma: Array | float, latent: bool) -> Array:
    """``τ(σ) = (bσ)²`` on pixels, the same at all levels on latents: the semantic part of the Gibbs energy is F/τ."""
    sigma = jnp.asarray(sigma, jnp.float32)
    return jnp.full_like(sigma, config.latent_temperature) if latent else jnp.square(config.noise_scale * sigma)


def run_level(
    key: Array,
    semantic: SemanticFunction,
    start: Array,
    sigma: Array,
    config: SemanticChainConfig,
    *,
    latent: bool = False,
    gap: Array | None = None,
) -> Array:
    """One chain of K steps at one noise level; K gradients.

    Args:
        key: for this chain alone.
        semantic: F.
        start: one image or latent.
        sigma: σ, a scalar.
        config: the chain.
        latent: the chain is on latents, with the reference N(0, I).
        gap: the recovery likelihood: ``τ‖x - start‖²/(2 gap²)`` is added to F, which samples images at level σ *given*
            that ``start`` is one of them plus noise of standard deviation ``gap``; ``inf`` adds nothing.

    Returns:
        The chain's end, no gradient flowing through it.
    """
    energy: energies.Energy = bind(_at_level, Partial(semantic), sigma)
    tau = temperature(config, sigma, latent)
    if latent:
        energy = energies.sum(energies.temper(energy, tau), energies.standard_normal)
    if gap is not None:
        energy = energies.condition(energy, start, tau / (2.0 * jnp.square(gap)))
    step_size = config.latent_step_size if latent else 0.5
    bound = None
    if config.max_drift is not None:
        bound = config.max_drift * math.sqrt(start.size) * (jnp.ones_like(sigma) if latent else sigma)
    kernel = mcmc.langevin(energy, step_size, 1.0 if latent else tau, max_drift=bound)
    state, _ = mcmc.sample(key, kernel, start, config.num_steps, trace=())
    return jax.lax.stop_gradient(state.position)


def _at_level(semantic: SemanticFunction, sigma: Array, x: Array) -> Array:
    return semantic(x, sigma)


def anneal_semantic(
    key: Array,
    semantic: SemanticFunction,
    start: Array,
    sigmas: np.ndarray,
    config: SemanticChainConfig,
    *,
    latent: bool = False,
    recovery: bool = False,
) -> Array:
    """The first stage: chains down the levels, each from the end of the one before.

    Args:
        key: for this chain alone.
        semantic: F.
        start: one draw of ``N(½, σ_1² I)`` [image], or of N(0, I) [latent].
        sigmas: levels, falling.
        config: the chains.
        latent: as in `run_level`.
        recovery: each level is conditional on the end of the one before.

    Returns:
        One image at the last level's noise, or one latent.
    """
    run = functools.partial(run_level, config=config.when_sampling(), latent=latent)
    gaps = recovery_gaps(sigmas)

    def level(x: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, sigma, gap = at
        return run(jax.random.fold_in(key, i), semantic, x, sigma, gap=gap if recovery else None), None

    levels = (jnp.arange(len(sigmas)), jnp.asarray(sigmas, jnp.float32), gaps)
    return jax.lax.scan(level, start, levels)[0]


def recovery_gaps(sigmas: np.ndarray) -> Array:
    """``√(σ_{i-1}² - σ_i²)``, the noise between a level and the one above; infinite at the first."""
    squares = np.square(sigmas)
    return jnp.asarray(np.sqrt(np.concatenate([[np.inf], squares[:-1] - squares[1:]])), jnp.float32)


def refine(
    key: Array,
    predictor: NoisePredictor,
    start: Array,
    sigmas: np.ndarray,
    config: RefinementConfig,
    *,
    positions_every: int = 0,
) -> tuple[Array, Array | None]:
    """The second stage: down the levels by the configured solver, then one denoising step.

    Annealed Langevin on the texture energy takes ``len(sigmas) · T`` evaluations of u (gradients, with the full
    drift), the flow two for each step between levels; the last step takes one more.

    Args:
        key: for this chain alone.
        predictor: u.
        start: one image with noise of ``sigmas[0]``.
        sigmas: levels, falling.
        config: steps, their size, the drift.
        positions_every: n > 0 also returns the positions after steps n, 2n, ...

    Returns:
        The image, neither clipped nor rounded; and the positions on the way, or None.
    """
    if config.solver == "heun":
        end, steps = _flow(predictor, start, sigmas)
        kept = steps[positions_every - 1 :: positions_every] if positions_every else None
        return denoise(predictor, end, float(sigmas[-1])), kept
    step_size = config.step_size
    if step_size is None:
        step_size = ladder_step_size(float(sigmas[-1]), float(sigmas[0] / sigmas[1]), config.steps_per_level)
    table = np.repeat(sigmas, config.steps_per_level)
    kernel = mcmc.langevin(
        energies.anneal(
            _detached_at_step if config.drift == "detached" else _full_at_step,
            Partial(predictor), jnp.asarray(table, jnp.float32),
        ),
        mcmc.table_schedule(jnp.asarray(step_size * np.square(table / sigmas[-1]), jnp.float32)),
    )  # fmt: skip
    state, trace = mcmc.sample(key, kernel, start, len(table), trace=(), positions_every=positions_every)
    return denoise(predictor, state.position, float(sigmas[-1])), trace.get("position")


def _flow(predictor: NoisePredictor, start: Array, sigmas: np.ndarray) -> tuple[Array, Array]:
    """Heun's rule on ``dx/dσ = -u(x, σ)`` from each level to the next; the end, and the position after each step."""

    def step(x: Array, between: tuple[Array, Array]) -> tuple[Array, Array]:
        sigma, lower = between
        slope = -predictor(x, sigma)
        ahead = -predictor(x + (lower - sigma) * slope, lower)
        x = x + (lower - sigma) * 0.5 * (slope + ahead)
        return x, x

    levels = jnp.asarray(sigmas, jnp.float32)
    return jax.lax.scan(step, start, (levels[:-1], levels[1:]))


def _sigma_at(table: Array, step: Array) -> Array:
    return table[jnp.minimum(step, table.shape[0] - 1)]


def _detached_at_step(predictor: NoisePredictor, table: Array, step: Array, x: Array) -> Array:
    return energies.value(texture(predictor, _sigma_at(table, step)), x)


def _full_at_step(predictor: NoisePredictor, table: Array, step: Array, x: Array) -> Array:
    return energies.value(texture(predictor, _sigma_at(table, step), detach=False), x)
