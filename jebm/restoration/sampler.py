"""Zero-shot restoration with a latent generator and an energy as the prior.

That the energy-calibrated paper restores images from a neural transport prior and range-null decomposition is in its
abstract (arXiv 2311.04071); the algorithm below is our proposal [inferred], from the known parts: Langevin dynamics on
the latents of a tilted generator (Nijkamp et al., arXiv 2006.06897) and the range-null decomposition (Wang et al.,
arXiv 2212.00490). For a measurement ``y = A x`` (plus noise of deviation σ_y) and z ~ N(0, I):

    U(z) = ½‖z‖² + ρ E(x̂(z)) + ‖A G(z) - y‖² / (2 σ²)          x̂(z) = A⁺y + (I - A⁺A) G(z)
    z'   = z - η ∇U(z) + sqrt(2 η T) ξ                           from R starts, after some steps of Adam on U
    x̂'   = A⁺y + (I - A⁺A)(x̂ - η_p ∇E_p(x̂) + sqrt(2 η_p T) ξ)   pixel refinement in the null space of A

and of the R images the one of the lowest U is kept, or their mean, which has the measurement too. Where the
measurement is noisy, E in U is of G(z), and neither x̂ nor the refinement holds on to y exactly: see `restore`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import Partial

from jebm import mcmc
from jebm.energy import Energy, Generator, as_partial, bind, squared_distance, standard_normal, value
from jebm.errors import ConfigError, check
from jebm.restoration.operators import Operator

__all__ = ["Prior", "Restored", "RestorationConfig", "latent_potential", "restore"]

Estimate = Literal["best", "mean"]


@dataclasses.dataclass(frozen=True)
class RestorationConfig:
    """The chain. All values are ours.

    Attributes:
        restarts: R, starts per image.
        descent_steps: steps of Adam on U before the chain; alone (``num_steps=0``) they give the posterior's mode.
        descent_rate: Adam's learning rate.
        num_steps: T, Langevin steps on the latents.
        step_size: η of these, stable below 2 over the largest curvature of U; None: 0.5 over the curvature that
            power iterations find where the chain starts.
        temperature: of the latent chain and of the refinement; 1 samples the posterior, 0 descends.
        energy_weight: ρ.
        likelihood_std: σ; None: ``noise_std`` where it is above 0, else 0.1. Without noise it says how far G(z) may
            be from the image, since the generator does not reach it exactly.
        noise_std: σ_y, the deviation of the measurement's noise, in the units of y; 0 for an exact measurement.
        estimate: ``"best"``: of the R images that of the lowest U, about as sharp as the prior's own; ``"mean"``: their
            mean, nearer to the original in squared error the more they differ, and smoother.
        refinement_steps: K_p, Langevin steps on the pixels.
        refinement_step_size: η_p; None: as for ``step_size``, of E_p, and at most ``d/(2 ‖∇E_p‖²)`` at A⁺y or G(z), d
            values in the image: no drift is longer than the noise, also where an energy is piecewise linear.
    """

    restarts: int = 4
    descent_steps: int = 200
    descent_rate: float = 0.05
    num_steps: int = 50
    step_size: float | None = None
    temperature: float = 1.0
    energy_weight: float = 1.0
    likelihood_std: float | None = None
    noise_std: float = 0.0
    estimate: Estimate = "best"
    refinement_steps: int = 0
    refinement_step_size: float | None = None

    def __post_init__(self) -> None:
        for name in ("restarts", "descent_steps", "num_steps", "refinement_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}={value!r}: give a whole number")
        if self.estimate not in get_args(Estimate):
            raise ConfigError(f"estimate={self.estimate!r}: there are {', '.join(get_args(Estimate))}")
        check(
            self, restarts=">=1", descent_steps=">=0", descent_rate=">0", num_steps=">=0", step_size=">0",
            temperature=">=0", energy_weight=">=0", likelihood_std=">0", noise_std=">=0", refinement_steps=">=0",
            refinement_step_size=">0",
        )  # fmt: skip

    @property
    def deviation(self) -> float:
        """The σ of the likelihood."""
        return (self.noise_std or 0.1) if self.likelihood_std is None else self.likelihood_std


class Prior(NamedTuple):
    """A prior of images; a pytree.

    Attributes:
        generator: G, one latent in, one image [H, W, C] out; None where the model has none: all that is done then is
            the refinement, from A⁺y.
        energy: E of one image, lower is more likely.
        latent: zeros of the shape of one latent; its prior is N(0, I).
        refinement_energy: E_p of one image, that of the pixel chain; None: ``energy``.
    """

    generator: Generator | None
    energy: Energy
    latent: Array
    refinement_energy: Energy | None = None


class Restored(NamedTuple):
    """Result of `restore`.

    Attributes:
        images: [B, H, W, C] in [-1, 1]: the estimate, clipped, and kept near y as it is clipped.
        consistency: [B], mean of ``|A x̂ - y|`` of that estimate before it was clipped.
        potential: U at the end of each latent chain [B, R].
        samples: x̂ of every restart [B, R, H, W, C], not clipped.
        latents: z at the end of each latent chain [B, R, ...].
    """

    images: Array
    consistency: Array
    potential: Array
    samples: Array
    latents: Array


def latent_potential(prior: Prior, operator: Operator, y: Array, config: RestorationConfig) -> Partial:
    """The energy U of one latent; see the module's docstring. ``prior`` must have a generator."""
    potential = _potential if config.noise_std == 0 else _noisy_potential
    return bind(potential, prior, operator, y, config.energy_weight, config.deviation)


def _potential(prior: Prior, operator: Operator, y: Array, weight: Array, deviation: Array, z: Array) -> Array:
    assert prior.generator is not None
    x = prior.generator(z)
    difference = y - operator.apply(x)
    misfit = squared_distance(difference, jnp.zeros_like(difference)) / (2.0 * deviation**2)
    # x̂ with the difference at hand: x + A⁺(y - A x)
    return standard_normal(z) + weight * value(prior.energy, x + operator.pseudo_inverse(difference)) + misfit


def _noisy_potential(prior: Prior, operator: Operator, y: Array, weight: Array, deviation: Array, z: Array) -> Array:
    assert prior.generator is not None
    x = prior.generator(z)
    misfit = squared_distance(operator.apply(x), y) / (2.0 * deviation**2)
    return standard_normal(z) + weight * value(prior.energy, x) + misfit


def restore(
    key: Array, prior: Prior, operator: Operator, measurements: Array, config: RestorationConfig | None = None,
    *, batch_size: int | None = None, progress: Callable[[int], Any] = lambda n: None,
) -> Restored:  # fmt: skip
    """Images that have these measurements and that the prior finds likely; one compiled program, jitted.

    A measurement without noise (``noise_std=0``) is kept exactly: ``A x̂ = y`` up to rounding, if y lies in the range
    of A; the refinement then samples ``exp(-E_p/T)`` restricted to the images with that measurement. With noise, the
    correction is the linear estimate of least squared error for an image of law N(G(z), s² I),
    ``x̂ = G(z) + s² Aᵀ (s² A Aᵀ + σ_y² I)⁻¹ d`` with ``d = y - A G(z)``, where the m measurements say how large the
    generator's own error is, ``s² = max(0, mean d² - σ_y²)/(tr A Aᵀ/m)``: what lies within the noise, in each
    direction, is left to the generator. The refinement then samples ``exp(-(E_p(x) + ‖A x - y‖²/(2 σ_y²))/T)`` over all
    pixels.

    A restart that ends at a NaN is never kept; the others decide.

    Laws. The latent chain at T = 1 samples ``exp(-U)`` with the inflation of unadjusted Langevin steps: on a linear
    generator and a quadratic energy, with Λ the curvature of U, its stationary covariance is
    ``Λ⁻¹ (I - (η/2) Λ)⁻¹``; likewise the refinement with its own precision in the null space.

    Args:
        key: a typed PRNG key; chain r of image i draws from ``fold_in(fold_in(key, i), r)``.
        prior: see `Prior`.
        operator: A.
        measurements: y [B, ...].
        config: see `RestorationConfig`.
        batch_size: measurements at once, which bounds the memory (times the restarts); None: all. It changes no draw.
        progress: called with 0 when the first batch begins (it compiles), then with the size of each finished batch,
            with its number of measurements.

    Returns:
        See `Restored`.

    Raises:
        ValueError: no measurements, or of another shape than the operator gives; a prior without a generator and no
            refinement, which would leave A⁺y as it is.
    """
    config = RestorationConfig() if config is None else config
    if prior.generator is None and config.refinement_steps == 0:
        raise ConfigError("this prior has no generator, so refinement_steps=0 restores nothing: give 100 steps, say")
    prior = jax.tree.map(lambda part: as_partial(part) if callable(part) else part, prior, is_leaf=callable)
    _check_measurements(prior, operator, measurements)
    keys, num = mcmc.chain_keys(key, len(measurements)), len(measurements)
    size = num if batch_size is None else max(1, min(batch_size, num))
    parts = []
    progress(0)
    for first in range(0, num, size):
        rows = jnp.minimum(jnp.arange(first, first + size), num - 1)  # the last batch is filled up: one program
        part = _restore(keys[rows], prior, operator, measurements[rows], config)
        parts.append(jax.block_until_ready(part))  # dispatch returns at once: progress counts finished batches
        progress(min(size, num - first))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:num], *parts)


def _check_measurements(prior: Prior, operator: Operator, measurements: Array) -> None:
    if prior.generator is None:
        image = jax.eval_shape(operator.pseudo_inverse, jax.ShapeDtypeStruct(measurements.shape[1:], jnp.float32))
    else:
        image = jax.eval_shape(prior.generator, prior.latent)
    if len(measurements) == 0:
        raise ValueError("no measurements to restore: give at least one, [B, ...]")
    try:
        expected = jax.eval_shape(operator.apply, image).shape
    except (TypeError, ValueError):
        raise ValueError(f"the operator is not one of images of {image.shape}, which the prior makes") from None
    if measurements.shape[1:] != expected:
        raise ValueError(f"measurements of {measurements.shape[1:]}: this operator's are {expected}")


@functools.partial(jax.jit, static_argnames="config")
def _restore(keys: Array, prior: Prior, operator: Operator, measurements: Array, config: RestorationConfig) -> Restored:
    def one(key: Array, y: Array) -> Restored:
        keys = mcmc.chain_keys(key, config.restarts)
        samples, potential, latents = jax.vmap(lambda key: _chain(key, prior, operator, y, config))(keys)
        whole = jnp.isfinite(potential)
        if config.estimate == "mean":
            chosen = jnp.mean(samples, 0, where=whole[:, None, None, None])  # NaN where none is whole
        else:
            chosen = samples[jnp.argmin(jnp.where(whole, potential, jnp.inf))]
        consistency = jnp.mean(jnp.abs(operator.apply(chosen) - y))
        return Restored(_into_range(operator, chosen, y, config.noise_std), consistency, potential, samples, latents)

    return jax.vmap(one)(keys, measurements)


def _chain(
    key: Array, prior: Prior, operator: Operator, y: Array, config: RestorationConfig
) -> tuple[Array, Array, Array]:
    """One restart: x̂, U and z."""
    start_key, chain_key, refinement_key = jax.random.split(key, 3)
    if prior.generator is None:
        x, z = operator.pseudo_inverse(y), prior.latent
        x = _refine(refinement_key, prior, operator, y, x, config)
        return x, value(prior.energy, x), z
    potential = latent_potential(prior, operator, y, config)
    z = jax.random.normal(start_key, prior.latent.shape)
    z = _descend(potential, z, config)
    kernel = mcmc.langevin(potential, _step_size(potential, z, config.step_size), config.temperature)
    state, _ = mcmc.sample(chain_key, kernel, z, config.num_steps, trace=())
    x = _estimate(operator, prior.generator(state.position), y, config.noise_std)
    return _refine(refinement_key, prior, operator, y, x, config), state.energy, state.position


def _descend(potential: Energy, z: Array, config: RestorationConfig) -> Array:
    optimizer = optax.adam(config.descent_rate)

    def body(_: int, carry: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        z, state = carry
        updates, state = optimizer.update(jax.grad(potential)(z), state)
        return optax.apply_updates(z, updates), state

    return jax.lax.fori_loop(0, config.descent_steps, body, (z, optimizer.init(z)))[0]


def _step_size(energy: Energy, x: Array, chosen: float | None) -> Array | float:
    """As chosen, or 0.5 over the largest curvature at ``x`` in absolute value, by ten power iterations."""
    if chosen is not None:
        return chosen

    def body(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        direction, _norm = carry
        product = jax.grad(lambda x: jnp.vdot(jax.grad(energy)(x), direction))(x)
        norm = jnp.linalg.norm(product)
        return product / (norm + 1e-12), norm

    start = jax.random.normal(jax.random.key(0), x.shape)
    curvature = jax.lax.fori_loop(0, 10, body, (start / jnp.linalg.norm(start), jnp.zeros(())))[1]
    return 0.5 / (curvature + 1e-12)


def _estimate(operator: Operator, x: Array, y: Array, noise_std: float) -> Array:
    """Range-null consistency; where the measurement is noisy the linear estimate of `restore`."""
    if noise_std == 0:
        return operator.consistent(x, y)
    difference = y - operator.apply(x)
    return x + _correction(operator, difference, _error_variance(operator, difference, noise_std), noise_std)


def _error_variance(operator: Operator, difference: Array, noise_std: float) -> Array:
    """s²; tr A Aᵀ from four random signs, which is exact where A Aᵀ is diagonal."""
    signs = jax.random.rademacher(jax.random.key(0), (4, *difference.shape), difference.dtype)
    gain = jnp.sum(jnp.square(jax.vmap(operator.adjoint)(signs))) / signs.size
    return jax.nn.relu(jnp.mean(jnp.square(difference)) - noise_std**2) / gain


def _correction(operator: Operator, difference: Array, variance: Array, noise_std: float) -> Array:
    """``s² Aᵀ (s² A Aᵀ + σ_y² I)⁻¹ d``, by conjugate gradients."""

    def matrix(v: Array) -> Array:
        return variance * operator.apply(operator.adjoint(v)) + noise_std**2 * v

    solved, _ = jax.scipy.sparse.linalg.cg(matrix, difference, tol=1e-6, maxiter=100)
    return variance * operator.adjoint(solved)


def _into_range(operator: Operator, x: Array, y: Array, noise_std: float) -> Array:
    """Clipped to [-1, 1]; without noise by 20 projections in turn on that box and on the images of measurement y.

    Both sets are convex and hold the true image, so that no projection takes x farther from it.
    """
    if noise_std == 0:
        x = jax.lax.fori_loop(0, 20, lambda _, x: operator.consistent(jnp.clip(x, -1.0, 1.0), y), x)
    return jnp.clip(x, -1.0, 1.0)


def _refine(key: Array, prior: Prior, operator: Operator, y: Array, x: Array, config: RestorationConfig) -> Array:
    """Pixel Langevin: in the null space of A, or under the likelihood where the measurement is noisy."""
    if config.refinement_steps == 0:
        return x
    energy = prior.energy if prior.refinement_energy is None else prior.refinement_energy
    if config.noise_std > 0:
        energy = bind(_with_likelihood, energy, operator, y, config.noise_std)
    step_size = _step_size(energy, x, config.refinement_step_size)
    if config.refinement_step_size is None:
        slope = jnp.sum(jnp.square(jax.grad(energy)(x)))
        step_size = jnp.minimum(step_size, 0.5 * x.size / jnp.maximum(slope, 1e-12))
    kernel = mcmc.langevin(energy, step_size, config.temperature)
    if config.noise_std > 0:
        return mcmc.sample(key, kernel, x, config.refinement_steps, trace=())[0].position

    # without noise each step is projected: a chain on the null space alone
    def body(step: int, x: Array) -> Array:
        state, _ = kernel.step(jax.random.fold_in(key, step), kernel.init(x))
        return operator.consistent(state.position, y)

    return jax.lax.fori_loop(0, config.refinement_steps, body, x)


def _with_likelihood(energy: Energy, operator: Operator, y: Array, noise_std: Array, x: Array) -> Array:
    return value(energy, x) + squared_distance(operator.apply(x), y) / (2.0 * noise_std**2)
