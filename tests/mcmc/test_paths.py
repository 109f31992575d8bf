"""Annealed Langevin against its exact law, sequential Monte Carlo's normaliser against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from helpers.laws import Move, accept, exact_law, gaussian_test, ks_test, mean_test, reject

import jebm

KEY = jax.random.key(51)
LEVELS = jnp.array([2.0, 1.1, 0.5])
MEAN, VARIANCE = np.array([1.0, -2.0]), 0.3


def smoothed(sigma, x):
    """The energy of N(MEAN, VARIANCE) under noise of σ."""
    return 0.5 * jnp.sum(jnp.square(x - jnp.asarray(MEAN, jnp.float32))) / (VARIANCE + sigma**2)


def ladder_law(step_size, steps_per_level, temperature=1.0):
    moves = []
    for sigma in np.asarray(LEVELS, np.float64):
        eta = step_size * (sigma / float(LEVELS[-1])) ** 2
        moves += steps_per_level * [Move([eta, eta], np.eye(2) / (VARIANCE + sigma**2), MEAN, temperature)]
    return exact_law(moves, np.array([4.0, 3.0]), np.zeros((2, 2)))[:2]


def test_annealed_langevin_law():
    kernel = jebm.annealed_langevin(smoothed, LEVELS, 0.15, 4, 0.7)
    start = jnp.tile(jnp.array([4.0, 3.0]), (2**15, 1))
    state, _ = jebm.sample_chains(KEY, kernel, start, 12, trace=())
    accept(gaussian_test(state.position, *ladder_law(0.15, 4, 0.7)))
    reject(gaussian_test(state.position, *ladder_law(0.15, 3, 0.7)))
    reject(gaussian_test(state.position, *ladder_law(0.15, 4, 0.75)))


def test_annealed_langevin_stays_at_its_last_level():
    kernel = jebm.annealed_langevin(smoothed, LEVELS, 0.15, 4)
    state, _ = jebm.sample_chains(KEY, kernel, jnp.zeros((2, 2)), 14)
    np.testing.assert_allclose(state.energy, jax.vmap(lambda x: smoothed(LEVELS[-1], x))(state.position), rtol=1e-5)


def well(x):
    """Two wells of unequal weight and width."""
    return 0.25 * jnp.square(jnp.square(x) - 2.0) + 0.5 * x + 0.2 * jnp.sin(3.0 * x)


def path(beta, x):
    return (1.0 - beta) * 0.5 * jnp.square(x / 2.0) + beta * well(x)


def kernel_at(energy, beta):
    return jebm.mala(energy, 0.5 / (1.0 + beta))


def density(x):
    return np.exp(-np.asarray(jax.vmap(well)(jnp.asarray(np.atleast_1d(x), jnp.float32)), np.float64))


GRID = np.linspace(-6.0, 6.0, 20_001)
NORMALIZER = scipy.integrate.trapezoid(density(GRID), GRID)
RATIO = NORMALIZER / (2.0 * np.sqrt(2.0 * np.pi))


def repeats(num_particles, num_repeats, levels, steps_per_level=2):
    def one(key):
        start_key, key = jax.random.split(key)
        start = 2.0 * jax.random.normal(start_key, (num_particles,))
        return jebm.smc(key, path, levels, kernel_at, start, steps_per_level)

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, num_repeats))


def test_the_normaliser_is_unbiased():
    found = repeats(16, 4096, jnp.linspace(0.0, 1.0, 5))
    estimates = np.exp(np.asarray(found.log_normalizer, np.float64))
    accept(mean_test(estimates, RATIO))
    reject(mean_test(estimates, 1.05 * RATIO))
    np.testing.assert_allclose(found.increments.sum(1), found.log_normalizer, rtol=1e-4, atol=1e-5)
    assert found.effective_samples.shape == (4096, 4)
    assert 1.0 <= float(found.effective_samples.min()) <= float(found.effective_samples.max()) <= 16.001
    assert float(found.effective_samples.mean()) > 8.0


def test_particles_follow_the_last_level():
    found = repeats(256, 512, jnp.linspace(0.0, 1.0, 9))
    one_each = np.asarray(found.positions)[:, 0]  # particles of one run are not independent
    cdf = np.cumsum(density(GRID)) * (GRID[1] - GRID[0]) / NORMALIZER
    accept(ks_test(one_each, lambda x: np.interp(x, GRID, cdf)))
    reject(ks_test(np.asarray(found.positions)[:, :8], lambda x: np.interp(x, GRID, np.square(cdf))))
    assert found.acceptance.shape == (512, 9)
    assert ((found.acceptance > 0.4) & (found.acceptance <= 1.0)).all()


def test_acceptance_is_that_of_each_level():
    """At step size 0.5 on N(0, 2²): 1 - (2/π) arctan((η / (2 σ²))^(3/2))."""
    found = repeats(256, 64, jnp.linspace(0.0, 1.0, 9), 1)
    accept(mean_test(found.acceptance[:, 0], 1 - 2 / np.pi * np.arctan((0.5 / 8.0) ** 1.5)))


def test_particles_may_be_pytrees_and_kernels_without_acceptance():
    def energy(beta, x):
        return jebm.energy.standard_normal(x) * (1.0 + beta)

    start = {"a": jax.random.normal(KEY, (4096, 2)), "b": jax.random.normal(jax.random.key(52), (4096,))}
    found = jebm.smc(KEY, energy, jnp.linspace(0.0, 1.0, 6), lambda e, beta: jebm.langevin(e, 0.01), start)
    assert found.acceptance is None
    assert jax.tree.map(jnp.shape, found.positions) == {"a": (4096, 2), "b": (4096,)}
    np.testing.assert_allclose(found.log_normalizer, -1.5 * np.log(2.0), atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jebm.annealed_langevin(smoothed, jnp.array([]), 0.1, 1), "levels must be one or more numbers"),
        (lambda: jebm.annealed_langevin(smoothed, jnp.array([1.0, 0.0]), 0.1, 1), "levels must be above 0"),
        (lambda: jebm.annealed_langevin(smoothed, LEVELS, 0.0, 1), "step_size must be above 0, got 0.0"),
        (lambda: jebm.annealed_langevin(smoothed, LEVELS, 0.1, 1.5), "steps_per_level must be an int of at least 1"),
        (lambda: jebm.smc(KEY, path, jnp.zeros(1), kernel_at, jnp.zeros(4)), r"two or more numbers, got shape \(1,\)"),
        (lambda: jebm.smc(KEY, path, LEVELS, kernel_at, jnp.zeros(())), "one leading axis common"),
        (lambda: jebm.smc(KEY, path, LEVELS, kernel_at, jnp.zeros(4), 0), "steps_per_level must be an int of at"),
    ],
)
def test_wrong_inputs_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
