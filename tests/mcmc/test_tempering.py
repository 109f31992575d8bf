"""Parallel tempering: acceptance of exchanges in closed form, exact invariance, crossing a barrier of 8 T."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from helpers.laws import accept, gaussian_test, mean_test, reject

import jebm

KEY = jax.random.key(41)
TEMPERATURES = [1.0, 1.7, 3.0, 5.2, 9.0]


def double_well(x, tilt=0.4):
    """A barrier of 8 and, with the tilt, wells of unequal weight."""
    return 8.0 * jnp.square(jnp.square(x) - 1.0) + tilt * x


def left(tilt):
    density = lambda x: np.exp(-(8.0 * (x**2 - 1.0) ** 2 + tilt * x))  # noqa: E731
    mass = lambda a, b: scipy.integrate.quad(density, a, b)[0]  # noqa: E731
    return mass(-3.0, 0.0) / mass(-3.0, 3.0)


@pytest.mark.parametrize(
    "kernel_at",
    [
        lambda t: jebm.mala(double_well, 0.03 * t, t),
        lambda t: jebm.hmc(double_well, 0.2, 4, t),
        lambda t: jebm.underdamped_langevin(double_well, 0.06, 1.0, t),
    ],
    ids=["mala", "hmc", "underdamped"],
)
def test_a_barrier_of_eight_temperatures_is_crossed(kernel_at):
    start = jnp.full(1024, 1.0)
    alone = jebm.sample_chains(KEY, kernel_at(1.0), start, 100, trace=())[0].position
    assert (alone < 0).mean() < 0.3
    tempered = jebm.parallel_tempering(kernel_at, TEMPERATURES, steps_per_swap=4)
    state, _ = jebm.sample_chains(KEY, tempered, start, 100, trace=())
    expected = left(0.4)
    assert expected > 0.65
    accept(mean_test(state.position < 0, expected))
    reject(mean_test(state.position < 0, 0.5))
    assert (state.round_trips > 2).all()


def test_the_symmetric_well_comes_out_half():
    kernel = jebm.parallel_tempering(lambda t: jebm.mala(lambda x: double_well(x, 0.0), 0.03 * t, t), TEMPERATURES, 4)
    start = jnp.full(1024, 1.0)
    alone = jebm.sample_chains(KEY, kernel.kernel_at(1.0), start, 160, trace=())[0].position
    assert (alone < 0).mean() < 0.02
    _, info = jebm.sample_chains(KEY, kernel, start, 100, burn_in=60, thin=10, positions_every=1)
    assert info["position"].shape == (1024, 10)
    assert abs(float((info["position"] < 0).mean()) - 0.5) < 0.02


def still(t):
    """A kernel that hardly moves: what is left is the exchange."""
    return jebm.langevin(jebm.energy.standard_normal, 1e-12, t)


@pytest.mark.parametrize(("dimension", "cold", "hot"), [(2, 1.0, 2.0), (10, 0.6, 0.9)])
def test_acceptance_of_an_exchange_is_exact(dimension, cold, hot):
    """2 I_{b/(a+b)}(d/2, d/2) between the inverse temperatures a > b on a unit Gaussian well."""
    n, scales = 2**14, np.sqrt([cold, hot])
    x = scales[None, :, None] * jax.random.normal(jax.random.key(42), (n, 2, dimension))
    kernel = jebm.parallel_tempering(still, jnp.array([cold, hot]))
    state = jax.vmap(kernel.init)(x[:, 0])
    replicas = jax.vmap(jax.vmap(lambda t, x: still(t).init(x)), (None, 0))(kernel.temperatures, x)
    state, info = jax.vmap(kernel.step)(jebm.chain_keys(KEY, n), state._replace(replicas=replicas))
    expected = 2 * scipy.special.betainc(dimension / 2, dimension / 2, (1 / hot) / (1 / cold + 1 / hot))
    accept(mean_test(info.swap_acceptance, expected))
    accept(mean_test(info.walkers[:, 0] == 1, expected))
    reject(mean_test(info.walkers[:, 0] == 1, 1.05 * expected))
    swapped = np.asarray(info.walkers[:, 0] == 1)
    np.testing.assert_allclose(state.position, np.where(swapped[:, None], x[:, 1], x[:, 0]), atol=1e-5)
    np.testing.assert_allclose(info.energies, 0.5 * jnp.square(state.replicas.position).sum(-1), rtol=1e-4, atol=1e-6)
    for i, temperature in enumerate((cold, hot)):  # exact draws stay exact
        accept(gaussian_test(state.replicas.position[:, i], np.zeros(dimension), temperature * np.eye(dimension)))


def test_all_replicas_keep_their_laws():
    """Exact draws of an asymmetric Gaussian at each of four temperatures, moved by MALA and exchanged six times."""
    n, temperatures = 2**13, jnp.array([0.5, 0.8, 1.3, 2.1])
    precision = np.array([[1.6, 0.5], [0.5, 0.7]])
    energy = jebm.energy.gaussian(jnp.array([1.0, -2.0]), jnp.asarray(precision, jnp.float32))
    at = lambda t: jebm.mala(energy, 0.5 * t, t)  # noqa: E731
    kernel = jebm.parallel_tempering(at, temperatures)
    unit = np.random.default_rng(43).normal(size=(n, 4, 2)) @ np.linalg.cholesky(np.linalg.inv(precision)).T
    x = jnp.asarray([1.0, -2.0] + np.sqrt(temperatures)[:, None] * unit, jnp.float32)
    state = jax.vmap(kernel.init)(x[:, 0])
    replicas = jax.vmap(jax.vmap(lambda t, x: at(t).init(x)), (None, 0))(temperatures, x)
    state, _ = jebm.sample_chains(KEY, kernel, state._replace(replicas=replicas), 6, trace=())
    for i, temperature in enumerate(np.asarray(temperatures)):
        accept(
            gaussian_test(state.replicas.position[:, i], np.array([1.0, -2.0]), temperature * np.linalg.inv(precision))
        )
    between = np.corrcoef(np.asarray(state.replicas.position)[:, :, 0].T)
    assert np.abs(between - np.eye(4)).max() < 5 / np.sqrt(n)  # replicas share no draws


def test_even_and_odd_pairs_take_turns_and_round_trips_are_counted():
    """Without an energy each exchange is made: a replica goes up one place a step, and down again."""
    flat = lambda x: 0.0 * jnp.sum(x)  # noqa: E731
    kernel = jebm.parallel_tempering(lambda t: jebm.langevin(flat, 0.1, t), jnp.arange(1.0, 5.0))
    state, info = jebm.sample(KEY, kernel, jnp.zeros(1), 16, trace=("walkers", "round_trips", "swap_acceptance"))
    places = [np.asarray(info["walkers"][k]).tolist().index(0) for k in range(8)]
    assert places == [1, 2, 3, 3, 2, 1, 0, 0]
    np.testing.assert_array_equal(info["swap_acceptance"], 1.0)
    # by hand, from where each walker is after each step
    trips, marked = [], set()
    total = 0
    for row in np.asarray(info["walkers"]):
        marked.add(row[-1])
        total += row[0] in marked
        marked.discard(row[0])
        trips.append(total)
    assert info["round_trips"].tolist() == trips
    assert total >= 4
    assert int(state.round_trips) == total


def test_new_temperatures_and_bound_energies_compile_nothing():
    traces = []

    def at(k, t):
        traces.append(0)
        return jebm.mala(jebm.energy.bind(lambda k, x: k * jnp.sum(x**2), k), 0.1 * t, t)

    positions = []
    for k, temperatures in ((1.0, [1.0, 2.0]), (4.0, [1.0, 2.0]), (4.0, [0.5, 2.0])):
        kernel = jebm.parallel_tempering(jebm.energy.bind(at, k), temperatures)
        positions.append(jebm.sample_chains(KEY, kernel, jnp.ones((2, 1)), 3, trace=())[0].position)
        if len(positions) == 1:
            first = len(traces)
    assert len(traces) == first
    assert not np.array_equal(positions[0], positions[1])
    assert not np.array_equal(positions[1], positions[2])


@pytest.mark.parametrize(
    ("temperatures", "steps", "message"),
    [
        ([1.0], 1, "two or more, above 0 and ascending"),
        ([2.0, 1.0], 1, "two or more, above 0 and ascending"),
        ([0.0, 1.0], 1, "two or more, above 0 and ascending"),
        (2.0, 1, "two or more, above 0 and ascending"),
        ([1.0, 2.0], 0, "steps_per_swap must be an int of at least 1, got 0"),
    ],
)
def test_wrong_inputs_are_named_in_one_line(temperatures, steps, message):
    with pytest.raises(ValueError, match=message) as error:
        jebm.parallel_tempering(still, temperatures, steps)
    assert "\n" not in str(error.value)
