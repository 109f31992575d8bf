"""Energy matching: coupling, paths and chains by hand; the laws of both phases against closed forms and quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.optimize
from helpers.learning_rules import BATCH, KEY, NOISE, PARAMS, function

from jebm import energy, langevin, learning, mcmc
from jebm.learning import matching

SMALL = {"temperature": 0.3, "step_size": 0.4, "num_steps": 4, "contrastive_weight": 0.7, "ramp_start": 0.6}


def test_the_coupling_is_the_cheapest():
    rng = np.random.default_rng(3)
    x, z = ({"a": rng.normal(size=(30, 2)), "b": rng.normal(size=30)} for _ in range(2))
    order = jax.jit(matching.optimal_coupling)(jax.tree.map(jnp.asarray, z), jax.tree.map(jnp.asarray, x))
    costs = ((x["a"][:, None] - z["a"]) ** 2).sum(-1) + (x["b"][:, None] - z["b"]) ** 2
    _, expected = scipy.optimize.linear_sum_assignment(costs)
    np.testing.assert_array_equal(order, expected)


def test_paths_lead_straight_from_coupled_noise_to_the_data():
    paths = matching.transport_paths(KEY, BATCH, NOISE.draw, 0.5)
    start_key, time_key = jax.random.split(KEY)
    drawn = jax.vmap(NOISE.draw)(mcmc.chain_keys(start_key, 6))
    order = matching.optimal_coupling(drawn, BATCH)
    t = np.asarray(jax.random.uniform(time_key, (6,)))
    for name, x in BATCH.items():
        z, at = drawn[name][order], t.reshape(6, *(1,) * (x.ndim - 1))
        np.testing.assert_allclose(paths.points[name], (1 - at) * z + at * x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(paths.velocities[name], x - z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(paths.weights, np.where(t < 0.5, 1, 2 * (1 - t)), rtol=1e-5)
    np.testing.assert_array_equal(matching.transport_paths(KEY, BATCH, NOISE.draw).weights, 1)


def test_the_loss_of_the_flow_is_a_mean_over_all_numbers():
    of = energy.bind(function, PARAMS)
    loss, paths = learning.flow_matching(KEY, of, BATCH, NOISE.draw, cutoff=0.5)
    slopes = jax.vmap(jax.grad(of))(paths.points)
    rows = sum(
        np.square(np.asarray(slopes[name] + paths.velocities[name])).reshape(6, -1).sum(1) for name in ("x", "y")
    )
    np.testing.assert_allclose(loss, np.mean(paths.weights * rows) / 4, rtol=1e-5)


def test_the_second_phase_adds_the_contrast_with_chains_from_data_and_from_noise():
    of = energy.bind(function, PARAMS)
    loss, aux = jax.jit(lambda key: learning.energy_matching(key, of, BATCH, NOISE.draw, **SMALL))(KEY)
    path_key, start_key, chain_key = jax.random.split(KEY, 3)
    flow, _ = learning.flow_matching(path_key, of, BATCH, NOISE.draw, cutoff=0.6)
    fresh = jax.vmap(NOISE.draw)(mcmc.chain_keys(start_key, 6))
    noisy, hot = jnp.array([0.0, 0.0, 0.15, 0.3]), jnp.full(4, 0.3)  # at t = 0, 0.4, 0.8, 1.2
    for i in range(6):
        x = jax.tree.map(lambda a, i=i: a[i], BATCH if i < 3 else fresh)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, jax.tree.map(lambda a, i=i: a[i], aux.starts), x)
        kernel = langevin(of, 0.4, mcmc.table_schedule(hot if i < 3 else noisy))
        end = mcmc.sample(mcmc.chain_keys(chain_key, 6)[i], kernel, x, 4, trace=())[0].position
        jax.tree.map(close, jax.tree.map(lambda a, i=i: a[i], aux.negatives), end)
    data, negatives = (jnp.mean(jax.vmap(of)(x)) for x in (BATCH, aux.negatives))
    np.testing.assert_allclose([aux.energy_data, aux.energy_negative], [data, negatives], rtol=1e-5)
    np.testing.assert_allclose(loss, flow + 0.7 * (data - negatives), rtol=1e-4)
    walked = lambda params: learning.energy_matching(  # noqa: E731
        KEY, energy.bind(function, params), BATCH, NOISE.draw, **SMALL
    )[0]
    by_hand = lambda params: (  # noqa: E731
        learning.flow_matching(path_key, energy.bind(function, params), BATCH, NOISE.draw, cutoff=0.6)[0]
        + 0.7 * jnp.mean(jax.vmap(functools.partial(function, params))(BATCH))
        - 0.7 * jnp.mean(jax.vmap(functools.partial(function, params))(aux.negatives))
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)  # no gradient through the chains
    jax.tree.map(close, jax.jit(jax.grad(walked))(PARAMS), jax.jit(jax.grad(by_hand))(PARAMS))


@pytest.mark.parametrize("wrong", [{"ramp_start": 1.5}, {"temperature": -1.0}, {"num_steps": 0}])
def test_schedules_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("temperature", "maximum")):
        learning.energy_matching(KEY, energy.bind(function, PARAMS), BATCH, NOISE.draw, **{**SMALL, **wrong})


# laws

MEAN, COVARIANCE = np.array([0.9, -0.6]), np.array([[1.3, 0.25], [0.25, 0.7]])


def quadratic(theta, x):
    """``½ xᵀHx - hᵀx`` of θ = (h, H11, H12, H22): every affine field that has a potential."""
    return 0.5 * theta[2] * x[0] ** 2 + theta[3] * x[0] * x[1] + 0.5 * theta[4] * x[1] ** 2 - theta[:2] @ x


def error_of_transport(loss_of):
    """Of the affine map that the field at the loss's minimum makes of time 1, against optimal transport, relative."""
    batches, size = 200, 128
    root = jnp.asarray(np.linalg.cholesky(COVARIANCE), jnp.float32)

    def one(key):
        data_key, key = jax.random.split(key)
        data = jnp.asarray(MEAN, jnp.float32)[None] + jax.random.normal(data_key, (size, 2)) @ root.T
        loss = functools.partial(loss_of, key, data)
        return jax.grad(loss)(jnp.zeros(5)), jax.hessian(loss)(jnp.zeros(5))

    found = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(5), batches))
    slope, curvature = (np.asarray(a, np.float64).mean(0) for a in found)
    h1, h2, a, b, c = -np.linalg.solve(curvature, slope)
    flow = scipy.linalg.expm(np.array([[-a, -b, h1], [-b, -c, h2], [0, 0, 0]]))[:2]
    exact = np.column_stack([scipy.linalg.sqrtm(COVARIANCE).real, MEAN])
    return np.linalg.norm(flow - exact) / np.linalg.norm(exact)


def test_from_one_gaussian_to_another_the_field_is_affine_optimal_transport():
    """The minimum over quadratic potentials, in closed form; pairs that are not coupled lead to another field."""
    normal = lambda key: jax.random.normal(key, (2,))  # noqa: E731
    rule = lambda key, data, theta: learning.flow_matching(key, energy.bind(quadratic, theta), data, normal)[0]  # noqa: E731
    assert error_of_transport(rule) < 0.02

    def uncoupled(key, data, theta):
        start_key, time_key = jax.random.split(key)
        z, t = jax.random.normal(start_key, data.shape), jax.random.uniform(time_key, (len(data), 1))
        paths = matching.Paths((1 - t) * z + t * data, data - z, jnp.ones(len(data)))
        return matching.flow_loss(energy.bind(quadratic, theta), paths)

    assert error_of_transport(uncoupled) > 0.04


GRID = np.linspace(-3, 3, 601)
DENSITY = 0.35 * np.exp(-0.5 * ((GRID + 1) / 0.4) ** 2) / 0.4 + 0.65 * np.exp(-0.5 * ((GRID - 0.8) / 0.5) ** 2) / 0.5
EPSILON = 0.25


def bumps(theta, x):
    """A potential that is linear in θ: bumps, and a well about all of them."""
    centres = jnp.linspace(-2.5, 2.5, 15)
    return theta @ jnp.exp(-0.5 * ((x[0] - centres) / 0.35) ** 2) + 0.5 * EPSILON * x[0] ** 2


def chi_square(theta):
    """``∫ (q - p)²/p`` of q = exp(-V/ε_max) against the mixture, by quadrature."""
    p = DENSITY / DENSITY.sum()
    q = np.exp(-np.asarray(jax.vmap(functools.partial(bumps, theta))(jnp.asarray(GRID[:, None])), np.float64) / EPSILON)
    q /= q.sum()
    inside = p > 1e-6 * p.max()
    return np.sum((q - p)[inside] ** 2 / p[inside])


def fitted(contrastive_weight, num_iterations=600, size=64):
    """θ of both losses by Adam, averaged over the second half, from a potential of zeros."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_iterations))
    normal = lambda key: jax.random.normal(key, (1,))  # noqa: E731

    def iteration(carry, key):
        theta, moments = carry
        which, spread, key = jax.random.split(key, 3)
        left = jax.random.uniform(which, (size, 1)) < 0.35
        data = jnp.where(left, -1.0, 0.8) + jnp.where(left, 0.4, 0.5) * jax.random.normal(spread, (size, 1))
        loss = lambda theta: learning.energy_matching(  # noqa: E731
            key, energy.bind(bumps, theta), data, normal, temperature=EPSILON, step_size=0.03, num_steps=80,
            contrastive_weight=contrastive_weight,
        )[0]  # fmt: skip
        updates, moments = optimizer.update(jax.grad(loss)(theta), moments)
        theta = optax.apply_updates(theta, updates)
        return (theta, moments), theta

    keys = jax.random.split(jax.random.key(2), num_iterations)
    _, thetas = jax.jit(lambda theta: jax.lax.scan(iteration, (theta, optimizer.init(theta)), keys))(jnp.zeros(15))
    return thetas[num_iterations // 2 :].mean(0)


def test_the_second_phase_learns_the_density_of_a_mixture():
    assert chi_square(fitted(100.0)) < 0.1
    assert chi_square(fitted(0.0, num_iterations=200)) > 1.0  # the flow alone is no density
