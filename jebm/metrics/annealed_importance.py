"""The partition function of an energy, between two bounds.

Annealed importance sampling (Neal, arXiv physics/9803008) on ``E_β = (1 - β) E_0 + β E`` with a normalised base E_0:

    log w = Σ_k (β_k - β_{k-1}) (E_0(x_{k-1}) - E(x_{k-1})),    x_0 ~ exp(-E_0),  x_k ~ T_k(x_{k-1})

has ``E[w] = Z``, hence ``E[log w] ≤ log Z``. The same path walked back from exact samples of ``exp(-E)/Z`` has
``E[1/w] = 1/Z``, hence ``E[log w] ≥ log Z`` (Grosse et al., arXiv 1511.02543, bidirectional Monte Carlo). T_k is
blackjax's MALA, whose step sizes are tuned by chains of their own beforehand: tuned along the way, they would void
both bounds.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jebm.energy import Energy, as_partial, bind, value
from jebm.errors import DataError
from jebm.mcmc import BlackjaxState, chain_keys, mala

__all__ = [
    "Base", "Bracket", "LogWeights", "bracket", "equilibrate", "forward_weights", "reverse_weights", "tune_steps",
]  # fmt: skip

TARGET_ACCEPTANCE = 0.574  # of MALA, optimal in many dimensions


class Base(NamedTuple):
    """Base distribution of the path.

    Attributes:
        shape: of one example.
        kind: ``"gaussian"``, N(0, scale² I) on all of space; ``"uniform"`` on the box [-scale, scale]: the energy is
            then taken to be infinite outside, which makes any bounded energy a law.
        scale: σ, or half the side of the box.
    """

    shape: tuple[int, ...]
    kind: Literal["gaussian", "uniform"] = "gaussian"
    scale: float = 1.0

    def sample(self, key: Array) -> Array:
        """One draw of ``shape``, float32."""
        if self.kind == "gaussian":
            return self.scale * jax.random.normal(key, self.shape)
        return jax.random.uniform(key, self.shape, minval=-self.scale, maxval=self.scale)

    def energy(self, x: Array) -> Array:
        """``E_0(x)`` with its normaliser: ``exp(-E_0)`` integrates to 1."""
        if self.kind == "gaussian":
            quadratic = 0.5 * jnp.sum(jnp.square(x)) / self.scale**2
            return quadratic + 0.5 * x.size * jnp.log(2 * jnp.pi * self.scale**2)
        return jnp.where(self.holds(x), x.size * jnp.log(2 * self.scale), jnp.inf)

    def holds(self, x: Array) -> Array:
        """Whether x is in the support."""
        return jnp.asarray(True) if self.kind == "gaussian" else jnp.all(jnp.abs(x) <= self.scale)


class LogWeights(NamedTuple):
    """One direction.

    Attributes:
        log_weights: ``log w`` of each chain, float64 [n].
        positions: where the chains ended [n, ...].
        acceptance: MALA's mean acceptance.
    """

    log_weights: np.ndarray
    positions: Array
    acceptance: float


class Bracket(NamedTuple):
    """``log Z`` between two bounds.

    Attributes:
        lower: mean forward log weight; in expectation at most log Z.
        lower_error: its standard error.
        upper: mean reverse log weight; in expectation at least log Z.
        upper_error: its standard error.
        estimate: log of the mean forward weight.
        effective_samples: ``(Σ w)² / Σ w²`` of the forward weights.
    """

    lower: float
    lower_error: float
    upper: float
    upper_error: float
    estimate: float
    effective_samples: float


def bracket(forward: np.ndarray, reverse: np.ndarray) -> Bracket:
    """The bounds from the log weights of both directions [n], [m].

    Raises:
        ValueError: fewer than two chains, or weights that are NaN or infinite.
    """
    for name, weights in (("forward", forward), ("reverse", reverse)):
        if len(weights) < 2 or not np.isfinite(weights).all():
            bad = len(weights) - int(np.isfinite(weights).sum())
            raise DataError(f"{name}: {bad} of {len(weights)} log weights are NaN or infinite; two or more are needed")
    error = lambda w: float(np.std(w, ddof=1) / np.sqrt(len(w)))  # noqa: E731
    relative = np.exp(forward - forward.max())
    estimate = forward.max() + np.log(relative.mean())
    effective = relative.sum() ** 2 / np.square(relative).sum()
    return Bracket(
        float(forward.mean()), error(forward), float(reverse.mean()), error(reverse), float(estimate), float(effective)
    )


def forward_weights(
    key: Array, energy: Energy, base: Base, step_sizes: Array, *, num_chains: int, steps_per_level: int = 1
) -> LogWeights:
    """Chains from the base to the energy.

    Args:
        key: a typed key.
        energy: E of one example; its temperature, if any, divided out.
        base: where the path starts.
        step_sizes: of MALA at each level, [K]: β_k = k/K; see `tune_steps`.
        num_chains: n.
        steps_per_level: MALA steps at each level.
    """
    start_key, walk_key = jax.random.split(key)
    x = jax.vmap(base.sample)(chain_keys(start_key, num_chains))
    return _weights(walk_key, energy, base, step_sizes, x, steps_per_level, reverse=False)


def reverse_weights(
    key: Array, energy: Energy, base: Base, step_sizes: Array, positions: Array, *, steps_per_level: int = 1
) -> LogWeights:
    """Chains from samples of ``exp(-E)/Z`` [n, ...] back to the base. The bound holds if these samples are exact."""
    return _weights(key, energy, base, step_sizes, positions, steps_per_level, reverse=True)


def equilibrate(key: Array, energy: Energy, base: Base, step_size: Array, positions: Array, num_steps: int) -> Array:
    """Positions [n, ...] after ``num_steps`` MALA steps on the energy itself, within the base's support."""
    keys = chain_keys(key, len(positions))
    return _equilibrated(keys, as_partial(energy), base, step_size, positions, num_steps)


def tune_steps(
    key: Array, energy: Energy, base: Base, *, num_levels: int, num_chains: int = 32, rounds: int = 5
) -> Array:
    """Step sizes [num_levels] at which MALA accepts about 57 %, from pilot chains along the path.

    At each level the step is multiplied by ``exp(acceptance - 0.574)`` after each of ``rounds`` steps of all chains,
    starting from the level before.
    """
    return _tuned(key, as_partial(energy), base, num_levels, num_chains, rounds)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _tuned(key: Array, energy: Partial, base: Base, num_levels: int, num_chains: int, rounds: int) -> Array:
    def level(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], Array]:
        def one_round(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            x, log_step = carry
            keys = chain_keys(jax.random.fold_in(jax.random.fold_in(walk_key, k), i), num_chains)
            walk = functools.partial(_walk, energy, base, k / num_levels, jnp.exp(log_step), 1)
            x, acceptance = jax.vmap(walk)(keys, x)
            return (x, log_step + acceptance.mean() - TARGET_ACCEPTANCE), None

        carry, _ = jax.lax.scan(one_round, carry, jnp.arange(rounds))
        return carry, carry[1]

    start_key, walk_key = jax.random.split(key)
    x = jax.vmap(base.sample)(chain_keys(start_key, num_chains))
    start = (x, jnp.log(0.3 * base.scale**2) - jnp.log(x[0].size) / 3)  # MALA's step falls as d^(-1/3)
    return jnp.exp(jax.lax.scan(level, start, jnp.arange(1, num_levels + 1))[1])


@functools.partial(jax.jit, static_argnums=(2, 5))
def _equilibrated(
    keys: Array, energy: Partial, base: Base, step_size: Array, positions: Array, num_steps: int
) -> Array:
    walk = functools.partial(_walk, energy, base, jnp.asarray(1.0), step_size, num_steps)
    return jax.vmap(walk)(keys, positions)[0]


def _weights(
    key: Array, energy: Energy, base: Base, step_sizes: Array, x: Array, steps: int, *, reverse: bool
) -> LogWeights:
    keys = chain_keys(key, len(x))
    gaps, positions, acceptance = _run(keys, as_partial(energy), base, step_sizes, x, steps, reverse)
    # the float32 gaps of many levels are summed in float64
    return LogWeights(
        np.asarray(gaps, np.float64).sum(1) / len(step_sizes), positions, float(np.asarray(acceptance).mean())
    )


@functools.partial(jax.jit, static_argnums=(2, 5, 6))
def _run(
    keys: Array, energy: Partial, base: Base, step_sizes: Array, x: Array, steps: int, reverse: bool
) -> tuple[Array, Array, Array]:
    num_levels = len(step_sizes)

    def chain(key: Array, x: Array) -> tuple[Array, Array, Array]:
        def level(x: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
            gap = base.energy(x) - value(energy, x)
            walk = functools.partial(_walk, energy, base, k / num_levels, step_sizes[k - 1], steps)
            moved, acceptance = walk(jax.random.fold_in(key, k), x)
            if reverse:
                gap = base.energy(moved) - value(energy, moved)
            return moved, (gap, acceptance)

        levels = jnp.arange(1, num_levels + 1)
        x, (gaps, acceptance) = jax.lax.scan(level, x, levels, reverse=reverse)
        return gaps, x, acceptance

    return jax.vmap(chain)(keys, x)


def _walk(
    energy: Partial, base: Base, beta: Array, step_size: Array, num_steps: int, key: Array, x: Array
) -> tuple[Array, Array]:
    """``num_steps`` MALA steps on E_β: the position, and the mean acceptance."""
    kernel = mala(bind(functools.partial(_tempered, base), energy, beta), step_size)

    def step(state: BlackjaxState, i: Array) -> tuple[BlackjaxState, Array]:
        state, info = kernel.step(jax.random.fold_in(key, i), state)
        return state, info.acceptance

    state, acceptance = jax.lax.scan(step, kernel.init(x), jnp.arange(num_steps))
    return state.position, acceptance.mean()


def _tempered(base: Base, energy: Partial, beta: Array, x: Array) -> Array:
    # the base's constant moves no chain; outside the box both gradients must stay finite
    quadratic = 0.5 * jnp.sum(jnp.square(x)) / base.scale**2 if base.kind == "gaussian" else 0.0
    return jnp.where(base.holds(x), (1 - beta) * quadratic + beta * value(energy, x), jnp.inf)
