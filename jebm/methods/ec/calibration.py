"""Energy calibration of a generator: the chain, its constraint and the dual ascent (arXiv 2311.04071).

Given a generator ``x_g = G(noise)`` and an energy ``E(x) = f(x)/τ``, a short Langevin chain that starts at ``x_g`` and
is conditioned on it gives the calibrated sample ``x_c``. The generator is then trained under the constraint

    C = E ‖x_c - x_g‖² ≤ ε                         (x_c constant with respect to the generator)

by a primal-dual scheme: the generator descends its own loss plus ``λ C``, and λ ascends ``C - ε``. The generator may
be of any kind, and its samples of any shape. `posterior` puts the same constraint on an encoder's latents.

Units. The authors' step is ``x - (s/2) ∇(E + w d) + sqrt(s) ξ``. In this library's convention the same chain runs on
``f + τ w d`` with step size ``η = s/(2τ)`` at temperature τ (`jebm.mcmc.from_half_step`).

Formulas and constants are those of the authors' released code; our own are marked [ours].
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jebm import mcmc, sharding
from jebm.energy import Annealed, Energy, anneal, at_step, value
from jebm.errors import check
from jebm.methods.base import Chain, Metrics, Score

__all__ = [
    "GAP", "SCORES", "CalibrationConfig", "Constraint", "calibrate", "calibration_kernel", "calibration_loss",
    "calibration_scores", "chain", "dual_start", "dual_step", "hinge", "hinged_distance", "noise_floor", "tolerance",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A bound ``C ≤ ε`` on the squared distance that a short Langevin chain moves its start, with a multiplier λ.

    Attributes:
        num_steps: K, steps of the chain.
        step_size: s, in the authors' unit: the noise of a step has variance s.
        tolerance: ε; None: 1.085 K s D [ours]. It must be above the floor K s D that the chain's noise alone reaches,
            D being the number of values of one example.
        dual_initial: λ at the start.
        dual_rate: step size of the dual ascent.
        dual_max: λ is kept in [0, dual_max].
    """

    num_steps: int = 15
    step_size: float = 1e-6
    tolerance: float | None = None
    dual_initial: float = 30.0
    dual_rate: float = 1e-2
    dual_max: float = 100.0

    def __post_init__(self) -> None:
        check(
            self, num_steps=">=1", step_size=">0", tolerance=">=0", dual_initial=">=0", dual_rate=">=0", dual_max=">=0"
        )


def noise_floor(constraint: Constraint, dimension: int) -> float:
    """``K s D``: the expected squared distance of a chain without a gradient, ``dimension`` being D.

    Examples:
        >>> from jebm.methods.ec.calibration import CalibrationConfig, noise_floor
        >>> round(noise_floor(CalibrationConfig(), 32 * 32 * 3), 4)
        0.0461
    """
    return constraint.num_steps * constraint.step_size * dimension


def tolerance(constraint: Constraint, dimension: int) -> float:
    """ε of the constraint: as configured, or 1.085 of the noise floor (0.05 at the released code's constants).

    Examples:
        >>> from jebm.methods.ec.calibration import CalibrationConfig, tolerance
        >>> round(tolerance(CalibrationConfig(), 32 * 32 * 3), 3)
        0.05
    """
    return 1.085 * noise_floor(constraint, dimension) if constraint.tolerance is None else constraint.tolerance


def calibration_loss(calibrated: Array, generated: Array) -> Array:
    """``C = mean_b ‖x_c - x_g‖²``, its gradient flowing into ``generated`` alone.

    To first order in the drift it moves the generator as ``K (s/τ) ∇f(G(noise))`` would.
    """
    difference = jax.lax.stop_gradient(calibrated) - generated
    return jnp.sum(jnp.square(difference)) / generated.shape[0]


def dual_start(constraint: Constraint) -> Array:
    """λ at the start, a float32 scalar."""
    return jnp.asarray(constraint.dual_initial, jnp.float32)


def dual_step(dual: Array, loss: Array, constraint: Constraint, dimension: int) -> Array:
    """``λ ← clip(λ + rate (C - ε), 0, dual_max)``, ascent on the multiplier of ``C ≤ ε``.

    Examples:
        >>> from jebm.methods.ec.calibration import CalibrationConfig, dual_step
        >>> round(float(dual_step(jnp.float32(30.0), 5.0, CalibrationConfig(tolerance=0.0), 3072)), 3)
        30.05
    """
    moved = dual + constraint.dual_rate * (loss - tolerance(constraint, dimension))
    return jnp.clip(moved, 0.0, constraint.dual_max)


# --- the chain of the calibrated samples ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CalibrationConfig(Constraint):
    """The calibration chain and its constraint; defaults are the released code's, at 32×32×3.

    Attributes:
        num_steps: K, steps of the chain. `Constraint` has the other settings of the chain and of the multiplier λ.
        temperature: τ, of ``E = f/τ``.
        cond_scale: coefficient of the conditional term ``w_k max(d, h)`` added to E. 1 is the released code, where
            the term moves a pixel by about 1e-6 of its distance: practically not at all. [ours] ``c/τ`` with c in
            [0.1, 1] makes it act.
        hinge: h, below which the conditional term does not pull; None: 1.52 K s D [ours].
    """

    temperature: float = 1e-5
    cond_scale: float = 1.0
    hinge: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, temperature=">0", cond_scale=">=0", hinge=">=0")


def chain(config: CalibrationConfig) -> Chain:
    """The chain on f, without the conditional term: step size ``η = s/(2τ)`` at temperature τ."""
    return Chain(config.num_steps, mcmc.from_half_step(config.step_size, config.temperature))


SCORES = {
    "calibration_distance": Score("Squared distance that a chain moves a generated image.", "lower"),
    "calibration_gap": Score("That distance beyond the noise of the chain: 0 where calibration has nothing to do."),
}
"""What `calibration_scores` returns."""

GAP = Score("Mean energy f of generated images minus that of data: 0 where the energy tells no difference.")
"""``energy_gap``, of the families that measure it."""


def hinge(config: CalibrationConfig, dimension: int) -> float:
    """H of the conditional term: as configured, or 1.52 of the noise floor (0.07 at the released constants).

    Examples:
        >>> from jebm.methods.ec.calibration import CalibrationConfig, hinge
        >>> round(hinge(CalibrationConfig(), 32 * 32 * 3), 3)
        0.07
    """
    return 1.52 * noise_floor(config, dimension) if config.hinge is None else config.hinge


def hinged_distance(x: Array, reference: Array, threshold: Array | float) -> Array:
    """``max(d, h)`` with ``d = Σ (clip(x) - clip(reference))²``, values clipped to [-1, 1].

    The gradient is ``2 (clip(x) - clip(reference))`` where ``|x| ≤ 1`` and ``d > h``, else 0.
    """
    distance = jnp.sum(jnp.square(_clip(x) - _clip(reference)))
    return jax.nn.relu(distance - threshold) + threshold


def _clip(x: Array) -> Array:
    return jnp.where(jnp.abs(x) <= 1, x, jnp.sign(x))  # unlike jnp.clip, slope 1 at exactly ±1


def calibration_kernel(
    head: Energy | Annealed, reference: Array, config: CalibrationConfig, noise: Array | None = None
) -> mcmc.LangevinKernel:
    """The kernel of one calibration chain, on ``f + τ cond_scale w_k max(d(x, reference), h)``, ``w_k = (K-1-k)/K``.

    Args:
        head: f, one example in, a scalar out; annealed if its parameters change along the chain.
        reference: x_g, the chain's start and its condition.
        config: see `CalibrationConfig`.
        noise: standard normals [K, *reference.shape] drawn in advance, or None.
    """
    tau = config.temperature
    weight = tau * config.cond_scale / config.num_steps
    threshold = hinge(config, reference.size)
    energy = anneal(_conditional_energy, _as_pytree(head), reference, weight, threshold, config.num_steps - 1)
    step_size = mcmc.from_half_step(config.step_size, tau)
    return mcmc.langevin(energy, step_size, tau, noise=noise)


def _as_pytree(head: Energy | Annealed) -> Energy | Annealed:
    return head if isinstance(head, Annealed | Partial) else Partial(head)


def _conditional_energy(
    head: Energy | Annealed, reference: Array, weight: Array, threshold: Array, last: Array, step: Array, x: Array
) -> Array:
    return value(at_step(head, step), x) + weight * (last - step) * hinged_distance(x, reference, threshold)


def calibrate(
    key: Array,
    head: Energy | Annealed,
    generated: Array,
    config: CalibrationConfig,
    noise: Array | None = None,
) -> Array:
    """Calibrated samples x_c, one short chain per generated sample, each started at its own condition.

    No gradient flows into ``generated``, into the energy or through the chain. The result is not clamped.

    Args:
        key: one key, split into one per chain; or one per chain [B].
        head: f, one example in, a scalar out.
        generated: x_g [B, ...].
        config: see `CalibrationConfig`.
        noise: standard normals [B, K, ...] drawn in advance (for common random numbers), or None.

    Returns:
        x_c, of the shape and dtype of ``generated``.
    """
    generated = sharding.constrain_batch(jax.lax.stop_gradient(generated))
    head = jax.tree.map(jax.lax.stop_gradient, _as_pytree(head))

    def chain(key: Array, start: Array, noise: Array | None) -> Array:
        kernel = calibration_kernel(head, start, config, noise)
        state, _ = mcmc.sample(key, kernel, start, config.num_steps, trace=())
        return state.position

    keys = key if key.ndim else mcmc.chain_keys(key, generated.shape[0])
    return jax.lax.stop_gradient(jax.vmap(chain)(keys, generated, noise))


def calibration_scores(key: Array, head: Energy, generated: Array, config: CalibrationConfig) -> Metrics:
    """Held-out scores of generated samples [n, ...] under the energy head f of one example.

    ``calibration_distance``: ``E ‖x_c - x_g‖²``; ``calibration_gap``: the distance minus ``K s D``, that is how far
    calibration still moves the samples beyond the noise of its chain.
    """
    distance = calibration_loss(calibrate(key, head, generated, config), generated)
    return {
        "calibration_distance": distance,
        "calibration_gap": distance - noise_floor(config, generated[0].size),
    }
