"""Annealed importance sampling against partition functions that are known, and a planted mistake that must show."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jebm import evaluation
from jebm.data import Source, to_float
from jebm.energy import bind
from jebm.methods.base import Method
from jebm.metrics import annealed_importance as ais

MEAN, PRECISION = jnp.array([1.0, -0.5, 0.2]), jnp.array([[4.0, 1.0, 0.0], [1.0, 1.0, 0.2], [0.0, 0.2, 9.0]])


def gaussian(mean, precision, x):
    return 0.5 * (x - mean) @ precision @ (x - mean)


GAUSSIAN = bind(gaussian, MEAN, PRECISION)
GAUSSIAN_LOG_Z = 1.5 * np.log(2 * np.pi) - 0.5 * np.log(np.linalg.det(PRECISION))


def exact_gaussian(key, n):
    factor = jnp.linalg.cholesky(jnp.linalg.inv(PRECISION))
    return MEAN[None] + jax.random.normal(key, (n, 3)) @ factor.T


@pytest.fixture(scope="module")
def weights():
    """Both directions on the Gaussian, from its exact samples."""
    key = jax.random.key(0)
    base = ais.Base((3,), scale=1.5)
    steps = ais.tune_steps(key, GAUSSIAN, base, num_levels=80)
    forward = ais.forward_weights(jax.random.key(1), GAUSSIAN, base, steps, num_chains=800)
    reverse = ais.reverse_weights(jax.random.key(2), GAUSSIAN, base, steps, exact_gaussian(key, 800))
    return forward, reverse


def test_a_gaussian_between_its_bounds(weights):
    forward, reverse = weights
    found = ais.bracket(forward.log_weights, reverse.log_weights)
    assert found.lower - 5 * found.lower_error < GAUSSIAN_LOG_Z < found.upper + 5 * found.upper_error
    assert found.upper - found.lower < 0.7
    # the mean weight itself is unbiased
    relative = np.exp(forward.log_weights - GAUSSIAN_LOG_Z)
    assert abs(relative.mean() - 1) < 5 * relative.std() / np.sqrt(800) < 0.2
    back = np.exp(GAUSSIAN_LOG_Z - reverse.log_weights)
    assert abs(back.mean() - 1) < 5 * back.std() / np.sqrt(800) < 0.2
    assert found.estimate == pytest.approx(GAUSSIAN_LOG_Z + np.log(relative.mean()))
    assert 400 < found.effective_samples <= 800
    assert 0.4 < forward.acceptance < 0.9
    # the chains end in the Gaussian
    mean = np.asarray(forward.positions).mean(0)
    deviations = np.sqrt(np.diag(np.linalg.inv(PRECISION)))
    assert (np.abs(mean - MEAN) < 0.3 * deviations).all()


def test_a_base_without_its_normaliser_must_fail(weights, monkeypatch):
    forward, reverse = weights

    def unnormalised(self, x):
        return 0.5 * jnp.sum(jnp.square(x)) / self.scale**2

    monkeypatch.setattr(ais.Base, "energy", unnormalised)
    jax.clear_caches()
    base, steps = ais.Base((3,), scale=1.5), jnp.full(20, 0.2)
    wrong = ais.forward_weights(jax.random.key(1), GAUSSIAN, base, steps, num_chains=200).log_weights
    relative = np.exp(wrong - GAUSSIAN_LOG_Z)
    deviation = abs(relative.mean() - 1) / (relative.std() / np.sqrt(200))
    assert deviation > 5
    # off by exactly the missing 3/2 log 2πσ²
    assert np.log(relative.mean()) == pytest.approx(-1.5 * np.log(2 * np.pi * 1.5**2), abs=0.3)
    jax.clear_caches()


def rbm(weight, bias, x):
    """The free energy of a Gaussian-Bernoulli machine of unit variance: Σ x²/2 - Σ_h softplus(c + Wᵀ x)."""
    return 0.5 * jnp.sum(jnp.square(x)) - jnp.sum(jax.nn.softplus(bias + x @ weight))


def test_a_boltzmann_machine_by_enumeration():
    visible, hidden = 4, 6
    weight = 0.8 * jax.random.normal(jax.random.key(3), (visible, hidden))
    bias = jnp.linspace(-2, 1, hidden)
    states = np.array(list(itertools.product([0.0, 1.0], repeat=hidden)))
    shifts = states @ np.asarray(weight, float).T
    terms = states @ np.asarray(bias, float) + 0.5 * np.square(shifts).sum(1)
    log_z = visible / 2 * np.log(2 * np.pi) + np.logaddexp.reduce(terms)

    random = np.random.default_rng(0)
    chosen = random.choice(len(terms), 500, p=np.exp(terms - np.logaddexp.reduce(terms)))
    exact = jnp.asarray(shifts[chosen] + random.normal(size=(500, visible)), jnp.float32)

    energy, base = bind(rbm, weight, bias), ais.Base((visible,), scale=1.5)
    steps = ais.tune_steps(jax.random.key(0), energy, base, num_levels=120)
    forward = ais.forward_weights(jax.random.key(1), energy, base, steps, num_chains=500).log_weights
    reverse = ais.reverse_weights(jax.random.key(2), energy, base, steps, exact).log_weights
    found = ais.bracket(forward, reverse)
    assert found.lower - 5 * found.lower_error < log_z < found.upper + 5 * found.upper_error
    assert found.upper - found.lower < 0.6
    relative = np.exp(forward - log_z)
    assert abs(relative.mean() - 1) < 5 * relative.std() / np.sqrt(500) < 0.4


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("steps_per_level", [1, 3])
def test_mean_weights_are_exact_with_two_levels(steps_per_level, seed):
    # unbiased at any number of levels: with two, a gap taken a step too late or a level too far is far off
    mean, precision, size = jnp.array([0.7]), jnp.array([[2.0]]), 8000
    energy, base, steps = bind(gaussian, mean, precision), ais.Base((1,), scale=0.8), jnp.array([0.3, 0.2])
    log_z = 0.5 * np.log(2 * np.pi / 2.0)
    start_key, forward_key, reverse_key = jax.random.split(jax.random.key(seed), 3)
    exact = mean[None] + jax.random.normal(start_key, (size, 1)) / jnp.sqrt(2.0)
    given = {"steps_per_level": steps_per_level}
    forward = ais.forward_weights(forward_key, energy, base, steps, num_chains=size, **given).log_weights - log_z
    reverse = log_z - ais.reverse_weights(reverse_key, energy, base, steps, exact, **given).log_weights
    for relative in (np.exp(forward), np.exp(reverse)):
        error = relative.std() / np.sqrt(size)
        assert error < 0.02
        assert abs(relative.mean() - 1) < 5 * error


def test_the_base_laws():
    x = jnp.array([[0.4, -1.2], [0.1, 0.3]])
    normal, box = ais.Base((2, 2), scale=1.5), ais.Base((2, 2), "uniform", 1.5)
    expected = -scipy.stats.norm.logpdf(np.asarray(x, float), scale=1.5).sum()
    assert float(normal.energy(x)) == pytest.approx(expected, rel=1e-6)
    assert float(box.energy(x)) == pytest.approx(4 * np.log(3.0), rel=1e-6)
    assert float(box.energy(x.at[1, 1].set(-1.6))) == np.inf
    draws = np.asarray(jax.vmap(box.sample)(jax.random.split(jax.random.key(0), 500)))
    assert draws.shape == (500, 2, 2)
    assert scipy.stats.kstest(draws.ravel(), scipy.stats.uniform(-1.5, 3).cdf).pvalue > 1e-6
    draws = np.asarray(jax.vmap(normal.sample)(jax.random.split(jax.random.key(1), 500)))
    assert scipy.stats.kstest(draws.ravel(), scipy.stats.norm(scale=1.5).cdf).pvalue > 1e-6


def test_equilibration_reaches_the_law_within_the_box():
    # E = 2 x on [-1, 1]: the distribution function is (1 - e^{-2 (x + 1)}) / (1 - e^{-4})
    start = jnp.full((2000, 1), 0.9)
    energy = lambda x: 2 * jnp.sum(x)  # noqa: E731
    ends = ais.equilibrate(jax.random.key(0), energy, ais.Base((1,), "uniform"), jnp.asarray(0.2), start, 60)
    law = lambda x: (1 - np.exp(-2 * (x + 1))) / (1 - np.exp(-4))  # noqa: E731
    assert scipy.stats.kstest(np.asarray(ends, float).ravel(), law).pvalue > 1e-6


def test_tuned_steps_are_accepted_as_often_as_wanted():
    base = ais.Base((3,), scale=1.5)
    steps = ais.tune_steps(jax.random.key(3), GAUSSIAN, base, num_levels=40, num_chains=64, rounds=10)
    found = ais.forward_weights(jax.random.key(4), GAUSSIAN, base, steps, num_chains=1000)
    assert steps.shape == (40,)
    assert found.acceptance == pytest.approx(ais.TARGET_ACCEPTANCE, abs=0.08)


def test_the_bracket_by_hand():
    forward, reverse = np.array([0.0, np.log(3.0)]), np.array([2.0, 4.0, 6.0])
    found = ais.bracket(forward, reverse)
    assert found.lower == pytest.approx(np.log(3) / 2)
    assert found.lower_error == pytest.approx(np.log(3) / np.sqrt(2) / np.sqrt(2))
    assert (found.upper, found.upper_error) == (4.0, pytest.approx(2 / np.sqrt(3)))
    assert found.estimate == pytest.approx(np.log(2.0))  # of the mean weight (1 + 3) / 2
    assert found.effective_samples == pytest.approx(16 / 10)


def test_weights_that_bound_nothing():
    good = np.zeros(3)
    with pytest.raises(ValueError, match="reverse: 1 of 3 log weights"):
        ais.bracket(good, np.array([0.0, np.nan, 0.0]))
    with pytest.raises(ValueError, match="forward: 0 of 1"):
        ais.bracket(good[:1], good)


def test_bits_per_dimension_of_a_product_law(key):
    # E = Σ k x on the box: Z = (2 sinh k / k)^D, log p and its mean over the data are known
    slope, shape = 2.0, (2, 1, 1)
    temperature = 0.5
    method = Method(shape, None, None, None, lambda state: lambda x: slope * x.sum() / temperature, None, None)
    test = np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)
    source = Source("levels", test, test, None, None, None, "0" * 16)
    subject = evaluation.Subject(method, {}, source)
    records = evaluation.evaluate_likelihood(key, subject, num_levels=300, equilibration_steps=50)
    values = {record.metric: record.value for record in records}
    k = slope / temperature
    log_z = 2 * np.log(2 * np.sinh(k) / k)
    assert values["log_partition_lower"] - 0.3 < log_z < values["log_partition_upper"] + 0.3
    assert values["log_partition_upper"] - values["log_partition_lower"] < 0.6
    mean = k * (test / 127.5 - 1).sum((1, 2, 3)).mean()
    bits = (mean + log_z) / (2 * np.log(2)) + np.log2(127.5)
    assert values["bits_per_dimension_lower"] - 0.25 < bits < values["bits_per_dimension_upper"] + 0.25
    for side in ("lower", "upper"):  # each bound by its formula, to the last digits
        expected = (mean + values[f"log_partition_{side}"]) / (2 * np.log(2)) + np.log2(127.5)
        assert values[f"bits_per_dimension_{side}"] == pytest.approx(expected, rel=1e-5)


def test_no_upper_bound_where_no_chain_found_the_data(key):
    # every test image sits at the bottom of a well too narrow to fall into
    test = np.full((8, 2, 1, 1), 200, np.uint8)
    bottom = to_float(test[0])
    well = lambda x: -50.0 * jnp.exp(-jnp.square((x - bottom) / 0.001).sum())  # noqa: E731
    method = Method((2, 1, 1), None, None, None, lambda state: well, None, None)
    source = Source("well", test, test, None, None, None, "0" * 16)
    records = evaluation.evaluate_likelihood(
        key, evaluation.Subject(method, {}, source), num_levels=50, equilibration_steps=5
    )
    assert {record.metric for record in records} == {"log_partition_lower", "bits_per_dimension_lower"}
    assert records[0].protocol["lowest_reverse_start_energy"] > records[1].protocol["mean_energy"] == -50.0
