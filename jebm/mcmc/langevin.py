"""Unadjusted Langevin dynamics on any pytree.

The one convention of this library: the target is ``p(x) ∝ exp(-E(x)/T)`` and a step is

    x' = x - η ∇E(x) + sqrt(2 η T) ξ,      ξ ~ N(0, I)

with ``step_size`` η and ``temperature`` T. The step is not Metropolis-adjusted: on a Gaussian target of
variance σ² its stationary variance is ``T σ² / (1 - η/(2σ²))``. ``jebm.mala`` is the adjusted kernel.

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

from jebm.energy import Annealed, Energy, PyTree, as_partial, at_step, is_concrete, require, value

ScalarOrSchedule = float | Array | Callable[[Array], Array]

__all__ = [
    "LangevinInfo", "LangevinKernel", "LangevinState", "from_half_step", "from_noise_scale", "langevin",
    "table_schedule",
]  # fmt: skip


class LangevinState(NamedTuple):
    """State of a chain: what the next step needs.

    Attributes:
        position: the example ``x``, a pytree of float32 (or float64) arrays.
        energy: ``E(x)``, a scalar of at least float32.
        gradient: ``∇E(x)``, cached.
        step: int32, the number of steps made; schedules and annealed energies read it.
    """

    position: PyTree
    energy: Array
    gradient: PyTree
    step: Array


class LangevinInfo(NamedTuple):
    """Diagnostics of one step.

    Attributes:
        energy: ``E(x')`` at the new position (of an annealed energy, the one that the next step descends).
        gradient_norm: Euclidean norm of the gradient that drove the step.
        displacement: Euclidean norm of ``x' - x``, noise included.
    """

    energy: Array
    gradient_norm: Array
    displacement: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LangevinKernel:
    """``init(position) -> state`` and ``step(key, state) -> (state, info)``, a pytree; see `langevin`."""

    energy: Energy | Annealed
    step_size: PyTree
    temperature: ScalarOrSchedule
    max_drift: PyTree
    box: tuple[PyTree, PyTree] | None
    noise: PyTree

    def init(self, position: PyTree) -> LangevinState:
        """The state at ``position``: one evaluation of energy and gradient.

        Raises:
            ValueError: a position of integers or of half precision, or unlike the per-leaf parameters.
        """
        position = jax.tree.map(floating, position)
        if self.noise is not None and jax.tree.map(lambda a: a.shape[1:], self.noise) != _shapes(position):
            raise ValueError(
                "noise must be as the position with a leading step axis; "
                f"got shapes {_shapes(self.noise)} for a position of shapes {_shapes(position)}"
            )
        step = jnp.zeros((), jnp.int32)
        energy, gradient = self._evaluate(position, step)
        return LangevinState(position, energy, gradient, step)

    def step(self, key: Array, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        """One step; ``key`` is used for this step alone."""
        if self.noise is not None:
            read = lambda recorded: recorded.at[state.step].get(mode="fill", fill_value=jnp.nan)  # noqa: E731
            return self.advance(jax.tree.map(read, self.noise), state)
        return self.advance(self.draw(key, state.position), state)

    def draw(self, key: Array, template: PyTree) -> PyTree:
        """Standard normals ξ in the structure, shapes and dtypes of ``template``, as a rule a position."""
        leaves = jax.tree.leaves(template)
        structure: Any = jax.tree.structure(template)
        keys = jax.random.split(key, len(leaves)) if len(leaves) > 1 else [key]  # a split is one hash more a step
        return structure.unflatten(
            [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        )

    def advance(self, noise: PyTree, state: LangevinState) -> tuple[LangevinState, LangevinInfo]:
        """One step with the standard normal ``noise`` given: for recorded or common random numbers."""
        position = self._move(state.position, state.gradient, noise, state.step)
        step = state.step + 1
        energy, gradient = self._evaluate(position, step)
        displacement = optax.tree.norm(optax.tree.sub(position, state.position))
        info = LangevinInfo(energy, optax.tree.norm(state.gradient), displacement)
        return LangevinState(position, energy, gradient, step), info

    def _evaluate(self, position: PyTree, step: Array) -> tuple[Array, PyTree]:
        energy = at_step(self.energy, step)
        return jax.value_and_grad(lambda x: value(energy, x))(position)

    def _move(self, x: PyTree, gradient: PyTree, noise: PyTree, step: Array) -> PyTree:
        step_size = jax.tree.map(_wide, per_leaf(self.step_size, x, step))
        temperature = _wide(entry_at(self.temperature, step))
        drift = jax.tree.map(lambda eta, g: eta * g, step_size, gradient)
        if self.max_drift is not None:
            bounds = per_leaf(self.max_drift, x, step)
            drift = jax.tree.map(_clip_norm, drift, bounds)
        moved = jax.tree.map(
            lambda a, d, eta, xi: (a - d + jnp.sqrt(2.0 * eta * temperature) * xi).astype(a.dtype),
            x, drift, step_size, noise,
        )  # fmt: skip
        if self.box is not None:
            low, high = (per_leaf(side, x, step) for side in self.box)
            moved = jax.tree.map(reflect, moved, low, high)
        return moved


def langevin(
    energy: Energy | Annealed,
    step_size: PyTree = 0.01,
    temperature: ScalarOrSchedule = 1.0,
    *,
    max_drift: PyTree = None,
    box: tuple[PyTree, PyTree] | None = None,
    noise: PyTree = None,
) -> LangevinKernel:
    """The Langevin kernel ``x' = x - η ∇E(x) + sqrt(2 η T) ξ``.

    Args:
        energy: function of one example (see `jebm.energy`), or an annealed energy.
        step_size: η ≥ 0: a scalar, or a pytree with one entry per leaf of the position; an entry may be a
            schedule, a function of the int32 step number. A leaf with step size 0 stays where it is.
        temperature: T ≥ 0, a scalar or a schedule. 0 is gradient descent.
        max_drift: bound M > 0 on the Euclidean norm of a leaf's drift ``η ∇E`` (longer drifts are
            rescaled to M; noise is not touched), scalar or one entry per leaf, ``jnp.inf`` for none. *Changes
            the law sampled.*
        box: ``(low, high)``, scalars or one entry per leaf: positions are reflected into it; ``-inf`` and
            ``inf`` for none. *Changes the law sampled*: as η → 0 it tends to the target restricted to the
            box.
        noise: standard normals ξ drawn in advance, a pytree as the position with a leading step axis, instead
            of draws from the key: for common random numbers, antithetic chains and parity tests. Steps past
            its end give NaN.

    Returns:
        A kernel with ``init(position) -> state`` and ``step(key, state) -> (state, info)``; a pytree, so that
        new parameters, step sizes and temperatures retrace nothing.

    Raises:
        ValueError: a negative step size, temperature or bound, a box whose low side is not below the high
            side or that is infinite on one side only.

    References:
        Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete
        approximations", Bernoulli 2 (1996).

    Examples:
        >>> kernel = jebm.langevin(jebm.energy.standard_normal, step_size=0.25, temperature=0.0)
        >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.array([4.0])))
        >>> state.position, float(info.energy)  # at temperature 0: gradient descent
        (Array([3.], dtype=float32), 4.5)
    """
    require(step_size, lambda a: a >= 0, "step_size", "must be at least 0")
    require(temperature, lambda a: a >= 0, "temperature", "must be at least 0")
    require(max_drift, lambda a: a > 0, "max_drift", "must be above 0 (inf for no bound)")
    if box is not None:
        _check_box(*box)
    return LangevinKernel(
        energy=energy if isinstance(energy, Annealed) else as_partial(energy),
        step_size=schedules_to_partials(step_size),
        temperature=schedules_to_partials(temperature),
        max_drift=schedules_to_partials(max_drift),
        box=box,
        noise=jax.tree.map(floating, noise),
    )


def _check_box(low: PyTree, high: PyTree) -> None:
    if jax.tree.structure(low) != jax.tree.structure(high):  # type: ignore[operator]
        raise ValueError(f"box: low and high must have the same entries, got {low} and {high}")
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        if is_concrete(a) and is_concrete(b) and not np.all((a < b) & (np.isinf(a) == np.isinf(b))):
            raise ValueError(f"box: low must be below high, both finite or both infinite, got {a} and {b}")


def from_noise_scale(noise_scale: float, temperature: float) -> float:
    """Step size η of Hat EBM's step ``x' = x - (ε²/2) ∇H/T + ε ξ``: ``η = ε²/(2T)`` on H at temperature T.

    Then ``η ∇H`` is their drift and ``sqrt(2ηT) = ε`` their noise (arXiv 2210.16486, released code).

    Examples:
        >>> jebm.mcmc.from_noise_scale(5e-4, 1e-8)  # Hat EBM"s synthesis
        12.5
    """
    return noise_scale**2 / (2.0 * temperature)


def from_half_step(step: float, temperature: float = 1.0) -> float:
    """Step size η of ``x' = x - (s/2) ∇f/τ + sqrt(s) ξ`` (Welling and Teh 2011): ``s/(2τ)`` on f at T = τ.

    EC-VAE (arXiv 2311.04071, released code) uses s = 1e-6 and τ = 1e-5, hence η = 0.05 on the network's
    output f.

    Examples:
        >>> round(jebm.mcmc.from_half_step(1e-6, 1e-5), 6)  # EC-VAE
        0.05
    """
    return step / (2.0 * temperature)


def table_schedule(values: Array) -> Partial:
    """The schedule that reads ``values[step]``; past the end it stays at the last value.

    Examples:
        >>> step_size = jebm.mcmc.table_schedule(jnp.array([0.5, 0.25]))
        >>> [float(step_size(k)) for k in (0, 1, 2)]
        [0.5, 0.25, 0.25]
    """
    return Partial(_lookup, jnp.asarray(values))


def _lookup(values: Array, step: Array) -> Array:
    return values[jnp.minimum(step, values.shape[0] - 1)]


def floating(a: Any) -> Array:
    """``a`` as an array of float32 or float64, else a ValueError.

    In half precision a step is rounded to the grid of its position, and normal draws have other tails: the chain would
    sample another law.
    """
    a = jnp.asarray(a)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise ValueError(f"a position must be made of floating arrays, got {a.dtype} of shape {a.shape}")
    if a.dtype.itemsize < 4:
        raise ValueError(
            f"a position must be float32 or float64, got {a.dtype} of shape {a.shape}, in which steps are lost to "
            "rounding: pass x.astype(jnp.float32); networks may compute in half precision inside the energy"
        )
    return a


def _wide(a: Any) -> Any:
    return jnp.asarray(a, jnp.float32) if jnp.result_type(a).itemsize < 4 else a


def schedules_to_partials(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: as_partial(a) if callable(a) else a, tree, is_leaf=callable)


def entry_at(entry: ScalarOrSchedule, step: Array) -> Array:
    return entry(step) if callable(entry) else entry  # type: ignore[return-value]


def per_leaf(tree: PyTree, x: PyTree, step: Array) -> PyTree:
    values = jax.tree.map(lambda entry: entry_at(entry, step), tree, is_leaf=callable)
    try:
        values = jax.tree.broadcast(values, x)
        fits = all(jax.tree.leaves(jax.tree.map(_broadcasts_to, values, x)))
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            "step_size, max_drift and box take a scalar or one entry per leaf of the position; "
            f"got shapes {_shapes(values)} for a position of shapes {_shapes(x)}"
        )
    return values


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.shape, tree)


def _broadcasts_to(entry: Any, leaf: Array) -> bool:
    padded = (1,) * (leaf.ndim - jnp.ndim(entry)) + jnp.shape(entry)
    return len(padded) == leaf.ndim and all(a in (1, b) for a, b in zip(padded, leaf.shape, strict=True))


def _clip_norm(drift: Array, bound: Array) -> Array:
    norm = optax.safe_norm(drift, 1e-30)
    return drift * jnp.minimum(1.0, bound / norm)


def reflect(x: Array, low: Array, high: Array) -> Array:
    """``x`` reflected at ``low`` and ``high`` until it is between them."""
    offset = jnp.mod(jnp.abs(x - low), 2.0 * (high - low))
    folded = low + jnp.minimum(offset, 2.0 * (high - low) - offset)
    # inside nothing changes, not even by rounding, and infinite sides bound nothing
    return jnp.where((low <= x) & (x <= high), x, jnp.clip(folded, low, high)).astype(x.dtype)
