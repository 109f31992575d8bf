"""Samplers along a path of energies: annealed Langevin, sequential Monte Carlo."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jebm.energy import PyTree, anneal, as_partial, require, require_int, value
from jebm.errors import short_traceback
from jebm.mcmc.chains import Kernel
from jebm.mcmc.langevin import LangevinKernel, floating, langevin, table_schedule

__all__ = ["SMCResult", "annealed_langevin", "smc"]


def annealed_langevin(
    energy: Callable[[Array, PyTree], Array],
    levels: Array,
    step_size: Array | float,
    steps_per_level: int,
    temperature: Array | float = 1.0,
) -> LangevinKernel:
    """Annealed Langevin dynamics: ``steps_per_level`` Langevin steps at each noise level in turn.

    At level σ the step size is ``η (σ/σ_L)²``, so that the ratio of drift to noise is that of the last level σ_L
    everywhere. Sample it for ``len(levels) * steps_per_level`` steps; further ones stay at the last level.

    Args:
        energy: ``(σ, x) -> E_σ(x)``, of one example x at noise level σ.
        levels: float [L], the noise levels in the order in which they are visited, as a rule descending.
        step_size: η > 0 of the last level.
        steps_per_level: an int of at least 1.
        temperature: T ≥ 0.

    Raises:
        ValueError: no levels, a level or step size that is not above 0.

    References:
        Song and Ermon, "Generative modeling by estimating gradients of the data distribution", arXiv 1907.05600,
        algorithm 1, whose α_i/2 is the step size here.
    """
    levels = jnp.asarray(levels, float)
    if levels.ndim != 1 or not len(levels):
        raise ValueError(f"levels must be one or more numbers, got shape {levels.shape}")
    require(levels, lambda a: a > 0, "levels", "must be above 0")
    require(step_size, lambda a: a > 0, "step_size", "must be above 0")
    table = jnp.repeat(levels, require_int(steps_per_level, "steps_per_level", 1))
    annealed = anneal(_at_level, as_partial(energy), table)
    return langevin(annealed, table_schedule(step_size * jnp.square(table / levels[-1])), temperature)


def _at_level(energy: Callable, table: Array, step: Array, x: PyTree) -> Array:
    return value(Partial(energy, table[jnp.minimum(step, len(table) - 1)]), x)


class SMCResult(NamedTuple):
    """What sequential Monte Carlo leaves.

    Attributes:
        positions: particles at the last level, equally weighted, leaves [n, ...].
        log_normalizer: the estimate of ``log(Z_K / Z_0)``; its exponential is unbiased.
        increments: its parts, [K].
        effective_samples: ``(Σ w)² / Σ w²`` of the weights from each level to the next, [K], at most n.
        acceptance: mean acceptance at each level, [K + 1]; None where the kernel reports none.
    """

    positions: PyTree
    log_normalizer: Array
    increments: Array
    effective_samples: Array
    acceptance: Array | None


@short_traceback
def smc(
    key: Array,
    energy: Callable[[Array, PyTree], Array],
    levels: Array,
    kernel_at: Callable[[Any, Array], Kernel],
    positions: PyTree,
    steps_per_level: int = 1,
) -> SMCResult:
    """Sequential Monte Carlo along the energies ``E_β``, β = β_0, ..., β_K (blackjax's, with systematic resampling).

    At each level the particles are resampled, moved by the kernel, and weighted by ``exp(E_β(x) - E_β'(x))`` for the
    next level β'; the mean weight estimates ``Z_β' / Z_β``.

        path = lambda beta, x: (1 - beta) * base(x) + beta * energy(x)
        jebm.smc(key, path, jnp.linspace(0, 1, 21), lambda energy, beta: jebm.mala(energy, 0.1), base_draws)

    Args:
        key: a typed key.
        energy: ``(β, x) -> E_β(x)`` of one example.
        levels: float [K + 1], the path; β is a scalar of it.
        kernel_at: ``(energy, β) -> kernel``, the kernel at a level, whose energy is that level's; it should leave
            ``exp(-E_β)`` invariant: the estimate of an unadjusted kernel is biased.
        positions: exact draws of the first level, leaves [n, ...].
        steps_per_level: of the kernel.

    Raises:
        ValueError: fewer than two levels, or positions without a common leading axis.

    References:
        Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers", JRSS B 68 (2006), with the kernels' time
        reversals as backward kernels; Chopin and Papaspiliopoulos, "An introduction to sequential Monte Carlo" (2020).
    """
    levels = jnp.asarray(levels, float)
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"levels must be two or more numbers, got shape {levels.shape}")
    positions = jax.tree.map(floating, positions)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(positions)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"positions need one leading axis common to all leaves, got {sorted(sizes)}")
    steps_per_level = require_int(steps_per_level, "steps_per_level", 1)
    return _smc(key, as_partial(energy), levels, as_partial(kernel_at), positions, steps_per_level)


@functools.partial(jax.jit, static_argnums=5)
def _smc(
    key: Array, energy: Partial, levels: Array, kernel_at: Partial, positions: PyTree, steps_per_level: int
) -> SMCResult:
    from blackjax.smc import base, resampling

    size = jax.tree.leaves(positions)[0].shape[0]

    def one_level(state: Any, inputs: tuple[Array, Array, Array]) -> tuple[Any, tuple[Array, Array, Any]]:
        k, level, after = inputs
        here, there = Partial(energy, level), Partial(energy, after)
        kernel = kernel_at(here, level)

        def move(key: Array, x: PyTree) -> tuple[PyTree, Any]:
            step = lambda state, i: kernel.step(jax.random.fold_in(key, i), state)  # noqa: E731
            last, infos = jax.lax.scan(step, kernel.init(x), jnp.arange(steps_per_level))
            return last.position, infos.acceptance.mean() if hasattr(infos, "acceptance") else None

        state, info = base.step(
            jax.random.fold_in(key, k), state, lambda keys, x, _: jax.vmap(move)(keys, x),
            jax.vmap(lambda x: value(here, x) - value(there, x)), resampling.systematic,
        )  # fmt: skip
        mean = None if info.update_info is None else info.update_info.mean()
        return state, (info.log_likelihood_increment, 1.0 / jnp.sum(jnp.square(state.weights)), mean)

    # the last level is weighted against itself: its particles are resampled, moved, and equal
    steps = (jnp.arange(len(levels)), levels, jnp.append(levels[1:], levels[-1]))
    start = base.SMCState(positions, jnp.full(size, 1.0 / size), {})
    state, (increments, effective, acceptance) = jax.lax.scan(one_level, start, steps)
    return SMCResult(state.particles, increments[:-1].sum(), increments[:-1], effective[:-1], acceptance)
