"""Toy problems: their normalisers and moments by quadrature on a grid, their draws against both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers.laws import accept, ks_test, mean_test, reject

import jebm
from jebm import problems

KEY = jax.random.key(61)

# asymmetric, and of one or two dimensions, where a grid can check them
SMALL = {
    "banana": problems.banana(1.2, 0.7),
    "checkerboard": problems.checkerboard(6),
    "double_well": problems.double_well(3.0, 0.8),
    "eight_gaussians": problems.eight_gaussians(1.5, 0.3),
    "funnel": problems.funnel(2, 0.8),
    "gaussian_mixture": problems.gaussian_mixture(deviations=(0.9, 0.7, 0.3)),
    "lattice_phi4": problems.lattice_phi4(2, -1.0, 0.4),
    "many_wells": problems.many_wells(1),
    "rings": problems.rings(),
    "spiral": problems.spiral(1.5, 0.2),
    "two_moons": problems.two_moons(0.15),
}


@pytest.fixture(scope="module", params=SMALL)
def name(request):
    return request.param


@functools.cache
def answers(name):
    """Log Z, mean, covariance and mean energy by midpoints on a fine grid, in float64."""
    problem = SMALL[name]
    d = problem.dimension
    reach = np.array([9.0, 60.0]) if name == "funnel" else np.full(d, 1.5 * problem.extent)
    count = [20_000] if d == 1 else 2 * [1440 if name in ("banana", "funnel") else 480]
    axes = [m + r * (2 * (np.arange(n) + 0.5) / n - 1) for m, r, n in zip(problem.mean, reach, count, strict=True)]
    if name == "checkerboard":
        axes = 2 * [2 * (2 * (np.arange(1440) + 0.5) / 1440 - 1)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)
    energies = jax.jit(lambda x: jax.lax.map(problem.energy, x, batch_size=4096))(jnp.asarray(points, jnp.float32))
    energies = np.asarray(energies, np.float64)
    mass = np.exp(-energies) * np.prod([axis[1] - axis[0] for axis in axes])
    mean = mass @ points / mass.sum()
    centred = points - mean
    mean_energy = mass @ np.where(mass > 0, energies, 0.0) / mass.sum()
    return np.log(mass.sum()), mean, (mass * centred.T) @ centred / mass.sum(), mean_energy


def test_normaliser_and_moments_are_those_of_a_grid(name):
    problem = SMALL[name]
    log_normalizer, mean, covariance, _ = answers(name)
    np.testing.assert_allclose(problem.log_normalizer, log_normalizer, atol=2e-4)
    scale = np.sqrt(np.trace(covariance))
    np.testing.assert_allclose(problem.mean, mean, atol=1e-3 * scale)
    np.testing.assert_allclose(problem.covariance, covariance, atol=1e-3 * scale**2)


def test_draws_have_the_moments_and_mean_energy(name):
    problem = SMALL[name]
    if problem.draw is None:
        with pytest.raises(ValueError, match="no exact sampler"):
            problem.sample(KEY, 2)
        return
    x = np.asarray(problem.sample(KEY, 2**14), np.float64)
    assert x.shape == (2**14, problem.dimension)
    centred = x - problem.mean
    scale = np.sqrt(np.diag(problem.covariance))
    for i in range(problem.dimension):
        accept(mean_test(x[:, i], problem.mean[i]))
        reject(mean_test(x[:, i], problem.mean[i] + 0.2 * scale[i]))
        for j in range(i + 1):
            accept(mean_test(centred[:, i] * centred[:, j], problem.covariance[i, j]))
    energies = jax.jit(jax.vmap(problem.energy))(jnp.asarray(x, jnp.float32))
    expected = answers(name)[3]
    if name == "checkerboard":  # a constant
        np.testing.assert_allclose(energies, expected, rtol=1e-6)
    else:
        accept(mean_test(energies, expected))


def test_draws_do_not_depend_on_their_number():
    few, many = (problems.banana().sample(KEY, n) for n in (3, 10))
    np.testing.assert_array_equal(few, many[:3])


def test_distributions_of_one_coordinate():
    """A sharper look than moments: the whole distribution function."""
    draws = problems.many_wells(2).sample(KEY, 2**14)
    x = np.linspace(-4.0, 4.0, 40_001)
    mass = np.cumsum(np.exp(-(x**4 - 6 * x**2 - 0.5 * x)))
    accept(ks_test(draws[:, 2], lambda a: np.interp(a, x, mass / mass[-1])))
    accept(ks_test(draws[:, 3], scipy.stats.norm.cdf))
    accept(ks_test(problems.funnel(3).sample(KEY, 2**14)[:, 0] / 3.0, scipy.stats.norm.cdf))
    radius = np.linalg.norm(problems.rings().sample(KEY, 2**14), axis=1)
    r = np.linspace(1e-6, 3.5, 40_001)
    mass = np.cumsum(r * (0.3 * np.exp(-0.5 * ((r - 1.0) / 0.15) ** 2) + 0.7 * np.exp(-0.5 * ((r - 2.2) / 0.15) ** 2)))
    accept(ks_test(radius, lambda a: np.interp(a, r, mass / mass[-1])))


def test_many_wells_and_funnels_in_many_dimensions():
    one, many = problems.many_wells(1), problems.many_wells(5)
    np.testing.assert_allclose(many.log_normalizer, 5 * one.log_normalizer)
    np.testing.assert_allclose(np.diag(many.covariance), np.tile(np.diag(one.covariance), 5))
    x = jnp.arange(10.0) / 7
    np.testing.assert_allclose(many.energy(x), sum(one.energy(x[2 * i : 2 * i + 2]) for i in range(5)), rtol=1e-6)
    np.testing.assert_allclose(problems.funnel(10).covariance[3, 3], np.exp(4.5))
    wide = problems.funnel(4)
    v, rest = 0.7, np.array([0.3, -1.0, 2.0])
    expected = scipy.stats.norm(0, 3).logpdf(v) + scipy.stats.norm(0, np.exp(v / 2)).logpdf(rest).sum()
    np.testing.assert_allclose(wide.energy(jnp.array([v, *rest])), -expected, rtol=1e-6)


def test_the_lattice_without_coupling_is_a_gaussian():
    """As g → 0 the precision is ``(m² + 2) I`` with -1 beside the diagonal, periodically."""
    size, mass = 7, 1.3
    lattice = problems.lattice_phi4(size, mass, 1e-7)
    precision = (mass + 2) * np.eye(size) - np.roll(np.eye(size), 1, 0) - np.roll(np.eye(size), -1, 0)
    np.testing.assert_allclose(lattice.covariance, np.linalg.inv(precision), atol=1e-5)
    expected = 0.5 * size * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    np.testing.assert_allclose(lattice.log_normalizer, expected, rtol=1e-5)


def test_chains_find_the_moments_of_the_lattice():
    lattice = problems.lattice_phi4(6, -1.0, 0.5)
    kernel = jebm.hmc(lattice.energy, 0.25, 5)
    start = jax.random.normal(KEY, (2048, 6))
    state, _ = jebm.sample_chains(KEY, kernel, start, 60, trace=())
    x = np.asarray(state.position, np.float64)
    for k in range(4):
        accept(mean_test(x[:, 0] * x[:, k], lattice.covariance[0, k]))


def test_every_problem_is_in_the_table():
    assert {name: make().dimension for name, make in problems.PROBLEMS.items()} == {
        "banana": 2, "checkerboard": 2, "double_well": 1, "eight_gaussians": 2, "funnel": 10, "gaussian_mixture": 2,
        "lattice_phi4": 16, "many_wells": 32, "rings": 2, "spiral": 2, "two_moons": 2,
    }  # fmt: skip
    assert set(SMALL) == set(problems.PROBLEMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problems.double_well(0.0), "barrier must be above 0"),
        (lambda: problems.gaussian_mixture(weights=(1.0, 2.0)), r"needs means \[k, d\], .* got shapes"),
        (lambda: problems.gaussian_mixture(deviations=(1.0, 0.0, 1.0)), "deviations must be above 0"),
        (lambda: problems.rings((1.0,)), "rings of 1 radii need as many weights, got 2"),
        (lambda: problems.rings(width=0.0), "width must be above 0"),
        (lambda: problems.funnel(1), "dimension must be an int of at least 2, got 1"),
        (lambda: problems.banana(-1.0), "scale must be above 0"),
        (lambda: problems.many_wells(0), "pairs must be an int of at least 1, got 0"),
        (lambda: problems.lattice_phi4(coupling=0.0), "coupling must be above 0"),
        (lambda: problems.checkerboard(5), "squares must be even"),
    ],
)
def test_wrong_inputs_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
