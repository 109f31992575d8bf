"""Energies and their combinators against closed forms on Gaussians that are neither symmetric nor alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jebm
from jebm import energy as energies

pytestmark = pytest.mark.filterwarnings("error")

MEAN_1, MEAN_2 = np.array([1.0, -2.0, 0.5]), np.array([-0.7, 0.4, 3.0])
PRECISION_1 = np.array([[2.0, 0.6, -0.3], [0.6, 1.5, 0.2], [-0.3, 0.2, 0.8]])
PRECISION_2 = np.array([[0.5, -0.1, 0.1], [-0.1, 0.9, -0.4], [0.1, -0.4, 1.1]])
POINTS = np.random.default_rng(0).normal(size=(7, 3)) * 2.0


def first() -> energies.Energy:
    return energies.gaussian(MEAN_1, PRECISION_1)


def second() -> energies.Energy:
    return energies.gaussian(MEAN_2, PRECISION_2)


def quadratic(x, mean, precision):
    return 0.5 * (x - mean) @ precision @ (x - mean)


def assert_same_energy(energy, expected, points=POINTS, up_to_a_constant=False):
    """Values at the points, and gradients there against central differences in float64."""
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(energy)))(jnp.asarray(points, jnp.float32))
    values = np.asarray(values, np.float64)
    wanted = np.array([expected(x) for x in points])
    shift = values[0] - wanted[0] if up_to_a_constant else 0.0
    np.testing.assert_allclose(values, wanted + shift, rtol=3e-6, atol=1e-5)
    step = 1e-5 * np.eye(points.shape[1])
    for x, gradient in zip(points, gradients, strict=True):
        difference = [(expected(x + e) - expected(x - e)) / 2e-5 for e in step]
        np.testing.assert_allclose(gradient, difference, rtol=2e-5, atol=2e-5)


def test_gaussian():
    covariance = np.linalg.inv(PRECISION_1)
    log_z = 1.5 * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(PRECISION_1)[1]
    normal = scipy.stats.multivariate_normal(MEAN_1, covariance)
    assert_same_energy(first(), lambda x: -normal.logpdf(x) - log_z)


def test_gaussian_on_a_pytree_with_diagonal_precisions():
    mean = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(-3.0)}
    energy = energies.gaussian(mean, {"a": jnp.array([2.0, 0.5]), "b": jnp.array(4.0)})
    x = {"a": jnp.array([0.5, 4.0]), "b": jnp.array(-2.5)}
    assert energy(x) == 0.5 * (2.0 * 0.25 + 0.5 * 4.0 + 4.0 * 0.25)


def test_standard_normal_on_a_pytree():
    assert energies.standard_normal({"a": jnp.array([1.0, 2.0]), "b": (jnp.array(-3.0),)}) == 7.0


@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_scale_multiplies_the_precision(factor):
    assert_same_energy(energies.scale(first(), factor), lambda x: quadratic(x, MEAN_1, factor * PRECISION_1))


def test_temper_divides_the_precision():
    assert_same_energy(energies.temper(first(), 2.5), lambda x: quadratic(x, MEAN_1, PRECISION_1 / 2.5))


@pytest.mark.parametrize("weights", [None, (0.3, 1.7)])
def test_sum_adds_precisions(weights):
    w1, w2 = weights or (1.0, 1.0)
    precision = w1 * PRECISION_1 + w2 * PRECISION_2
    mean = np.linalg.solve(precision, w1 * PRECISION_1 @ MEAN_1 + w2 * PRECISION_2 @ MEAN_2)
    energy = energies.sum(first(), second(), weights=weights)
    assert_same_energy(energy, lambda x: quadratic(x, mean, precision), up_to_a_constant=True)
    at_the_mean = w1 * quadratic(mean, MEAN_1, PRECISION_1) + w2 * quadratic(mean, MEAN_2, PRECISION_2)
    np.testing.assert_allclose(energy(jnp.asarray(mean, jnp.float32)), at_the_mean, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_negation_subtracts_precisions_where_that_is_a_density(alpha):
    precision = PRECISION_1 - alpha * PRECISION_2
    assert (np.linalg.eigvalsh(precision).min() > 0) == (alpha == 0.3)  # both sides of normalisability
    mean = np.linalg.solve(precision, PRECISION_1 @ MEAN_1 - alpha * PRECISION_2 @ MEAN_2)
    energy = energies.sum(first(), energies.negate(second(), alpha))
    assert_same_energy(energy, lambda x: quadratic(x, mean, precision), up_to_a_constant=True)
    # away from the stationary point along the weakest direction the energy rises iff it is a density
    direction = np.linalg.eigh(precision)[1][:, 0]
    far, near = (energy(jnp.asarray(mean + r * direction, jnp.float32)) for r in (100.0, 1.0))
    assert (far > near) == (alpha == 0.3)


def test_negation_by_default_flips_the_sign():
    x = jnp.asarray(POINTS[0], jnp.float32)
    assert energies.negate(first())(x) == -first()(x)


LOG_Z = [1.5 * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(p)[1] for p in (PRECISION_1, PRECISION_2)]


def test_mixture_of_unequal_normalisers():
    assert abs(LOG_Z[0] - LOG_Z[1]) > 0.5
    weights = [0.2, 0.8]
    normals = [
        scipy.stats.multivariate_normal(mean, np.linalg.inv(precision))
        for mean, precision in ((MEAN_1, PRECISION_1), (MEAN_2, PRECISION_2))
    ]

    def expected(x):
        return -np.log(sum(w * normal.pdf(x) for w, normal in zip(weights, normals, strict=True)))

    energy = energies.mixture([first(), second()], weights, LOG_Z)
    assert_same_energy(energy, expected)
    # without the normalisers the weights are wrong: not a constant apart
    wrong = energies.mixture([first(), second()], weights, [0.0, 0.0])
    gaps = jax.vmap(wrong)(jnp.asarray(POINTS, jnp.float32)) - np.array([expected(x) for x in POINTS])
    assert np.ptp(gaps) > 0.3


def test_mixture_with_a_weight_of_zero_is_the_other_component():
    energy = energies.mixture([first(), second()], [0.0, 1.0], LOG_Z)
    assert_same_energy(energy, lambda x: quadratic(x, MEAN_2, PRECISION_2) + LOG_Z[1])


def test_condition_is_the_posterior_of_a_noisy_copy():
    sigma, reference = 0.6, np.array([0.3, -1.0, 2.0])
    precision = PRECISION_1 + np.eye(3) / sigma**2
    mean = np.linalg.solve(precision, PRECISION_1 @ MEAN_1 + reference / sigma**2)
    energy = energies.condition(first(), jnp.asarray(reference), 1 / (2 * sigma**2))
    assert_same_energy(energy, lambda x: quadratic(x, mean, precision), up_to_a_constant=True)


def test_condition_with_a_distance():
    energy = energies.condition(first(), 2.0, 3.0, lambda x, reference: jnp.abs(x[0] - reference))
    x = np.array([-1.0, 2.0, 0.3])
    np.testing.assert_allclose(energy(jnp.asarray(x)), quadratic(x, MEAN_1, PRECISION_1) + 9.0, rtol=1e-6)


GENERATOR = np.array([[1.0, -0.4], [0.3, 2.0], [-1.2, 0.5]])
OFFSET = np.array([0.2, -0.1, 0.4])
LATENTS = np.random.default_rng(1).normal(size=(5, 2))


def affine(matrix, offset, z):
    return matrix @ z + offset


@pytest.mark.parametrize("with_prior", [False, True])
def test_latent_energy_of_an_affine_generator(with_prior):
    precision = GENERATOR.T @ PRECISION_1 @ GENERATOR + with_prior * np.eye(2)
    mean = np.linalg.solve(precision, GENERATOR.T @ PRECISION_1 @ (MEAN_1 - OFFSET))
    generator = energies.bind(affine, jnp.asarray(GENERATOR), jnp.asarray(OFFSET))
    energy = energies.latent(first(), generator, energies.standard_normal if with_prior else None)
    assert_same_energy(energy, lambda z: quadratic(z, mean, precision), LATENTS, up_to_a_constant=True)
    zero = quadratic(OFFSET, MEAN_1, PRECISION_1)
    np.testing.assert_allclose(energy(jnp.zeros(2)), zero, rtol=1e-6)


def test_hat_energy_of_generator_plus_residual():
    joint = np.hstack([GENERATOR, np.eye(3)])
    energy = energies.hat(first(), energies.bind(affine, jnp.asarray(GENERATOR), jnp.asarray(OFFSET)))
    points = np.random.default_rng(2).normal(size=(5, 5))
    assert_same_energy(
        lambda x: energy({"z": x[:2], "y": x[2:]}),
        lambda x: quadratic(joint @ x + OFFSET, MEAN_1, PRECISION_1),
        points,
    )


def test_annealed_energies_are_read_at_their_step():
    annealed = energies.anneal(lambda scales, step, x: scales[step] * jnp.sum(x**2), jnp.array([1.0, 3.0]))
    assert [energies.at_step(annealed, jnp.int32(k))(jnp.array([2.0])) for k in (0, 1)] == [4.0, 12.0]
    assert energies.at_step(energies.standard_normal, jnp.int32(5)) is energies.standard_normal


def test_values_are_float32_at_least_and_sums_of_half_precision_do_not_saturate():
    x = jnp.ones(4096, jnp.bfloat16)  # bfloat16 counts by ones only to 256
    assert energies.standard_normal(x) == 2048.0
    assert energies.squared_distance(x, jnp.zeros_like(x)) == 4096.0
    energy = energies.scale(lambda x: x[0], 1.0)
    assert energy(x).dtype == jnp.float32


def test_float64_is_kept():
    with jax.enable_x64(True):
        x = jnp.asarray([1.0, 1e-9, 3.0])
        for energy, expected in (
            (energies.standard_normal, 5.0 + 5e-19),
            (energies.condition(energies.standard_normal, x - 1e-7, 0.5), 5.0 + 1.5e-14),
            (energies.sum(energies.standard_normal, energies.standard_normal, weights=[0.1, 0.2]), 1.5),
        ):
            assert energy(x).dtype == jnp.float64
            np.testing.assert_allclose(energy(x), expected, rtol=1e-15)


def all_combinators(scalar, vector):
    """One energy through every combinator, with ``scalar`` and ``vector`` among the parameters."""
    scalar, vector = jnp.asarray(scalar), jnp.asarray(vector, jnp.float32)
    base = energies.gaussian(vector, jnp.diag(scalar + jnp.arange(3.0)))
    generator = energies.bind(affine, scalar * jnp.asarray(GENERATOR), vector)
    mixed = energies.mixture([base, energies.scale(base, scalar)], jnp.array([0.3, 0.7]), scalar * jnp.ones(2))
    near = energies.condition(energies.sum(mixed, energies.negate(base, 0.1 * scalar)), vector, scalar)
    tempered = energies.temper(energies.latent(near, generator, energies.standard_normal), scalar)
    return energies.sum(tempered, weights=scalar[None])


def test_new_parameters_retrace_nothing():
    traces = []

    @jax.jit
    def evaluate(energy, z):
        traces.append(1)
        return energy(z)

    z = jnp.array([0.3, -0.2])
    values = [evaluate(all_combinators(*given), z) for given in ((0.7, MEAN_1), (1.9, MEAN_2))]
    assert len(traces) == 1
    assert values[0] != values[1]
    np.testing.assert_allclose(values[0], all_combinators(0.7, MEAN_1)(z), rtol=1e-5)
    np.testing.assert_allclose(values[1], all_combinators(1.9, MEAN_2)(z), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: energies.sum(), "at least one energy"),
        (lambda: energies.sum(first(), weights=[1.0, 2.0]), "of 1 energies"),
        (lambda: energies.mixture([], [], []), "at least one energy"),
        (lambda: energies.mixture([first(), second()], [1.0], [0.0, 0.0]), "of 2 energies"),
        (lambda: energies.mixture([first(), second()], [0.5, 0.5], [0.0]), "of 2 energies"),
        (lambda: energies.mixture([first(), second()], [1.5, -0.5], [0.0, 0.0]), "at least 0"),
        (lambda: energies.mixture([first(), second()], [0.0, 0.0], LOG_Z), "must not all be 0"),
        (lambda: energies.mixture([first(), second()], jnp.zeros(2), LOG_Z), "must not all be 0"),
        (lambda: energies.mixture([first(), second()], [np.nan, 1.0], LOG_Z), "at least 0"),
        (
            lambda: energies.gaussian(jnp.zeros(2), jnp.ones(2))(jnp.zeros((5, 2))),
            r"one example of shapes \(2,\), as the mean, got \(5, 2\)",
        ),
        (lambda: first()(jnp.zeros((3, 3))), "one example of shapes"),
        (lambda: energies.gaussian({"a": jnp.zeros(2)}, {"a": 1.0})({"a": jnp.zeros(1)}), "one example of shapes"),
        (lambda: energies.gaussian(jnp.zeros(2), jnp.ones((2, 3))), "or be its matrix"),
        (lambda: energies.gaussian(jnp.zeros(2), jnp.ones(3)), "must broadcast to the mean"),
        (lambda: energies.gaussian(0.0, jnp.ones(3)), "must broadcast to the mean"),
        (lambda: energies.gaussian({"a": jnp.zeros(2)}, 1.0), "must broadcast to the mean"),
        (lambda: energies.temper(first(), 0.0), "above 0"),
        (lambda: energies.scale(energies.anneal(lambda k, x: k * x), 2.0), "must be a function"),
        (lambda: energies.latent(first(), jnp.eye(3)), "must be a function"),
        (lambda: energies.condition(first(), jnp.zeros((2, 3)), 1.0)(jnp.zeros(3)), "structure and shapes"),
        (lambda: energies.condition(first(), {"a": jnp.zeros(3)}, 1.0)(jnp.zeros(3)), "structure and shapes"),
        (
            lambda: energies.hat(first(), lambda z: z)({"z": jnp.zeros(3), "y": jnp.zeros(1)}),
            "structure and shapes",
        ),
        (lambda: energies.scale(lambda x: x, 1.0)(jnp.zeros(3)), "one scalar for one example"),
    ],
)
def test_wrong_inputs_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_public_names_exist():
    assert jebm.energy is energies
    assert all(hasattr(energies, name) for name in energies.__all__)
