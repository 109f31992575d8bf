"""Underdamped Langevin dynamics: positions with momenta."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import Annealed, Energy, PyTree, as_partial, at_step, require, value
from jebm.mcmc.langevin import ScalarOrSchedule, entry_at, floating, per_leaf, schedules_to_partials

__all__ = ["UnderdampedInfo", "UnderdampedKernel", "UnderdampedState", "underdamped_langevin"]


class UnderdampedState(NamedTuple):
    """State of a chain.

    Attributes:
        position: the example x.
        momentum: p, as x; zeros before the first step, which draws it from N(0, T).
        energy: ``E(x)``.
        gradient: ``∇E(x)``, cached.
        step: int32, the number of steps made.
    """

    position: PyTree
    momentum: PyTree
    energy: Array
    gradient: PyTree
    step: Array


class UnderdampedInfo(NamedTuple):
    """Diagnostics of one step.

    Attributes:
        energy: ``E(x')`` at the new position.
        kinetic_energy: ``½‖p'‖²``, on average ``T d / 2``.
        gradient_norm: Euclidean norm of the gradient at the old position.
    """

    energy: Array
    kinetic_energy: Array
    gradient_norm: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnderdampedKernel:
    """``init(position) -> state`` and ``step(key, state) -> (state, info)``; see `underdamped_langevin`."""

    energy: Energy | Annealed
    step_size: PyTree
    friction: ScalarOrSchedule
    temperature: ScalarOrSchedule

    def init(self, position: PyTree) -> UnderdampedState:
        """The state at ``position``: one evaluation of energy and gradient."""
        position = jax.tree.map(floating, position)
        step = jnp.zeros((), jnp.int32)
        return UnderdampedState(position, optax.tree.zeros_like(position), *self._evaluate(position, step), step)

    def step(self, key: Array, state: UnderdampedState) -> tuple[UnderdampedState, UnderdampedInfo]:
        """One step: half a kick, half a drift, friction and noise, half a drift, half a kick."""
        momentum_key, noise_key = jax.random.split(key)
        x, step = state.position, state.step
        h = per_leaf(self.step_size, x, step)
        temperature, friction = entry_at(self.temperature, step), entry_at(self.friction, step)
        fresh = optax.tree.random_like(momentum_key, x, jax.random.normal)
        noise = optax.tree.random_like(noise_key, x, jax.random.normal)
        p = jax.tree.map(
            lambda old, xi: jnp.where(step == 0, (jnp.sqrt(temperature) * xi).astype(xi.dtype), old),
            state.momentum, fresh,
        )  # fmt: skip
        p = jax.tree.map(lambda p, g, h: (p - 0.5 * h * g).astype(p.dtype), p, state.gradient, h)
        x = jax.tree.map(lambda x, p, h: (x + 0.5 * h * p).astype(x.dtype), x, p, h)

        def rub(p: Array, xi: Array, h: Array) -> Array:
            kept = jnp.exp(-friction * h)
            return (kept * p + jnp.sqrt(temperature * (1.0 - kept**2)) * xi).astype(p.dtype)

        p = jax.tree.map(rub, p, noise, h)
        x = jax.tree.map(lambda x, p, h: (x + 0.5 * h * p).astype(x.dtype), x, p, h)
        energy, gradient = self._evaluate(x, step + 1)
        p = jax.tree.map(lambda p, g, h: (p - 0.5 * h * g).astype(p.dtype), p, gradient, h)
        info = UnderdampedInfo(energy, 0.5 * optax.tree.norm(p, squared=True), optax.tree.norm(state.gradient))
        return UnderdampedState(x, p, energy, gradient, step + 1), info

    def _evaluate(self, position: PyTree, step: Array) -> tuple[Array, PyTree]:
        energy = at_step(self.energy, step)
        return jax.value_and_grad(lambda x: value(energy, x))(position)


def underdamped_langevin(
    energy: Energy | Annealed,
    step_size: PyTree,
    friction: ScalarOrSchedule = 1.0,
    temperature: ScalarOrSchedule = 1.0,
) -> UnderdampedKernel:
    """Underdamped Langevin dynamics ``dx = p dt, dp = -∇E dt - γ p dt + sqrt(2 γ T) dW`` by the BAOAB splitting.

    Its law in (x, p) tends to ``exp(-(E(x) + ½‖p‖²)/T)`` as the step goes to 0. On a Gaussian target the stationary
    law of the *positions* is exact at every stable step ``h < 2/ω``, ω² the largest precision. As ``γ → ∞`` a step is
    one of `langevin` with ``η = h²/2`` and noise averaged over two steps. A step costs one gradient.

    Args:
        energy: function of one example, or an annealed energy.
        step_size: h > 0, a scalar, or one entry per leaf of the position; an entry may be a schedule.
        friction: γ > 0, a scalar or a schedule: small, and the momentum lasts; ``2ω`` damps a well critically.
        temperature: T ≥ 0, a scalar or a schedule.

    Raises:
        ValueError: a step size or friction that is not above 0, or a negative temperature.

    References:
        Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for molecular sampling", Applied
        Mathematics Research eXpress (2013), equation 10.
    """
    require(step_size, lambda a: a > 0, "step_size", "must be above 0")
    require(friction, lambda a: a > 0, "friction", "must be above 0")
    require(temperature, lambda a: a >= 0, "temperature", "must be at least 0")
    energy = energy if isinstance(energy, Annealed) else as_partial(energy)
    return UnderdampedKernel(energy, *map(schedules_to_partials, (step_size, friction, temperature)))
