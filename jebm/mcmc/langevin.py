"""Unadjusted Langevin dynamics on any pytree.

The one convention of this library: the target is ``p(x) ∝ exp(-E(x)/T)`` and a step is

    x' = x - η ∇E(x) + sqrt(2 η T) ξ,      ξ ~ N(0, I)

with ``step_size`` η and ``temperature`` T. The step is not Metropolis-adjusted: on a Gaussian target of variance
σ² its stationary variance is ``T σ² / (1 - η/(2σ²))``. ``jebm.mala`` is the adjusted kernel.

Papers write the same step in other units; ``from_noise_scale`` and ``from_half_step`` convert them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.tree_util import Partial

from jebm.energy import Annealed, Energy, PyTree, at_step, value

ScalarOrSchedule = float | Array | Callable[[Array], Array]

__all__ = [
    "LangevinInfo", "LangevinKernel", "LangevinState", "from_half_step", "from_noise_scale", "langevin",
    "table_schedule",
]  # fmt: skip


class LangevinState(NamedTuple):
    """What the next step needs.

    Attributes:
        position: the example ``x``, a pytree of floating arrays.
        energy: ``E(x)``, a scalar of at least float32.
        gradient: ``∇E(x)``, cached: of all of ``x``, or of the first block when there are blocks.
        step: int32, the number of steps made; schedules and annealed energies read it.
    """

    position: PyTree
    energy: Array
    gradient: PyTree
    step: Array


class LangevinInfo(NamedTuple):
    """What one may look at after a step.

    Attributes:
        energy: ``E(x')`` at the new position.
        gradient_norm: Euclidean norm of the gradient that drove the step.
        displacement: Euclidean norm of ``x' - x``, noise included.
    """

    energy: Array
    gradient_norm: Array
    displacement: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LangevinKernel:
    """The pair ``init(position) -> state``, `step(key, state) -> (state, info)``, itself a pytree; see `langevin`."""

    energy: Energy | Annealed
    step_size: PyTree
    temperature: ScalarOrSchedule
    max_displacement: PyTree
    box: tuple[PyTree, PyTree] | None
    blocks: tuple[str, ...] | None = dataclasses.field(metadata={"static": True})

    def init(self, position: PyTree) -> LangevinState:
        """The state at ``position``: one evaluation of energy and gradient."""
        position = jax.tree.map(_floating, position)
        step = jnp.zeros((), jnp.int32)
        energy, gradient = self._evaluate(position, step, self.blocks and self.blocks[0])
        return LangevinState(position, energy, gradient, step)

    def step(self, key: Array, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        """One step; ``key`` is used for this step alone."""
        return self.advance(self.draw(key, state.position), state)

    def draw(self, key: Array, position: PyTree) -> PyTree:
        """The standard normal ξ of one step, in the structure, shapes and dtypes of ``position``."""
        return optax.tree.random_like(key, position, jax.random.normal)

    def advance(self, noise: PyTree, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        """One step with the standard normal ``noise`` given: for recorded or common random numbers."""
        if self.blocks is None:
            position = self._move(state.position, state.gradient, noise, state.step, None)
            squared_norm = optax.tree.norm(state.gradient, squared=True)
        else:
            position, gradient = dict(state.position), state.gradient
            squared_norm = jnp.zeros(())
            for i, block in enumerate(self.blocks):
                if i > 0:  # the first block's gradient is cached, the others see the blocks already moved
                    _, gradient = self._evaluate(position, state.step, block)
                position[block] = self._move(position[block], gradient, noise[block], state.step, block)
                squared_norm += optax.tree.norm(gradient, squared=True)
        step = state.step + 1
        energy, gradient = self._evaluate(position, step, self.blocks and self.blocks[0])
        displacement = optax.tree.norm(optax.tree.sub(position, state.position))
        info = LangevinInfo(energy, jnp.sqrt(squared_norm), displacement)
        return LangevinState(position, energy, gradient, step), info

    def _evaluate(self, position: PyTree, step: Array, block: str | None) -> tuple[Array, PyTree]:
        energy = at_step(self.energy, step)
        if block is None:
            return jax.value_and_grad(lambda x: value(energy, x))(position)
        return jax.value_and_grad(lambda b: value(energy, {**position, block: b}))(position[block])

    def _move(self, x: PyTree, gradient: PyTree, noise: PyTree, step: Array, block: str | None) -> PyTree:
        step_size = _per_leaf(_entry(self.step_size, block), x, step)
        temperature = _at(self.temperature, step)
        drift = jax.tree.map(lambda eta, g: eta * g, step_size, gradient)
        if self.max_displacement is not None:
            bounds = _per_leaf(_entry(self.max_displacement, block), x, step)
            drift = jax.tree.map(_clip_norm, drift, bounds)
        moved = jax.tree.map(
            lambda a, d, eta, xi: (a - d + jnp.sqrt(2.0 * eta * temperature) * xi).astype(a.dtype),
            x, drift, step_size, noise,
        )  # fmt: skip
        if self.box is not None:
            low, high = (_per_leaf(_entry(side, block), x, step) for side in self.box)
            moved = jax.tree.map(_reflect, moved, low, high)
        return moved


def langevin(
    energy: Energy | Annealed,
    step_size: PyTree = 0.01,
    temperature: ScalarOrSchedule = 1.0,
    *,
    blocks: tuple[str, ...] | None = None,
    max_displacement: PyTree = None,
    box: tuple[PyTree, PyTree] | None = None,
) -> LangevinKernel:
    """The Langevin kernel ``x' = x - η ∇E(x) + sqrt(2 η T) ξ``.

    Args:
        energy: function of one example (see `jebm.energy`), or an annealed energy.
        step_size: η ≥ 0: a scalar, or a pytree with one entry per leaf of the position; an entry may be a schedule,
            a function of the int32 step number. A leaf with step size 0 stays where it is.
        temperature: T ≥ 0, a scalar or a schedule. 0 is gradient descent.
        blocks: top-level keys of a dict position, moved in this order within a step, each with the gradient at the
            blocks already moved (``("z", "y")``: z first, then y with the new z). Costs one gradient per block.
        max_displacement: bound M > 0 on the Euclidean norm of a leaf's drift ``η ∇E`` (longer drifts are rescaled to
            M; noise is not touched), scalar or one entry per leaf, ``jnp.inf`` for none. *Changes the law sampled.*
        box: ``(low, high)``, scalars or one entry per leaf: positions are reflected into it. *Changes the law
            sampled*: as η → 0 it tends to the target restricted to the box.

    Returns:
        A kernel with ``init(position) -> state`` and ``step(key, state) -> (state, info)``; a pytree, so that new
        parameters, step sizes and temperatures retrace nothing.

    Raises:
        ValueError: a negative step size, temperature or bound, or a box whose low side is not below the high side.

    References:
        Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
        Bernoulli 2 (1996).
    """
    _require(step_size, lambda a: a >= 0, "step_size", "must be at least 0")
    _require(temperature, lambda a: a >= 0, "temperature", "must be at least 0")
    _require(max_displacement, lambda a: a > 0, "max_displacement", "must be above 0 (jax.numpy.inf for no bound)")
    if box is not None:
        for low, high in zip(jax.tree.leaves(box[0]), jax.tree.leaves(box[1]), strict=True):
            if _is_concrete(low) and _is_concrete(high) and not np.all(np.asarray(low) < np.asarray(high)):
                raise ValueError(f"box: low must be below high, got {low} and {high}")
    return LangevinKernel(
        energy=energy if isinstance(energy, Annealed | Partial) else Partial(energy),
        step_size=_schedules_to_partials(step_size),
        temperature=_schedules_to_partials(temperature),
        max_displacement=_schedules_to_partials(max_displacement),
        box=box,
        blocks=None if blocks is None else tuple(blocks),
    )


def from_noise_scale(noise_scale: float, temperature: float) -> float:
    """Step size η of Hat EBM's step ``x' = x - (ε²/2) ∇H/T + ε ξ``: ``η = ε²/(2T)`` on H at temperature T.

    Then ``η ∇H`` is their drift and ``sqrt(2ηT) = ε`` their noise (arXiv 2210.16486, released code).
    """
    return noise_scale**2 / (2.0 * temperature)


def from_half_step(step: float, temperature: float = 1.0) -> float:
    """Step size η of ``x' = x - (s/2) ∇f/τ + sqrt(s) ξ`` (Welling and Teh 2011): ``η = s/(2τ)`` on f at ``T = τ``.

    EC-VAE (arXiv 2311.04071, released code) uses s = 1e-6 and τ = 1e-5, hence η = 0.05 on the network's output f.
    """
    return step / (2.0 * temperature)


def table_schedule(values: Array) -> Partial:
    """The schedule that reads ``values[step]``; past the end it stays at the last value."""
    return Partial(_lookup, jnp.asarray(values))


def _lookup(values: Array, step: Array) -> Array:
    return values[jnp.minimum(step, values.shape[0] - 1)]


def _floating(a: Any) -> Array:
    a = jnp.asarray(a)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"a position must be made of floating arrays, got dtype {a.dtype} of shape {a.shape}")
    return a


def _schedules_to_partials(tree: PyTree) -> PyTree:
    wrap = lambda a: Partial(a) if callable(a) and not isinstance(a, Partial) else a  # noqa: E731
    return jax.tree.map(wrap, tree, is_leaf=callable)


def _at(entry: ScalarOrSchedule, step: Array) -> Array:
    return entry(step) if callable(entry) else entry  # type: ignore[return-value]


def _entry(tree: PyTree, block: str | None) -> PyTree:
    return tree[block] if block is not None and isinstance(tree, dict) else tree


def _per_leaf(tree: PyTree, x: PyTree, step: Array) -> PyTree:
    values = jax.tree.map(lambda entry: _at(entry, step), tree, is_leaf=callable)
    try:
        return jax.tree.broadcast(values, x)
    except ValueError:
        raise ValueError(
            "step_size, max_displacement and box take a scalar or one entry per leaf of the position; "
            f"got {jax.tree.structure(values)} for a position {jax.tree.structure(x)}"
        ) from None


def _clip_norm(drift: Array, bound: Array) -> Array:
    norm = optax.safe_norm(drift, 1e-30)
    return drift * jnp.minimum(1.0, bound / norm)


def _reflect(x: Array, low: Array, high: Array) -> Array:
    width = high - low
    offset = jnp.mod(x - low, 2.0 * width)
    return low + width - jnp.abs(width - offset)


def _is_concrete(a: Any) -> bool:
    return isinstance(a, int | float | np.ndarray | np.generic) or (
        isinstance(a, Array) and not isinstance(a, jax.core.Tracer)
    )


def _require(tree: PyTree, rule: Callable[[np.ndarray], Any], name: str, allowed: str) -> None:
    for leaf in jax.tree.leaves(tree, is_leaf=callable):
        if _is_concrete(leaf) and not np.all(rule(np.asarray(leaf))):
            raise ValueError(f"{name} {allowed}, got {leaf}")
