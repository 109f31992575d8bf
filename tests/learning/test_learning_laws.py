"""Every learning rule is at rest at its own optimum, known in closed form on Gaussians, and at no other place.

The energy is ``½ xᵀΛx - bᵀx + c``, an exponential family. At each rule's optimum the expectation of the gradient is 0:
gradients of batches of one are independent, and are tested against that.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from helpers.laws import Move, accept, exact_law, mean_vector_test, reject

from jebm import energy, langevin, learning, mala, mcmc
from jebm.mcmc import bank

pytestmark = pytest.mark.filterwarnings("error")

N = 2**15
MEAN = np.array([0.7, -0.4])
COVARIANCE = np.array([[1.3, 0.3], [0.3, 0.8]])
NOISE = learning.gaussian_noise(jnp.array([0.2, 0.5]), 1.4)
STEP, STEPS = 0.2, 3


def quadratic(theta, x):
    """Of θ = (b, Λ11, Λ12, Λ22) and, where it is there, c."""
    linear = 0.5 * theta[2] * x[0] ** 2 + theta[3] * x[0] * x[1] + 0.5 * theta[4] * x[1] ** 2 - theta[:2] @ x
    return linear + theta[5] if theta.shape == (6,) else linear


def of_level(theta, level, x):
    return quadratic(theta[level], x)


def theta_of(precision, mean):
    """θ of N(mean, precision⁻¹)."""
    return np.concatenate([precision @ mean, precision[np.triu_indices(2)]])


def law_of(theta):
    """The precision and the mean."""
    precision = np.array([[theta[2], theta[3]], [theta[3], theta[4]]])
    return precision, np.linalg.solve(precision, theta[:2])


LIKELIHOOD = theta_of(np.linalg.inv(COVARIANCE), MEAN)


def kernel_of(energy, step=STEP):
    return langevin(energy, step)


def drawn(seed, mean=MEAN, covariance=COVARIANCE):
    return jnp.asarray(np.random.default_rng(seed).multivariate_normal(mean, covariance, N), jnp.float32)


def gradients(rule, theta, data, *more, family=quadratic):
    """The gradient of each batch of one, [n, parameters]."""
    keys = mcmc.chain_keys(jax.random.key(11), N)
    return np.asarray(compiled(rule, family)(jnp.asarray(theta, jnp.float32), keys, data, *more))


@functools.cache
def compiled(rule, family):
    def of_one(theta, key, *rows):
        batches = [row[None] for row in rows]
        return jax.grad(lambda theta: rule(key, energy.bind(family, theta), *batches)[0])(theta).ravel()

    return jax.jit(lambda theta, *rows: jax.vmap(functools.partial(of_one, theta))(*rows))


def solved(moments, mean=MEAN, covariance=COVARIANCE):
    """θ at which ``moments(precision, b)`` are the data's."""

    def off(theta):
        precision = np.array([[theta[2], theta[3]], [theta[3], theta[4]]])
        found_mean, found = moments(precision, theta[:2])
        return np.concatenate([found_mean - mean, (found - covariance)[np.triu_indices(2)]])

    result = scipy.optimize.root(off, theta_of(np.linalg.inv(covariance), mean), tol=1e-12)
    assert result.success
    return result.x


def fixed_point(mean, covariance, step=STEP, steps=STEPS):
    """θ at which chains from starts with these moments end with those of the data."""

    def moments(precision, b):
        move = Move([step, step], precision, np.linalg.solve(precision, b), 1.0)
        return exact_law([move] * steps, mean, covariance)[:2]

    return solved(moments)


def denoised_fixed_point(mean, covariance, scale, step, steps=STEPS):
    """The same for chains on the energy given a noisy copy x̃, from x̃: ``x' = x - η((Λ + σ⁻²) x - b - σ⁻² x̃)``."""

    def moments(precision, b):
        joint = precision + np.eye(2) / scale**2
        a = np.eye(2) - step * joint
        gain, offset, noise = np.eye(2), np.zeros(2), np.zeros((2, 2))
        for _ in range(steps):
            gain, offset = a @ gain + step / scale**2 * np.eye(2), a @ offset + step * b
            noise = a @ noise @ a.T + 2 * step * np.eye(2)
        return gain @ mean + offset, gain @ (covariance + scale**2 * np.eye(2)) @ gain.T + noise

    return solved(moments, mean, covariance)


# --- by chains ----------------------------------------------------------------------------------------------------


def test_the_fixed_points_are_those_of_the_literature():
    """On one dimension: ``a^{2K}(v0 - v∞) + v∞ = s²``, and ``(1 - sqrt(1 - 2η/s²))/η`` where the chains start at s²."""
    variances, vectors = np.linalg.eigh(COVARIANCE)
    precision, _ = law_of(fixed_point(MEAN, COVARIANCE))
    expected = (1 - np.sqrt(1 - 2 * STEP / variances)) / STEP
    np.testing.assert_allclose(vectors.T @ precision @ vectors, np.diag(expected), atol=1e-8)
    precision, _ = law_of(fixed_point(np.zeros(2), 1.7 * np.eye(2)))
    a = np.diag(1 - STEP * vectors.T @ precision @ vectors)
    stationary = 2 * STEP / (1 - a**2)
    np.testing.assert_allclose(a ** (2 * STEPS) * (1.7 - stationary) + stationary, variances, rtol=1e-8)


@pytest.mark.parametrize("steps", [1, 3])
def test_contrastive_divergence_rests_where_the_chains_law_is_that_of_the_data(steps):
    rule = functools.partial(learning.contrastive_divergence, kernel_of=kernel_of, num_steps=steps)
    accept(mean_vector_test(gradients(rule, fixed_point(MEAN, COVARIANCE, steps=steps), drawn(0))))
    reject(mean_vector_test(gradients(rule, LIKELIHOOD, drawn(0))))


def test_with_adjusted_chains_that_is_maximum_likelihood():
    rule = functools.partial(learning.contrastive_divergence, kernel_of=lambda e: mala(e, STEP), num_steps=STEPS)
    accept(mean_vector_test(gradients(rule, LIKELIHOOD, drawn(1))))
    reject(mean_vector_test(gradients(rule, fixed_point(MEAN, COVARIANCE), drawn(1))))


def test_short_runs_rest_where_their_ends_have_the_datas_moments():
    rule = functools.partial(
        learning.short_run_likelihood, kernel_of=kernel_of, num_steps=STEPS, start=NOISE.draw
    )  # fmt: skip
    optimum = fixed_point([0.2, 0.5], 1.4**2 * np.eye(2))
    accept(mean_vector_test(gradients(rule, optimum, drawn(2))))
    for other in (
        LIKELIHOOD,
        fixed_point([0.2, 0.5], 1.4**2 * np.eye(2), steps=STEPS + 1),
        fixed_point(MEAN, COVARIANCE),
    ):
        reject(mean_vector_test(gradients(rule, other, drawn(2))))


def persistent(key, energy, batch, row, rejuvenation, step=STEP):
    return learning.persistent_contrastive_divergence(
        key, energy, batch, bank.init(row), functools.partial(kernel_of, step=step), STEPS, NOISE.draw,
        rejuvenation=rejuvenation,
    )  # fmt: skip


def test_persistent_chains_rest_where_the_bank_keeps_the_datas_moments():
    rejuvenation = 0.3
    mean = 0.7 * MEAN + 0.3 * np.array([0.2, 0.5])
    second = 0.7 * (COVARIANCE + np.outer(MEAN, MEAN))
    second += 0.3 * (1.4**2 * np.eye(2) + np.outer([0.2, 0.5], [0.2, 0.5]))
    optimum = fixed_point(mean, second - np.outer(mean, mean))
    rule = functools.partial(persistent, rejuvenation=rejuvenation)
    accept(mean_vector_test(gradients(rule, optimum, drawn(3), drawn(4))))
    for other in (LIKELIHOOD, fixed_point(MEAN, COVARIANCE)):
        reject(mean_vector_test(gradients(rule, other, drawn(3), drawn(4))))


def test_persistent_chains_of_small_steps_are_maximum_likelihood():
    for step, verdict in ((1e-3, accept), (STEP, reject)):
        rule = functools.partial(persistent, rejuvenation=0.0, step=step)
        verdict(mean_vector_test(gradients(rule, LIKELIHOOD, drawn(5), drawn(6))))


def at_scale(energy, scale):
    return langevin(energy, 0.2 * scale**2)


def test_recovery_rests_where_denoised_data_have_the_datas_moments():
    rule = functools.partial(learning.recovery_likelihood, kernel_of=at_scale, num_steps=STEPS, noise_scale=0.8)
    optimum = denoised_fixed_point(MEAN, COVARIANCE, 0.8, 0.2 * 0.8**2)
    accept(mean_vector_test(gradients(rule, optimum, drawn(7))))
    for other in (LIKELIHOOD, denoised_fixed_point(MEAN, COVARIANCE, 0.8, 0.2 * 0.8**2, steps=1)):
        reject(mean_vector_test(gradients(rule, other, drawn(7))))


def test_recovery_by_exact_samples_is_maximum_likelihood():
    rule = functools.partial(
        learning.recovery_likelihood, kernel_of=lambda e, scale: mala(e, 0.5 * scale**2), num_steps=30, noise_scale=0.8
    )
    accept(mean_vector_test(gradients(rule, LIKELIHOOD, drawn(8))))
    reject(mean_vector_test(gradients(rule, 1.1 * LIKELIHOOD, drawn(8))))


def test_diffusion_recovery_rests_at_the_law_of_each_level():
    scales = np.array([0.4, 0.7])
    rule = functools.partial(
        learning.diffusion_recovery_likelihood, kernel_of=at_scale, num_steps=STEPS, noise_scales=jnp.asarray(scales)
    )
    optima, left = [], 1.0
    for scale in scales:
        kept = 1 - scale**2
        covariance = kept * (left * COVARIANCE + (1 - left) * np.eye(2))
        optima.append(denoised_fixed_point(np.sqrt(kept * left) * MEAN, covariance, scale, 0.2 * scale**2))
        left *= kept
    accept(mean_vector_test(gradients(rule, np.stack(optima), drawn(9), family=of_level)))
    reject(mean_vector_test(gradients(rule, np.stack(optima[::-1]), drawn(9), family=of_level)))
    reject(mean_vector_test(gradients(rule, np.stack([optima[0], LIKELIHOOD]), drawn(9), family=of_level)))


# --- without chains -----------------------------------------------------------------------------------------------


def smoothed(scale):
    return theta_of(np.linalg.inv(COVARIANCE + scale**2 * np.eye(2)), MEAN)


def test_denoising_score_matching_learns_the_smoothed_law():
    rule = functools.partial(learning.denoising_score_matching, noise_scale=0.7)
    accept(mean_vector_test(gradients(rule, smoothed(0.7), drawn(10))))
    for other in (LIKELIHOOD, smoothed(0.8)):
        reject(mean_vector_test(gradients(rule, other, drawn(10))))


def test_its_least_loss_is_what_noise_leaves():
    """``σ²/2 Σ_i (1/σ² - 1/(s_i + σ²))`` over the variances s_i."""
    scale, x = 0.7, drawn(11)
    loss = jax.vmap(
        lambda key, x: learning.denoising_score_matching(
            key, energy.bind(quadratic, jnp.asarray(smoothed(scale), jnp.float32)), x[None], scale
        )[0]
    )
    values = np.asarray(loss(mcmc.chain_keys(jax.random.key(0), N), x))[:, None]
    variances = np.linalg.eigvalsh(COVARIANCE)
    least = 0.5 * np.sum(1 - scale**2 / (variances + scale**2))
    accept(mean_vector_test(values, least))
    reject(mean_vector_test(values, 1.05 * least))


def test_many_levels_learn_the_law_smoothed_by_each():
    scales = [0.3, 0.9]
    rule = functools.partial(learning.multilevel_denoising_score_matching, noise_scales=jnp.asarray(scales))
    theta = np.stack([smoothed(scale) for scale in scales])
    accept(mean_vector_test(gradients(rule, theta, drawn(12), family=of_level)))
    reject(mean_vector_test(gradients(rule, theta[::-1], drawn(12), family=of_level)))


@pytest.mark.parametrize("slices", [1, 3])
def test_sliced_score_matching_learns_the_datas_law(slices):
    rule = functools.partial(learning.sliced_score_matching, num_slices=slices)
    accept(mean_vector_test(gradients(rule, LIKELIHOOD, drawn(13))))
    for other in (smoothed(0.2), 1.05 * LIKELIHOOD):
        reject(mean_vector_test(gradients(rule, other, drawn(13))))


@pytest.mark.parametrize("ratio", [1, 3])
def test_noise_contrastive_estimation_learns_the_normaliser(ratio):
    rule = functools.partial(learning.noise_contrastive_estimation, noise=NOISE, ratio=ratio)
    log_normalizer = np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(COVARIANCE)[1]
    constant = log_normalizer + 0.5 * MEAN @ np.linalg.solve(COVARIANCE, MEAN)
    accept(mean_vector_test(gradients(rule, [*LIKELIHOOD, constant], drawn(14))))
    reject(mean_vector_test(gradients(rule, [*LIKELIHOOD, constant + 0.05], drawn(14))))
    reject(mean_vector_test(gradients(rule, [*(1.1 * LIKELIHOOD), constant], drawn(14))))


@pytest.mark.parametrize("negatives", [1, 5])
def test_energy_discrepancy_learns_the_datas_law(negatives):
    rule = functools.partial(learning.energy_discrepancy, noise_scale=0.8, num_negatives=negatives)
    accept(mean_vector_test(gradients(rule, LIKELIHOOD, drawn(16))))
    for other in (smoothed(0.3), 1.1 * LIKELIHOOD, LIKELIHOOD + np.array([0.1, 0.0, 0.0, 0.0, 0.0])):
        reject(mean_vector_test(gradients(rule, other, drawn(16))))


def test_the_known_noise_is_normalised():
    grid = jnp.linspace(-9.0, 9.0, 400)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    mass = np.exp(-np.asarray(jax.vmap(NOISE.energy)(points), np.float64)).sum() * float(grid[1] - grid[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-4)
    draws = np.asarray(jax.vmap(NOISE.draw)(mcmc.chain_keys(jax.random.key(4), N)))
    accept(mean_vector_test(draws, [0.2, 0.5]))
    accept(mean_vector_test((draws - [0.2, 0.5]) ** 2, 1.4**2))


# --- trained ------------------------------------------------------------------------------------------------------


def divergence(one, other):
    """KL of the Gaussians of two θ."""
    (p, m), (q, k) = law_of(one), law_of(other)
    ratio = q @ np.linalg.inv(p)
    return 0.5 * (np.trace(ratio) - 2 - np.linalg.slogdet(ratio)[1] + (m - k) @ q @ (m - k))


def test_optax_and_persistent_chains_end_at_the_fixed_point_not_at_the_likelihood():
    step, data = 0.3, drawn(15)
    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 300))

    def iterate(carry, key):
        theta, state, chains = carry
        batch_key, key = jax.random.split(key)

        def objective(theta):
            return learning.persistent_contrastive_divergence(
                key, energy.bind(quadratic, theta), jax.random.choice(batch_key, data, (2048,)), chains,
                functools.partial(kernel_of, step=step), 2, NOISE.draw, rejuvenation=0.0,
            )  # fmt: skip

        gradient, aux = jax.grad(objective, has_aux=True)(theta)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(theta, updates), state, aux.bank), None

    theta = jnp.array([0.0, 0.0, 0.5, 0.0, 0.5])
    chains = bank.init(jax.vmap(NOISE.draw)(mcmc.chain_keys(jax.random.key(1), 4096)))
    keys = jax.random.split(jax.random.key(2), 300)
    (theta, _, chains), _ = jax.jit(lambda *carry: jax.lax.scan(iterate, carry, keys))(
        theta, optimizer.init(theta), chains
    )
    optimum = fixed_point(MEAN, COVARIANCE, step=step)
    assert divergence(LIKELIHOOD, optimum) > 0.04
    assert divergence(np.asarray(theta, np.float64), optimum) < 0.01
    assert (chains.ages == 300).all()  # chains were carried on, none started anew
