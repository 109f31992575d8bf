"""blackjax's kernels behind an energy: acceptance in closed form, exact invariance, temperature."""

import collections

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import langevin as cases
from helpers.laws import accept, gaussian_test, ks_test, mean_test, reject

import jebm

pytestmark = pytest.mark.filterwarnings("error")

MEAN, DEVIATION, TEMPERATURE = 1.3, 0.7, 2.5
SCALE = DEVIATION * np.sqrt(TEMPERATURE)  # the deviation of exp(-E/T)
NUM_CHAINS = 2**14


def energy():
    return jebm.energy.gaussian(jnp.float32(MEAN), jnp.float32(DEVIATION**-2))


def stationary_start():
    return MEAN + SCALE * jax.random.normal(jax.random.key(11), (NUM_CHAINS,))


def one_step(kernel, x):
    state, info = jebm.sample_chains(jax.random.key(12), kernel, x, 1, trace=("acceptance", "is_accepted"))
    return np.asarray(state.position), {name: np.asarray(a[:, 0]) for name, a in info.items()}


@pytest.mark.parametrize("step_size", [0.5, 1.5])
def test_mala_acceptance_is_exact_for_each_proposal(step_size):
    start = stationary_start()
    x, info = one_step(jebm.mala(energy(), step_size, TEMPERATURE), start)
    accepted = info["is_accepted"]
    assert 0.2 * NUM_CHAINS < accepted.sum() < NUM_CHAINS
    before, after = (np.asarray(a, np.float64)[accepted] - MEAN for a in (start, x))
    log_ratio = -step_size / (4 * SCALE**4) * (after**2 - before**2)
    np.testing.assert_allclose(info["acceptance"][accepted], np.exp(np.minimum(0, log_ratio)), rtol=2e-5)
    np.testing.assert_array_equal(x[~accepted], np.asarray(start)[~accepted])


@pytest.mark.parametrize("h", [0.5, 1.5])
def test_mala_mean_acceptance(h):
    _, info = one_step(jebm.mala(energy(), h * SCALE**2, TEMPERATURE), stationary_start())
    accept(mean_test(info["acceptance"], 1 - 2 / np.pi * np.arctan((h / 2) ** 1.5)))
    accept(mean_test(info["is_accepted"], 1 - 2 / np.pi * np.arctan((h / 2) ** 1.5)))
    reject(mean_test(info["acceptance"], 1 - 2 / np.pi * np.arctan((1.1 * h / 2) ** 1.5)))


@pytest.mark.parametrize(("num_leapfrog", "eps", "expected"), [(5, 0.8, 0.95413), (3, 1.9, 0.40251)])
def test_hmc_mean_acceptance(num_leapfrog, eps, expected):
    step = np.array([[1 - eps**2 / 2, eps], [-eps * (1 - eps**2 / 4), 1 - eps**2 / 2]])
    largest = np.linalg.norm(np.linalg.matrix_power(step, num_leapfrog), 2)
    assert abs(4 / np.pi * np.arctan(1 / largest) - expected) < 5e-6
    kernel = jebm.hmc(energy(), eps * SCALE, num_leapfrog, TEMPERATURE)
    _, info = one_step(kernel, stationary_start())
    accept(mean_test(info["acceptance"], expected))


def test_hmc_inverse_mass_matrix_scales_the_step():
    """A mass of 1/σ² makes a Gaussian of deviation σ the unit one."""
    kernel = jebm.hmc(energy(), 0.8, 5, TEMPERATURE, inverse_mass_matrix=jnp.array([SCALE**2]))
    _, info = one_step(kernel, stationary_start())
    accept(mean_test(info["acceptance"], 0.95413))


COVARIANCE = 0.6 * np.linalg.inv(cases.PRECISION)


def moved_exact_draws(kernel, num_steps):
    """The law of exact draws of the target after ``num_steps``, and how much of the start is left."""
    draws = np.random.default_rng(5).multivariate_normal(cases.MEAN, COVARIANCE, NUM_CHAINS)
    state, _ = jebm.sample_chains(jax.random.key(13), kernel, jnp.asarray(draws, jnp.float32), num_steps, trace=())
    left = np.corrcoef(draws[:, 1], np.asarray(state.position)[:, 1])[0, 1]
    return gaussian_test(state.position, cases.MEAN, COVARIANCE), left


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_exact_draws_stay_exact(name):
    target = cases.vector(1.0, 1.0, 1).kernel.energy
    kernel, num_steps = {
        "mala": (jebm.mala(target, 0.4, 0.6), 6),
        "hmc": (jebm.hmc(target, 0.7, 2, 0.6), 4),
    }[name]
    verdict, left = moved_exact_draws(kernel, num_steps)
    accept(verdict)
    assert left < 0.7


def test_without_the_correction_exact_draws_do_not_stay():
    target = cases.vector(1.0, 1.0, 1).kernel.energy
    reject(moved_exact_draws(jebm.langevin(target, 0.4 / 0.6, 0.6), 6)[0])


SHAPE = 1.5


def log_gamma(shape, x):
    """The energy of log g with g ~ Gamma(shape, 1): skewed, with an exponential tail to the left."""
    return jnp.exp(x) - shape * x


def test_nuts_reaches_a_skewed_target_at_its_temperature():
    """At temperature T, with y = x - log T, the target is the same with shape / T."""
    temperature = 0.5
    kernel = jebm.nuts(jebm.energy.bind(log_gamma, SHAPE), 0.9, temperature)
    start = jnp.full(2**11, -3.0)
    state, _ = jebm.sample_chains(jax.random.key(14), kernel, start, 12, trace=())
    accept(ks_test(state.position, scipy.stats.loggamma(SHAPE / temperature, np.log(temperature)).cdf))
    reject(ks_test(state.position, scipy.stats.loggamma(SHAPE).cdf))


# every kernel in the same place

KERNELS = {
    "langevin": lambda energy: jebm.langevin(energy, 0.2, TEMPERATURE),
    "underdamped": lambda energy: jebm.underdamped_langevin(energy, 0.4, 0.7, TEMPERATURE),
    "preconditioned": lambda energy: jebm.preconditioned_langevin(
        energy, 0.3, jnp.array([[0.7, -0.2], [-0.2, 1.2]]), TEMPERATURE
    ),
    "mala": lambda energy: jebm.mala(energy, 0.9, TEMPERATURE),
    "hmc": lambda energy: jebm.hmc(energy, 0.8, 3, TEMPERATURE),
    "nuts": lambda energy: jebm.nuts(energy, 0.8, TEMPERATURE),
    "tempering": lambda energy: jebm.parallel_tempering(lambda t: jebm.mala(energy, 0.3 * t, t), [2.5, 4.0, 7.0]),
    "barker": lambda energy: jebm.from_blackjax(blackjax.barker(lambda x: -energy(x), 0.6)),
}
METROPOLIS = {"mala", "hmc", "nuts", "tempering", "barker"}


def vector_energy():
    return jebm.energy.gaussian(jnp.asarray(cases.MEAN, jnp.float32), jnp.asarray(cases.PRECISION, jnp.float32))


STARTS, RUN_KEY = jax.random.normal(jax.random.key(3), (3, 2)), jax.random.key(16)


@pytest.fixture(params=KERNELS, scope="module")
def any_run(request):
    kernel = KERNELS[request.param](vector_energy())
    return request.param, kernel, *jebm.sample_chains(RUN_KEY, kernel, STARTS, 7, positions_every=1)


def test_each_kernel_reports_the_energy_of_its_position(any_run):
    name, _, state, info = any_run
    expected = jax.vmap(jax.vmap(vector_energy()))(info["position"])
    np.testing.assert_allclose(info["energy"], expected, rtol=2e-5, atol=1e-6)
    assert ("acceptance" in info) == (name in METROPOLIS)
    assert ("hamiltonian" in info) == (name in {"hmc", "nuts"})
    np.testing.assert_array_equal(state.position, info["position"][:, -1])
    assert state.step.tolist() == [7, 7, 7]


def test_chains_that_go_on_are_those_that_were_not_broken(any_run):
    _, kernel, whole, info = any_run
    half, first = jebm.sample_chains(RUN_KEY, kernel, STARTS, 3, positions_every=1)
    last, second = jebm.sample_chains(RUN_KEY, kernel, half, 4, positions_every=1)
    for name in info:
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]], 1), info[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, last, whole)
    late, thinned = jebm.sample_chains(RUN_KEY, kernel, STARTS, 4, burn_in=3, thin=2, positions_every=1)
    for name in thinned:
        np.testing.assert_array_equal(thinned[name], second[name][:, 1::2], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, late, whole)


def test_hamiltonian_is_potential_plus_kinetic():
    """Of exact draws E/T + ½‖p‖² is Gamma(d, 1)."""
    draws = np.random.default_rng(5).multivariate_normal(cases.MEAN, COVARIANCE, NUM_CHAINS)
    kernel = jebm.hmc(vector_energy(), 0.01, 1, 0.6)
    _, info = jebm.sample_chains(jax.random.key(17), kernel, jnp.asarray(draws, jnp.float32), 1)
    accept(ks_test(info["hamiltonian"], scipy.stats.gamma(2.0).cdf))
    accept(ks_test(info["energy"] / 0.6, scipy.stats.gamma(1.0).cdf))


def test_barker_keeps_exact_draws():
    kernel = jebm.from_blackjax(blackjax.barker(lambda x: -vector_energy()(x) / 0.6, 0.7))
    verdict, left = moved_exact_draws(kernel, 6)
    accept(verdict)
    assert left < 0.7
    wrong = jebm.from_blackjax(blackjax.barker(lambda x: -vector_energy()(x), 0.7))
    reject(moved_exact_draws(wrong, 6)[0])


def test_an_adapted_algorithm_follows_what_its_log_density_reads():
    held = {"centre": jnp.array([4.0, -4.0])}
    algorithm = blackjax.barker(lambda x: -4.0 * jnp.sum(jnp.square(x - held["centre"])), 0.3)
    means = []
    for centre in (4.0, -4.0):
        held["centre"] = jnp.full(2, centre)
        state, _ = jebm.sample_chains(jax.random.key(4), jebm.from_blackjax(algorithm), jnp.zeros((64, 2)), 100)
        means.append(float(state.position.mean()))
    np.testing.assert_allclose(means, [4.0, -4.0], atol=0.4)


def test_tempered_smc_moves_its_particles():
    """Prior N(0, 1) times likelihood N(2, 1): a posterior N(1, 1/2)."""
    algorithm = blackjax.adaptive_tempered_smc(
        lambda x: -0.5 * x**2, lambda x: -0.5 * (x - 2.0) ** 2, blackjax.mala.build_kernel(), blackjax.mala.init,
        {"step_size": jnp.array([0.5])}, blackjax.smc.resampling.systematic, 0.5, num_mcmc_steps=10,
    )  # fmt: skip
    state, info = jebm.sample(
        jax.random.key(18), jebm.from_blackjax(algorithm), jax.random.normal(jax.random.key(19), (2048,)), 6
    )
    assert info == {}
    assert float(state.algorithm.tempering_param) == 1.0
    np.testing.assert_allclose([state.position.mean(), state.position.std()], [1.0, 0.5**0.5], atol=0.12)


def test_nuts_takes_what_window_adaptation_finds():
    target = vector_energy()
    adaptation = blackjax.window_adaptation(blackjax.nuts, lambda x: -target(x))
    (_, parameters), _ = adaptation.run(jax.random.key(20), jnp.zeros(2), num_steps=150)
    kernel = jebm.nuts(target, parameters["step_size"], inverse_mass_matrix=parameters["inverse_mass_matrix"])
    _, info = jebm.sample_chains(jax.random.key(21), kernel, jnp.zeros((2, 2)), 20)
    assert 0.5 < float(info["acceptance"].mean()) <= 1.0


def test_positions_may_be_pytrees_and_keep_their_shapes():
    x = {"z": jnp.ones((3, 2)), "y": (jnp.ones((3, 1, 2)),)}
    kernel = jebm.hmc(jebm.energy.standard_normal, 0.1, 1)
    state, info = jebm.sample_chains(jax.random.key(0), kernel, x, 2, trace=("acceptance",))
    assert jax.tree.map(jnp.shape, state.position) == jax.tree.map(jnp.shape, x)
    assert info["acceptance"].shape == (3, 2)
    np.testing.assert_allclose(state.logdensity, -jax.vmap(jebm.energy.standard_normal)(state.position), rtol=1e-5)


class Stepless:
    def init(self, position):
        return collections.namedtuple("PlainState", ["position"])(position)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jebm.hmc(energy(), 0.1, 0), "num_integration_steps"),
        (lambda: jebm.hmc(energy(), 0.1, 2.0), "num_integration_steps must be an int of at least 1, got 2.0"),
        (lambda: jebm.mala(energy(), 0.0), "step_size must be above 0"),
        (
            lambda: jebm.mala(energy(), 0.1, jebm.mcmc.table_schedule(jnp.ones(3))),
            "mala needs a temperature that is the same at every step, got a schedule",
        ),
        (lambda: jebm.hmc(energy(), 0.1, 2, lambda step: 1.0 + step), "hmc needs a temperature that is the same"),
        (lambda: jebm.nuts(energy(), 0.1, lambda step: 1.0 + step), "nuts needs a temperature that is the same"),
        (lambda: jebm.nuts(energy(), lambda step: 0.1), "nuts needs a step_size that is the same at every step"),
        (lambda: jebm.mala(energy(), jnp.full(2, 0.1)), r"mala needs one number as step_size, got shape \(2,\)"),
        (lambda: jebm.mala(energy(), {"a": 0.1}), "mala needs one number as step_size"),
        (lambda: jebm.from_blackjax(jebm.mala), "needs a blackjax SamplingAlgorithm, got function"),
        (lambda: jebm.from_blackjax(blackjax.ghmc(lambda x: -x, 0.1, 1.0, 0.9, 0.1)), "draws random numbers"),
        (
            lambda: jebm.from_blackjax(
                blackjax.tempered_smc(lambda x: x, lambda x: x, None, None, {}, blackjax.smc.resampling.systematic)
            ),
            r"needs an algorithm of step\(key, state\), got step\(",
        ),
        (lambda: jebm.sample(jax.random.key(0), Stepless(), Stepless().init(jnp.zeros(2)), 2), "with a field step"),
        (
            lambda: jebm.sample(jax.random.key(0), jebm.mala(energy(), 0.1), 0.0, 2, burn_in=-1),
            "burn_in must be an int",
        ),
        (lambda: jebm.sample(jax.random.key(0), jebm.mala(energy(), 0.1), 0.0, 2, thin=0), "thin must be an int of at"),
        (lambda: jebm.nuts(energy(), 0.1, 0.0), "temperature must be above 0"),
        (lambda: jebm.mala(jebm.energy.anneal(lambda k, x: k * x), 0.1), "an annealed one"),
        (lambda: jebm.sample(jax.random.key(0), jebm.mala(energy(), 0.1), jnp.zeros((), int), 2), "floating"),
        (
            lambda: jebm.sample(jax.random.key(0), jebm.mala(energy(), 0.1), 0.0, 2, trace=("enrgy",)),
            "has no",
        ),
    ],
)
def test_wrong_inputs_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
