"""Langevin dynamics with a dense preconditioner."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from jebm.energy import Annealed, Energy, PyTree, as_partial, at_step, is_concrete, require, value
from jebm.mcmc.langevin import (
    LangevinInfo,
    LangevinState,
    ScalarOrSchedule,
    entry_at,
    floating,
    schedules_to_partials,
)  # fmt: skip

__all__ = ["PreconditionedKernel", "preconditioned_langevin"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreconditionedKernel:
    """``init(position) -> state`` and ``step(key, state) -> (state, info)``; see `preconditioned_langevin`."""

    energy: Energy | Annealed
    factor: Array
    step_size: ScalarOrSchedule
    temperature: ScalarOrSchedule

    def init(self, position: PyTree) -> LangevinState:
        """The state at ``position``.

        Raises:
            ValueError: a position that has not as many values as the preconditioner has rows.
        """
        position = jax.tree.map(floating, position)
        if optax.tree.size(position) != len(self.factor):
            raise ValueError(
                f"a preconditioner of {len(self.factor)} rows needs as many values in a position, "
                f"got {optax.tree.size(position)}"
            )
        step = jnp.zeros((), jnp.int32)
        return LangevinState(position, *self._evaluate(position, step), step)

    def step(self, key: Array, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        """One step."""
        step_size, temperature = entry_at(self.step_size, state.step), entry_at(self.temperature, state.step)
        x, unravel = ravel_pytree(state.position)
        gradient = ravel_pytree(state.gradient)[0]
        noise = jax.random.normal(key, x.shape, x.dtype)
        # an accelerator would round the factors of a product to fewer bits
        drift = jnp.matmul(self.factor.T, gradient, precision="highest")
        move = jnp.sqrt(2.0 * step_size * temperature) * noise - step_size * drift
        change = jnp.matmul(self.factor, move, precision="highest")
        position, step = unravel((x + change).astype(x.dtype)), state.step + 1
        energy, gradient = self._evaluate(position, step)
        info = LangevinInfo(energy, optax.tree.norm(state.gradient), optax.tree.norm(change))
        return LangevinState(position, energy, gradient, step), info

    def _evaluate(self, position: PyTree, step: Array) -> tuple[Array, PyTree]:
        energy = at_step(self.energy, step)
        return jax.value_and_grad(lambda x: value(energy, x))(position)


def preconditioned_langevin(
    energy: Energy | Annealed,
    step_size: ScalarOrSchedule,
    preconditioner: Array,
    temperature: ScalarOrSchedule = 1.0,
) -> PreconditionedKernel:
    """The Langevin step ``x' = x - η P ∇E(x) + sqrt(2 η T) P^½ ξ`` with a fixed positive definite matrix P.

    The target ``exp(-E/T)`` is that of `langevin`; with P near the target's covariance all directions mix alike. It is
    `langevin` in the coordinates ``L⁻¹x``, ``P = L Lᵀ``: on a Gaussian of covariance Σ the stationary covariance is
    ``T (Σ⁻¹ - (η/2) Σ⁻¹ P Σ⁻¹)⁻¹``, which for ``P = Σ`` is ``T Σ / (1 - η/2)``. A diagonal P needs no matrix: it is the
    ``step_size`` of `langevin`, one entry per leaf.

    Args:
        energy: function of one example, or an annealed energy.
        step_size: η ≥ 0, a scalar or a schedule.
        preconditioner: P, [d, d] over the flattened position (``jax.flatten_util.ravel_pytree``).
        temperature: T ≥ 0, a scalar or a schedule.

    Raises:
        ValueError: a matrix that is not symmetric and positive definite, a negative step size or temperature.

    References:
        Girolami and Calderhead, "Riemann manifold Langevin and Hamiltonian Monte Carlo methods", JRSS B 73 (2011),
        section 5, with a constant metric.
    """
    require(step_size, lambda a: a >= 0, "step_size", "must be at least 0")
    require(temperature, lambda a: a >= 0, "temperature", "must be at least 0")
    matrix = jnp.asarray(preconditioner, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"preconditioner must be a square matrix over the flattened position, got {matrix.shape}")
    factor = jnp.linalg.cholesky(matrix)
    if is_concrete(factor):
        known = np.asarray(matrix)
        if not np.isfinite(np.asarray(factor)).all() or not np.allclose(known, known.T, rtol=1e-5):
            raise ValueError("preconditioner must be a symmetric and positive definite matrix")
    energy = energy if isinstance(energy, Annealed) else as_partial(energy)
    return PreconditionedKernel(energy, factor, *map(schedules_to_partials, (step_size, temperature)))
