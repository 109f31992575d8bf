"""The calibrated posterior on probabilistic PCA, where posterior, chain and evidence are known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.laws import Move, accept, exact_law, gaussian_test, reject
from scipy.stats import multivariate_normal

from jebm.energy import bind
from jebm.methods.ec import posterior
from jebm.methods.ec.calibration import calibration_loss, dual_step, noise_floor, tolerance
from jebm.methods.ec.posterior import PosteriorCalibrationConfig, calibrate_posterior

RNG = np.random.default_rng(2)
D, LATENT, VARIANCE = 4, 2, 0.3
WEIGHTS, OFFSET = RNG.standard_normal((D, LATENT)), RNG.standard_normal(D)
PRECISION = np.eye(LATENT) + WEIGHTS.T @ WEIGHTS / VARIANCE  # of p(z|x)


def affine(weights, offset, z):
    return weights @ z + offset


DECODER = bind(affine, jnp.asarray(WEIGHTS, jnp.float32), jnp.asarray(OFFSET, jnp.float32))


def posterior_mean(x):
    return np.linalg.solve(PRECISION, WEIGHTS.T @ (x - OFFSET) / VARIANCE)


CONFIG = PosteriorCalibrationConfig(num_steps=6, step_size=0.02)


def run(config, start, x, n=8192):
    z = jnp.tile(jnp.asarray(start, jnp.float32), (n, 1))
    return calibrate_posterior(
        jax.random.key(4), DECODER, jnp.tile(jnp.asarray(x, jnp.float32), (n, 1)), z, VARIANCE, config
    )


def law(config, start, x):
    moves = [Move([config.step_size / 2] * LATENT, PRECISION, posterior_mean(x), 1.0)] * config.num_steps
    return exact_law(moves, start, np.zeros((LATENT, LATENT)))[:2]


def test_the_chain_has_its_exact_law():
    start, x = np.array([0.7, -1.1]), RNG.standard_normal(D)
    accept(gaussian_test(run(CONFIG, start, x), *law(CONFIG, start, x)))
    for wrong in ({"step_size": 0.024}, {"num_steps": 5}, {"pull": 20.0}):
        reject(gaussian_test(run(dataclasses.replace(CONFIG, **wrong), start, x), *law(CONFIG, start, x)))


def test_the_pull_acts_beyond_its_hinge_and_fades():
    """On ``½‖z‖²`` alone, with the noise that the same key gives to shorter chains without a pull."""
    config = PosteriorCalibrationConfig(num_steps=4, step_size=0.3, pull=1.5, hinge=0.4)
    start, x = np.random.default_rng(5).standard_normal((64, LATENT)).astype(np.float32), jnp.zeros((64, D))

    def end(num_steps, pull):
        other = dataclasses.replace(config, num_steps=num_steps, pull=pull)
        still = bind(affine, jnp.zeros((D, LATENT)), jnp.zeros(D))
        return np.asarray(calibrate_posterior(jax.random.key(1), still, x, jnp.asarray(start), 1.0, other))

    free, z, pulled = [start, *(end(k, 0.0) for k in (1, 2, 3, 4))], start, []
    for k in range(4):
        far = np.square(z - start).sum(1, keepdims=True) > 0.4
        slope = z + 2 * 1.5 * (3 - k) / 4 * (z - start) * far
        z = z - 0.15 * slope + free[k + 1] - 0.85 * free[k]
        pulled.append(far.mean())
    np.testing.assert_allclose(end(4, 1.5), z, atol=1e-5)
    assert pulled[0] == 0
    assert 0.05 < pulled[1] < 0.95


def test_the_multiplier_stays_in_its_range():
    config = PosteriorCalibrationConfig(tolerance=0.05, dual_rate=0.1, dual_max=3.0)
    for dual, loss, expected in ((2.0, 1.05, 2.1), (2.99, 50.0, 3.0), (1e-4, 0.0, 0.0)):
        found = dual_step(jnp.float32(dual), jnp.float32(loss), config, LATENT)
        assert float(found) == pytest.approx(expected)


def test_the_potential_is_that_of_the_posterior():
    x, z = RNG.standard_normal(D), RNG.standard_normal((2, LATENT))
    energy = posterior.posterior_energy(DECODER, jnp.asarray(x, jnp.float32), VARIANCE)
    u = [float(energy(jnp.asarray(row, jnp.float32))) for row in z]
    true = multivariate_normal(posterior_mean(x), np.linalg.inv(PRECISION))
    assert u[0] - u[1] == pytest.approx(true.logpdf(z[1]) - true.logpdf(z[0]), rel=1e-4)


def stationary_distance(config):
    """E ‖z_c - z_q‖² of a chain that starts in the exact posterior."""
    a = np.eye(LATENT) - config.step_size / 2 * PRECISION
    moved = np.linalg.matrix_power(a, config.num_steps) - np.eye(LATENT)
    noise = sum(np.trace(np.linalg.matrix_power(a, 2 * j)) for j in range(config.num_steps))
    return np.trace(moved @ np.linalg.inv(PRECISION) @ moved.T) + config.step_size * noise


def test_from_the_posterior_the_chain_moves_by_less_than_the_floor():
    n, x = 20_000, RNG.standard_normal(D)
    z = jnp.asarray(RNG.multivariate_normal(posterior_mean(x), np.linalg.inv(PRECISION), n), jnp.float32)
    tiled = jnp.tile(jnp.asarray(x, jnp.float32), (n, 1))
    loss = float(calibration_loss(calibrate_posterior(jax.random.key(0), DECODER, tiled, z, VARIANCE, CONFIG), z))
    assert loss == pytest.approx(stationary_distance(CONFIG), rel=0.03)
    assert loss < 0.95 * noise_floor(CONFIG, LATENT)
    assert tolerance(CONFIG, LATENT) == pytest.approx(1.085 * 6 * 0.02 * LATENT)


def test_gradients_flow_into_the_encoder_alone():
    x = jnp.asarray(RNG.standard_normal((3, D)), jnp.float32)
    z = jnp.asarray(RNG.standard_normal((3, LATENT)), jnp.float32)

    def loss(z, x, weights):
        decoder = bind(affine, weights, jnp.zeros(D))
        calibrated = calibrate_posterior(jax.random.key(0), decoder, x, z, VARIANCE, CONFIG)
        return calibration_loss(calibrated, z), calibrated

    gradients, calibrated = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(z, x, jnp.asarray(WEIGHTS, jnp.float32))
    np.testing.assert_allclose(gradients[0], 2 * (z - calibrated) / 3, atol=1e-6)
    assert not np.any(gradients[1])
    assert not np.any(gradients[2])


def train(num_steps=1500, **settings):
    """A linear encoder with a diagonal covariance, trained on the ELBO under the constraint; from a wrong start.

    Returns:
        Its mean bound on the log-evidence of held-out data in nats, that evidence, and μ_z at the end.
    """
    config = dataclasses.replace(CONFIG, dual_rate=0.5, **settings)
    covariance = WEIGHTS @ WEIGHTS.T + VARIANCE * np.eye(D)
    factor = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)
    decode = jax.vmap(DECODER)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))

    def data(key, n):
        return jax.random.normal(key, (n, D)) @ factor.T + jnp.asarray(OFFSET, jnp.float32)[None]

    def bound(params, key, x):
        mu = (x - jnp.asarray(OFFSET, jnp.float32)[None]) @ params["weights"]
        logvar = jnp.broadcast_to(params["logvar"], mu.shape)
        z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape)
        return posterior.evidence_bound(x, decode(z), mu, logvar, VARIANCE), z

    def iteration(carry, step):
        params, state, dual = carry
        data_key, latent_key, chain_key = jax.random.split(jax.random.fold_in(jax.random.key(0), step), 3)
        x = data(data_key, 128)

        def loss(params):
            elbo, z = bound(params, latent_key, x)
            distance = calibration_loss(calibrate_posterior(chain_key, DECODER, x, z, VARIANCE, config), z)
            return -elbo.mean() + dual * distance, distance

        gradients, distance = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        dual = dual_step(dual, distance, config, LATENT)
        return (optax.apply_updates(params, updates), state, dual), None

    params = {"weights": jnp.zeros((D, LATENT)), "logvar": jnp.zeros(LATENT)}
    carry = (params, optimizer.init(params), jnp.asarray(config.dual_initial))
    (params, _, dual), _ = jax.jit(lambda carry: jax.lax.scan(iteration, carry, jnp.arange(num_steps)))(carry)
    x = data(jax.random.key(9), 20_000)
    elbo = float(bound(params, jax.random.key(10), x)[0].mean())
    evidence = multivariate_normal(OFFSET, covariance).logpdf(np.asarray(x, np.float64)).mean()
    return elbo, float(evidence), float(dual)


def test_the_gap_of_the_bound_closes_to_its_known_value():
    """The best diagonal Gaussian for p(z|x) has the inverse diagonal of its precision for variances."""
    gap = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
    assert gap > 0.02  # the posterior is correlated: mean field cannot close it wholly
    elbo, evidence, dual = train(dual_initial=5.0)
    assert dual == 0.0  # the floor's rule lets the constraint go where the posterior is reached
    assert evidence - elbo == pytest.approx(gap, abs=0.03)
    # an ε_z below what the exact posterior reaches keeps μ_z up, and the narrowed encoder pays for it
    held, evidence, dual = train(dual_initial=5.0, tolerance=0.5 * stationary_distance(CONFIG))
    assert dual > 5.0
    assert evidence - held > gap + 0.1
