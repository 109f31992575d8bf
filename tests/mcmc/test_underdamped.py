"""Laws of underdamped and of preconditioned Langevin dynamics on Gaussians, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import langevin as cases
from helpers.laws import accept, gaussian_test, mean_test, reject

import jebm

NUM_CHAINS = 2**15
TEMPERATURE, FRICTION = 0.6, 0.8
PRECONDITIONER = np.array([[0.7, -0.4], [-0.4, 1.5]])


def energy():
    return jebm.energy.gaussian(jnp.asarray(cases.MEAN, jnp.float32), jnp.asarray(cases.PRECISION, jnp.float32))


def run(kernel, num_steps, start=None):
    start = jnp.tile(jnp.asarray(cases.START, jnp.float32), (NUM_CHAINS, 1)) if start is None else start
    return jebm.sample_chains(jax.random.key(31), kernel, start, num_steps, trace=())[0]


def baoab_law(step_sizes, num_steps, friction=FRICTION, temperature=TEMPERATURE):
    """Mean and covariance of (x, p) after ``num_steps`` from the point of start, p ~ N(0, T): matrix by matrix."""
    h, eye, zero = np.diag(step_sizes), np.eye(2), np.zeros((2, 2))
    kept = np.diag(np.exp(-friction * np.asarray(step_sizes)))
    kick = np.block([[eye, zero], [-0.5 * h @ cases.PRECISION, eye]])
    drift = np.block([[eye, 0.5 * h], [zero, eye]])
    rub = scipy.linalg.block_diag(eye, kept)
    noise = scipy.linalg.block_diag(zero, temperature * (eye - kept @ kept))
    mean = np.concatenate([cases.START - cases.MEAN, np.zeros(2)])
    covariance = scipy.linalg.block_diag(zero, temperature * eye)
    for _ in range(num_steps):
        before, after = rub @ drift @ kick, kick @ drift
        mean = after @ before @ mean
        covariance = after @ (before @ covariance @ before.T + noise) @ after.T
    return mean + np.concatenate([cases.MEAN, np.zeros(2)]), covariance


def joint(state):
    return np.concatenate([state.position, state.momentum], 1)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_underdamped_law_after_some_steps(num_steps):
    h = 0.7
    state = run(jebm.underdamped_langevin(energy(), h, FRICTION, TEMPERATURE), num_steps)
    accept(gaussian_test(joint(state), *baoab_law([h, h], num_steps)))
    reject(gaussian_test(joint(state), *baoab_law([h, h], num_steps, friction=1.2 * FRICTION)))
    reject(gaussian_test(joint(state), *baoab_law([h, h], num_steps, temperature=1.1 * TEMPERATURE)))
    reject(gaussian_test(joint(state), *baoab_law([h, h], num_steps + 1)))


def test_underdamped_positions_are_exact_at_a_large_step():
    h = 1.2 / np.sqrt(cases.LARGEST)
    covariance = TEMPERATURE * np.linalg.inv(cases.PRECISION)
    state = run(jebm.underdamped_langevin(energy(), h, 0.9, TEMPERATURE), 60)
    accept(gaussian_test(state.position, cases.MEAN, covariance))
    # the momenta are not: at a precision of ω² their variance is T (1 - h²ω²/4)
    momenta = TEMPERATURE * (np.eye(2) - 0.25 * h**2 * cases.PRECISION)
    accept(gaussian_test(state.momentum, np.zeros(2), momenta))
    reject(gaussian_test(state.momentum, np.zeros(2), TEMPERATURE * np.eye(2)))


def test_underdamped_takes_pytrees_a_step_per_leaf_and_schedules():
    def split(x):
        return energy()(jnp.concatenate([x["a"], x["b"]]))

    table = jebm.mcmc.table_schedule(jnp.array([TEMPERATURE, TEMPERATURE]))
    kernel = jebm.underdamped_langevin(split, {"a": 0.7, "b": 0.3}, FRICTION, table)
    start = jnp.tile(jnp.asarray(cases.START, jnp.float32), (NUM_CHAINS, 1))
    state = run(kernel, 2, {"a": start[:, :1], "b": start[:, 1:]})
    both = np.concatenate([state.position["a"], state.position["b"], state.momentum["a"], state.momentum["b"]], 1)
    accept(gaussian_test(both, *baoab_law([0.7, 0.3], 2)))


def test_underdamped_kinetic_energy():
    kernel = jebm.underdamped_langevin(energy(), 0.05, FRICTION, TEMPERATURE)
    start = jnp.tile(jnp.asarray(cases.MEAN, jnp.float32), (2**12, 1))
    _, info = jebm.sample_chains(jax.random.key(32), kernel, start, 1, trace=("kinetic_energy",))
    _, covariance = baoab_law([0.05, 0.05], 1)
    accept(mean_test(info["kinetic_energy"], 0.5 * np.trace(covariance[2:, 2:])))


def preconditioned_law(num_steps, step_size, preconditioner):
    mean, covariance = cases.START - cases.MEAN, np.zeros((2, 2))
    a = np.eye(2) - step_size * preconditioner @ cases.PRECISION
    for _ in range(num_steps):
        mean, covariance = a @ mean, a @ covariance @ a.T + 2 * step_size * TEMPERATURE * preconditioner
    return mean + cases.MEAN, covariance


@pytest.mark.parametrize("num_steps", [1, 5])
def test_preconditioned_law_after_some_steps(num_steps):
    state = run(jebm.preconditioned_langevin(energy(), 0.3, jnp.asarray(PRECONDITIONER), TEMPERATURE), num_steps)
    accept(gaussian_test(state.position, *preconditioned_law(num_steps, 0.3, PRECONDITIONER)))
    reject(gaussian_test(state.position, *preconditioned_law(num_steps, 0.3, np.eye(2))))


def test_preconditioned_stationary_covariance_is_that_of_its_docstring():
    step = 0.5
    state = run(jebm.preconditioned_langevin(energy(), step, jnp.asarray(PRECONDITIONER), TEMPERATURE), 60)
    precision = cases.PRECISION
    covariance = TEMPERATURE * np.linalg.inv(precision - step / 2 * precision @ PRECONDITIONER @ precision)
    accept(gaussian_test(state.position, cases.MEAN, covariance))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jebm.underdamped_langevin(energy(), 0.0), "step_size must be above 0, got 0.0"),
        (lambda: jebm.underdamped_langevin(energy(), 0.1, 0.0), "friction must be above 0, got 0.0"),
        (lambda: jebm.underdamped_langevin(energy(), 0.1, 1.0, -1.0), "temperature must be at least 0, got -1.0"),
        (lambda: jebm.preconditioned_langevin(energy(), 0.1, jnp.ones(2)), r"a square matrix .* got \(2,\)"),
        (
            lambda: jebm.preconditioned_langevin(energy(), 0.1, jnp.array([[1.0, 2.0], [2.0, 1.0]])),
            "symmetric and positive definite",
        ),
        (
            lambda: jebm.preconditioned_langevin(energy(), 0.1, jnp.array([[1.0, 0.5], [0.0, 1.0]])),
            "symmetric and positive definite",
        ),
        (
            lambda: jebm.preconditioned_langevin(energy(), 0.1, jnp.eye(3)).init(jnp.zeros(2)),
            "preconditioner of 3 rows needs as many values in a position, got 2",
        ),
    ],
)
def test_wrong_inputs_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
