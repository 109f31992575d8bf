"""Gaussian problems on which the law of an unadjusted Langevin chain after K steps is known exactly."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jebm
from helpers.alternating import Alternating
from helpers.laws import Move, Verdict, exact_law, gaussian_test

NUM_CHAINS = 2**15

MEAN = np.array([1.0, -2.0])
PRECISION = np.array([[1.6, 0.5], [0.5, 0.7]])
START = np.array([-0.5, -0.2])
LARGEST = np.linalg.eigvalsh(PRECISION)[-1]

JOINT_MEAN = np.array([0.8, -1.5, 0.4])
JOINT_PRECISION = np.array([[1.3, 0.5, -0.4], [0.5, 0.9, 0.2], [-0.4, 0.2, 2.0]])
JOINT_START = np.array([-1.0, 0.7, 1.1])
JOINT_SPREAD = np.array([[0.5, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.3]])


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel and the linear moves that it should make, from N(start, spread) (a point where spread is 0).

    ``template`` gives the structure of a position; vectors are ordered as its raveled leaves.
    """

    kernel: Any
    moves: list[Move]
    start: np.ndarray
    spread: np.ndarray
    template: Any
    moves_per_step: int = 1

    @property
    def num_steps(self) -> int:
        return len(self.moves) // self.moves_per_step

    def sample(self, kernel: Any, positions_every: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Last positions, (chains, d), and recorded ones, (chains, records * d), of a kernel on this case."""
        normal = np.random.default_rng(seed).normal(size=(NUM_CHAINS, len(self.start)))
        root = np.linalg.cholesky(self.spread) if self.spread.any() else self.spread
        leaves, structure = jax.tree.flatten(self.template)
        columns = np.split(self.start + normal @ root.T, np.cumsum([leaf.size for leaf in leaves])[:-1], axis=1)
        positions = structure.unflatten(
            np.float32(part).reshape(NUM_CHAINS, *leaf.shape) for part, leaf in zip(columns, leaves, strict=True)
        )
        state, info = jebm.sample_chains(
            jax.random.key(seed),
            kernel,
            positions,
            self.num_steps,
            trace=(),
            positions_every=positions_every,
        )
        last = [np.asarray(leaf).reshape(NUM_CHAINS, -1) for leaf in jax.tree.leaves(state.position)]
        # records of one leaf only: nothing here needs more
        records = np.asarray(info["position"]).reshape(NUM_CHAINS, -1) if positions_every else np.zeros(0)
        return np.concatenate(last, axis=1), records

    def test(self, kernel: Any | None = None) -> Verdict:
        """The last positions of ``kernel`` (by default the right one) against the exact law."""
        mean, covariance, _ = exact_law(self.moves, self.start, self.spread)
        return gaussian_test(self.sample(self.kernel if kernel is None else kernel)[0], mean, covariance)


def vector(h: float, temperature: float, num_steps: int, spread: np.ndarray | None = None) -> Case:
    """A correlated Gaussian in the plane; ``h`` is the step size times the largest precision."""
    step_size = h / LARGEST
    energy = jebm.energy.gaussian(jnp.asarray(MEAN, jnp.float32), jnp.asarray(PRECISION, jnp.float32))
    kernel = jebm.langevin(energy, step_size, temperature)
    moves = [Move([step_size] * 2, PRECISION, MEAN, temperature)] * num_steps
    return Case(kernel, moves, START, np.zeros((2, 2)) if spread is None else spread, jnp.zeros(2))


def quadratic(mean, precision, x):
    centred = ravel_pytree(x)[0] - mean
    return 0.5 * centred @ precision @ centred


def joint_energy() -> Any:
    return jebm.energy.bind(quadratic, jnp.asarray(JOINT_MEAN, jnp.float32), jnp.asarray(JOINT_PRECISION, jnp.float32))


def per_leaf(num_steps: int = 8) -> Case:
    """Step sizes per leaf, and within one leaf per entry; the leaves are coupled."""
    kernel = jebm.langevin(joint_energy(), {"a": jnp.array([0.5, 0.15]), "b": 0.3}, 0.6)
    moves = [Move([0.5, 0.15, 0.3], JOINT_PRECISION, JOINT_MEAN, 0.6)] * num_steps
    return Case(kernel, moves, JOINT_START, JOINT_SPREAD, {"a": jnp.zeros(2), "b": jnp.zeros(())})


def alternating(num_steps: int = 8) -> Case:
    """Blocks z, then y with the new z. Raveled, a position is (y, z), as dict keys are sorted."""
    kernel = Alternating(jebm.langevin(joint_energy(), {"z": 0.6, "y": 0.25}, 0.6), ("z", "y"))
    z = Move([0.0, 0.6, 0.6], JOINT_PRECISION, JOINT_MEAN, 0.6)
    y = Move([0.25, 0.0, 0.0], JOINT_PRECISION, JOINT_MEAN, 0.6)
    template = {"z": jnp.zeros(2), "y": jnp.zeros((1, 1))}
    return Case(kernel, [z, y] * num_steps, JOINT_START, JOINT_SPREAD, template, moves_per_step=2)


def scheduled() -> Case:
    """Step sizes and temperatures that change at every step."""
    step_sizes = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2])
    temperatures = np.array([2.0, 0.0, 0.5, 1.5, 0.3, 0.8])
    base = vector(1.0, 1.0, 1)
    kernel = jebm.langevin(
        base.kernel.energy,
        jebm.mcmc.table_schedule(jnp.asarray(step_sizes, jnp.float32)),
        lambda step: jnp.asarray(temperatures, jnp.float32)[step],
    )
    moves = [Move([a, a], PRECISION, MEAN, t) for a, t in zip(step_sizes, temperatures, strict=True)]
    return dataclasses.replace(base, kernel=kernel, moves=moves)


def tilted(mean, precision, scales, shifts, step, x):
    return scales[step] * quadratic(mean + shifts[step], precision, x)


def annealed() -> Case:
    """An energy that becomes steeper and moves along the chain, under a constant step size."""
    scales, shifts = np.array([0.2, 1.5, 0.6, 1.1, 0.4]), np.array([2.0, -1.0, 0.5, 0.0, -0.7])
    base = vector(1.0, 1.0, 1)
    given = (MEAN, PRECISION, scales, shifts)
    energy = jebm.energy.anneal(tilted, *(jnp.asarray(a, jnp.float32) for a in given))
    moves = [Move([0.5, 0.5], s * PRECISION, MEAN + d, 0.6) for s, d in zip(scales, shifts, strict=True)]
    return dataclasses.replace(base, kernel=jebm.langevin(energy, 0.5, 0.6), moves=moves)
