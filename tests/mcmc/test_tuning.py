"""Step sizes by rule, against the acceptance of MALA and HMC on a Gaussian in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jebm
from jebm import mcmc

MEAN, DEVIATION, TEMPERATURE = 1.3, 0.7, 2.5
SCALE = DEVIATION * np.sqrt(TEMPERATURE)  # the deviation of exp(-E/T)


def energy():
    return jebm.energy.gaussian(jnp.float32(MEAN), jnp.float32(DEVIATION**-2))


def starts():
    return MEAN + SCALE * jax.random.normal(jax.random.key(11), (2048,))


def mala_acceptance(step):
    return 1 - 2 / np.pi * np.arctan((step / SCALE**2 / 2) ** 1.5)


@pytest.mark.parametrize("target", [None, 0.8])
def test_mala_reaches_its_target_from_a_bad_start(target):
    expected = scipy.optimize.brentq(lambda h: mala_acceptance(h) - (target or 0.574), 1e-6, 100.0)
    kernel = jebm.mala(energy(), 0.01, TEMPERATURE)
    tune = jax.jit(functools.partial(mcmc.tune_step_size, num_steps=300, target=target))
    tuned = tune(jax.random.key(0), kernel, starts())
    np.testing.assert_allclose(tuned.step_size, expected, rtol=0.04)
    np.testing.assert_allclose(mala_acceptance(float(tuned.step_size)), target or 0.574, atol=0.01)
    assert tuned.positions.shape == (2048,)
    assert abs(float(tuned.acceptance) - (target or 0.574)) < 0.03


def test_hmc_reaches_eight_tenths():
    kernel = jebm.hmc(energy(), 0.05, 5, TEMPERATURE)
    tuned = jax.jit(mcmc.tune_step_size)(jax.random.key(1), kernel, starts())
    eps = float(tuned.step_size) / SCALE
    step = np.array([[1 - eps**2 / 2, eps], [-eps * (1 - eps**2 / 4), 1 - eps**2 / 2]])
    largest = np.linalg.norm(np.linalg.matrix_power(step, 5), 2)
    np.testing.assert_allclose(4 / np.pi * np.arctan(1 / largest), 0.8, atol=0.02)


@pytest.mark.parametrize("dimension", [10, 1000])
@pytest.mark.parametrize("algorithm", ["mala", "hmc"])
def test_targets_are_reached_in_many_dimensions(algorithm, dimension):
    """On N(0, I): the acceptance of the step size that was found, measured apart from the tuning."""
    energy = lambda x: 0.5 * jnp.sum(jnp.square(x))  # noqa: E731
    make = {"mala": lambda step: jebm.mala(energy, step), "hmc": lambda step: jebm.hmc(energy, step, 5)}[algorithm]
    x = jax.random.normal(jax.random.key(1), (256, dimension))
    tune = jax.jit(functools.partial(mcmc.tune_step_size, num_steps=300))
    found = tune(jax.random.key(0), make(0.01), x[:40]).step_size
    kernel, keys = make(found), jax.random.split(jax.random.key(2), 256)
    rate = jax.jit(jax.vmap(lambda key, x: kernel.step(key, kernel.init(x))[1].acceptance))(keys, x).mean()
    assert abs(float(rate) - mcmc.tuning.TARGETS[algorithm]) < 0.03


def test_the_rule_of_short_runs():
    x = {"a": jnp.array([[1.0, 2.0], [3.0, 0.0]]), "b": jnp.array([2.0, -1.0])}
    quadratic = lambda x: 0.5 * jnp.sum(x["a"] ** 2) + 2.0 * x["b"] ** 2  # noqa: E731
    mean_square = ((1 + 4 + 64) + (9 + 0 + 16)) / 2
    found = mcmc.short_run_step_size(quadratic, x, temperature=0.5, drift_to_noise=0.2)
    np.testing.assert_allclose(found, 2 * 0.04 * 0.5 * 3 / mean_square, rtol=1e-6)
    drift, noise = found * np.sqrt(mean_square), np.sqrt(2 * found * 0.5 * 3)
    np.testing.assert_allclose(drift, 0.2 * noise, rtol=1e-6)


def test_mistakes():
    with pytest.raises(ValueError, match=r"target 1.2 must lie in \(0, 1\)"):
        mcmc.tune_step_size(jax.random.key(0), jebm.mala(energy(), 0.1), starts(), target=1.2)
    for num_steps in (1, 20.0):
        with pytest.raises(ValueError, match=f"num_steps must be an int of at least 2, got {num_steps}"):
            mcmc.tune_step_size(jax.random.key(0), jebm.mala(energy(), 0.1), starts(), num_steps)
    with pytest.raises(ValueError, match="drift_to_noise 0.0 must be above 0"):
        mcmc.short_run_step_size(energy(), starts(), drift_to_noise=0.0)
