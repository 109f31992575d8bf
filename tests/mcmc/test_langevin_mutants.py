"""Planted faults: the exact-law tests see each of them at p < 1e-6, and pass the same kernel without one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import langevin as cases
from helpers.laws import accept, reject

import jebm

pytestmark = pytest.mark.filterwarnings("error")

NUM_STEPS = 8


class MutantState(NamedTuple):
    """The right kernel's state, the noise of the chain's first step, and the gradient one step ago."""

    position: Any
    inner: Any
    first_noise: Any
    previous_gradient: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mutant:
    """A Langevin kernel with a fault. Faults are numbers, so that all mutants are one compiled program."""

    kernel: jebm.mcmc.LangevinKernel
    drift_factor: Any = 1.0
    noise_factor: Any = 1.0
    reuse_key: Any = False
    stale_gradient: Any = False
    noiseless_step: Any = -1
    schedule_shift: Any = 0

    def init(self, position):
        inner = self.kernel.init(position)
        return MutantState(inner.position, inner, jax.tree.map(jnp.zeros_like, inner.position), inner.gradient)

    def step(self, key, state):
        inner = state.inner
        noise = self.kernel.draw(key, inner.position)
        first_noise = select(inner.step == 0, noise, state.first_noise)
        noise = select(self.reuse_key, first_noise, noise)
        factor = self.noise_factor * jnp.where(inner.step == self.noiseless_step, 0.0, 1.0)
        gradient = select(self.stale_gradient, state.previous_gradient, inner.gradient)
        faulty = inner._replace(
            gradient=jax.tree.map(lambda g: self.drift_factor * g, gradient),
            step=inner.step + self.schedule_shift,
        )
        moved, info = self.kernel.advance(jax.tree.map(lambda xi: factor * xi, noise), faulty)
        moved = moved._replace(step=inner.step + 1)
        return MutantState(moved.position, moved, first_noise, inner.gradient), info


def select(condition, a, b):
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def faults(temperature):
    """Name to fault, of the kernel at one temperature."""
    root = float(np.sqrt(temperature))
    return {
        "noise sqrt(eta)": {"noise_factor": 0.5**0.5},
        "noise variance x0.75": {"noise_factor": 0.75**0.5},
        "noise variance x1.25": {"noise_factor": 1.25**0.5},
        "key reused between steps": {"reuse_key": True},
        "wrong sign": {"drift_factor": -1.0},
        "temperature on the drift instead of the noise": {
            "drift_factor": temperature,
            "noise_factor": 1 / root,
        },
        "temperature divides the drift too": {"drift_factor": 1 / temperature},
        "temperature applied twice": {"noise_factor": root},
        "half-step drift with full noise": {"drift_factor": 0.5},
        "half steps": {"drift_factor": 0.5, "noise_factor": 0.5**0.5},
        "double steps": {"drift_factor": 2.0, "noise_factor": 2.0**0.5},
        "stale cached gradient": {"stale_gradient": True},
        "last step without noise": {"noiseless_step": NUM_STEPS - 1},
    }


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_faults_are_seen(h, temperature):
    case = cases.vector(h, temperature, NUM_STEPS)
    accept(case.test(Mutant(case.kernel)))
    unseen = []
    for name, fault in faults(temperature).items():
        try:
            reject(case.test(Mutant(case.kernel, **fault)))
        except AssertionError as error:
            unseen.append(f"{name}: {error}")
    assert not unseen, "\n".join(unseen)


def replaced(case, **changes):
    return dataclasses.replace(case.kernel, **changes)


@pytest.mark.parametrize("h", [0.1, 1.0])
def test_a_silent_clip_or_box_is_seen(h):
    case = cases.vector(h, 0.6, NUM_STEPS)
    accept(case.test(replaced(case, max_drift=100.0, box=(-100.0, 100.0))))
    reject(case.test(replaced(case, max_drift=1.5 * h / cases.LARGEST, box=(-100.0, 100.0))))
    reject(case.test(replaced(case, max_drift=100.0, box=(-0.8, 0.8))))


def test_faults_of_alternating_blocks_are_seen():
    case = cases.alternating()
    plain, alternating = case.kernel.kernel, case.kernel
    reject(case.test(plain))  # all blocks at once
    reject(case.test(dataclasses.replace(alternating, blocks=("y", "z"))))  # the order
    swapped = dataclasses.replace(plain, step_size={"z": 0.25, "y": 0.6})
    reject(case.test(dataclasses.replace(alternating, kernel=swapped)))
    reject(case.test(dataclasses.replace(alternating, stale=True)))  # y moved with the gradient at the old z


def test_faults_of_step_sizes_per_leaf_are_seen():
    case = cases.per_leaf()
    reject(case.test(replaced(case, step_size={"a": jnp.array([0.15, 0.5]), "b": 0.3})))
    reject(case.test(replaced(case, step_size={"a": jnp.array([0.5, 0.15]), "b": 0.2})))


@pytest.mark.parametrize("make", [cases.scheduled, cases.annealed])
def test_a_schedule_that_is_off_by_one_is_seen(make):
    case = make()
    reject(case.test(Mutant(case.kernel, schedule_shift=1)))


def test_one_noise_for_all_entries_is_seen():
    class Shared(jebm.mcmc.LangevinKernel):
        def draw(self, key, position):
            return jnp.broadcast_to(jax.random.normal(key), position.shape)

    fields = [field.name for field in dataclasses.fields(Shared)]
    jax.tree_util.register_dataclass(Shared, fields, [])
    case = cases.vector(0.5, 0.6, NUM_STEPS)
    reject(case.test(Shared(**{name: getattr(case.kernel, name) for name in fields})))
