"""The Langevin kernel's law after K steps is the exact one: mean, covariance and autocorrelation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import langevin as cases
from helpers.alternating import Alternating
from helpers.laws import accept, exact_law, gaussian_test, ks_test, reject, stationary_covariance
from jax.flatten_util import ravel_pytree

import jebm

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("temperature", "num_steps"), [(0.6, 5), (1.7, 50)])
def test_law_from_a_point(h, temperature, num_steps):
    accept(cases.vector(h, temperature, num_steps).test())


def test_law_from_a_gaussian():
    accept(cases.vector(0.5, 0.6, 5, spread=np.array([[2.0, -0.7], [-0.7, 0.5]])).test())


@pytest.mark.parametrize("make", [cases.per_leaf, cases.alternating, cases.scheduled, cases.annealed])
def test_law_with(make):
    accept(make().test())


@pytest.mark.parametrize("h", [0.5, 1.0])
def test_stationary_law_is_the_inflated_one_not_the_target(h):
    stationary = stationary_covariance(cases.PRECISION, h / cases.LARGEST, 0.6)
    case = cases.vector(h, 0.6, 5, spread=stationary)
    samples = case.sample(case.kernel)[0]
    _, _, product = exact_law(case.moves, case.start, case.spread)
    mean = cases.MEAN + product @ (cases.START - cases.MEAN)
    accept(gaussian_test(samples, mean, stationary))
    reject(gaussian_test(samples, mean, 0.6 * np.linalg.inv(cases.PRECISION)))


def joint_law_of_records(case, every):
    """Mean and covariance of (x_n, x_2n, ...): ``Cov(x_j, x_i) = A^(j-i) V_i``, the autocorrelation."""
    count, d = len(case.moves) // every, len(case.start)
    mean, covariance = np.zeros(count * d), np.zeros((count * d, count * d))
    for i, j in itertools.combinations_with_replacement(range(count), 2):
        mean_i, covariance_i, _ = exact_law(case.moves[: (i + 1) * every], case.start, case.spread)
        _, _, product = exact_law(case.moves[(i + 1) * every : (j + 1) * every], case.start, case.spread)
        rows, columns = slice(j * d, (j + 1) * d), slice(i * d, (i + 1) * d)
        mean[columns] = mean_i
        covariance[rows, columns] = product @ covariance_i
        covariance[columns, rows] = (product @ covariance_i).T
    return mean, covariance


def test_autocorrelation():
    case = cases.vector(0.5, 0.6, 9)
    records = case.sample(case.kernel, positions_every=3)[1]
    accept(gaussian_test(records, *joint_law_of_records(case, 3)))
    reject(gaussian_test(records, *joint_law_of_records(cases.vector(0.55, 0.6, 9), 3)))
    shuffled = records.copy()
    shuffled[:, :2] = np.roll(records[:, :2], 1, axis=0)  # the right law at each time, but no memory
    reject(gaussian_test(shuffled, *joint_law_of_records(case, 3)))


def recursion(case, noise, dtype):
    """The moves with given noise, in numpy."""
    x = case.start.astype(dtype)
    for move, xi in zip(case.moves, noise.astype(dtype), strict=True):
        d = np.asarray(move.step_sizes)
        x = x - d * (move.precision @ (x - move.mean)) + np.sqrt(2 * move.temperature * d) * xi
    return x


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 2e-6), (True, 1e-14)])
def test_float32_and_float64_follow_the_recursion(x64, tolerance):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        case = cases.vector(0.3, 1.7, 40)
        energy = jebm.energy.gaussian(jnp.asarray(cases.MEAN, dtype), jnp.asarray(cases.PRECISION, dtype))
        noise = np.random.default_rng(3).normal(size=(40, 2))
        kernel = jebm.langevin(energy, 0.3 / cases.LARGEST, 1.7, noise=jnp.asarray(noise, dtype))
        state, _ = jebm.sample(jax.random.key(0), kernel, jnp.asarray(cases.START, dtype), 40)
        assert state.position.dtype == state.energy.dtype == dtype
        np.testing.assert_allclose(state.position, recursion(case, noise, np.float64), atol=tolerance)


def test_law_in_float64():
    with jax.enable_x64(True):
        case = cases.vector(0.5, 0.6, 8)
        positions = jnp.tile(jnp.asarray(cases.START), (cases.NUM_CHAINS, 1))
        energy = jebm.energy.gaussian(cases.MEAN, cases.PRECISION)
        kernel = jebm.langevin(energy, 0.5 / cases.LARGEST, 0.6)
        state, _ = jebm.sample_chains(jax.random.key(1), kernel, positions, 8)
        assert state.position.dtype == jnp.float64
        accept(gaussian_test(state.position, *exact_law(case.moves, case.start, case.spread)[:2]))


def half_precision_network(mean, precision, x):
    """The Gaussian, computed in bfloat16 from exact numbers (the gradient of x is float32)."""
    centred = (x - mean).astype(jnp.bfloat16).astype(jnp.float32)
    return 0.5 * jnp.dot(centred, jnp.dot(precision, centred))


def test_a_network_of_half_precision_leaves_the_law_of_the_noise():
    """Small steps from a point: nearly all of the variance is that of the noise, which bfloat16 would round away."""
    case = cases.vector(1e-3, 0.6, 50)
    mean, precision = (jnp.asarray(a, jnp.float32) for a in (cases.MEAN, cases.PRECISION))
    energy = jebm.energy.bind(half_precision_network, mean, precision)
    kernel = jebm.langevin(energy, jnp.bfloat16(0.7), jnp.bfloat16(0.6))
    state = kernel.init(jnp.asarray(cases.START, jnp.float32))
    assert state.energy.dtype == state.gradient.dtype == jnp.float32
    moved = kernel.advance(jnp.ones(2), state)[0].position
    drift = 0.7 * np.asarray(state.gradient)
    np.testing.assert_allclose(moved, cases.START - drift + np.sqrt(2 * 0.7 * 0.6), rtol=6e-3)  # 0.7 and 0.6 rounded
    accept(case.test(dataclasses.replace(case.kernel, energy=energy)))


def in_precision(case, dtype):
    """What a chain samples whose position and arithmetic have this precision; ``x - drift`` is rounded to its grid."""
    rng, x = np.random.default_rng(1), np.tile(case.start, (2**13, 1)).astype(dtype)
    for move in case.moves:
        drift = (x.astype(np.float32) - move.mean) @ move.precision * move.step_sizes
        noise = np.sqrt(2 * move.temperature * np.asarray(move.step_sizes)) * rng.normal(size=x.shape)
        x = x - drift.astype(dtype) + noise.astype(dtype)
    return x.astype(np.float64)


def test_half_precision_positions_have_another_law_and_are_refused():
    case = cases.vector(1e-3, 0.6, 50)
    law = exact_law(case.moves, case.start, case.spread)[:2]
    accept(gaussian_test(in_precision(case, np.float32), *law))
    reject(gaussian_test(in_precision(case, jnp.bfloat16), *law))
    energy, x = jebm.energy.standard_normal, {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 4), jnp.bfloat16)}
    one = jax.tree.map(lambda a: a[0], x)
    for kernel in (jebm.langevin(energy), jebm.mala(energy, 0.1), jebm.hmc(energy, 0.1, 2), jebm.nuts(energy, 0.1)):
        for run in (
            lambda k=kernel: jebm.sample_chains(jax.random.key(0), k, x, 2),
            lambda k=kernel: jebm.sample(jax.random.key(0), k, one, 2),
            lambda k=kernel: k.init(one),
        ):
            with pytest.raises(ValueError, match=r"float32 or float64, got bfloat16 .*x.astype\(") as error:
                run()
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="got float16"):
        jebm.langevin(energy, noise=jnp.zeros((2, 3), jnp.float16))
    with pytest.raises(ValueError, match="got float16"):
        jebm.mcmc.short_run_step_size(energy, jnp.ones((3, 2), jnp.float16))


def test_zero_temperature_is_gradient_descent_and_zero_step_size_stands_still():
    energy = cases.joint_energy()
    x = {"a": jnp.array([0.3, -1.0]), "b": jnp.array(2.0)}
    gradient = jax.grad(energy)(x)
    noise = {"a": jnp.ones((1, 2)), "b": jnp.ones(1)}
    kernel = jebm.langevin(energy, {"a": 0.1, "b": 0.0}, 0.0, noise=noise)
    state, _ = jebm.sample(jax.random.key(0), kernel, x, 1)
    np.testing.assert_allclose(state.position["a"], x["a"] - 0.1 * gradient["a"], rtol=1e-6)
    assert state.position["b"] == x["b"]


def test_info_reports_energy_gradient_norm_and_displacement():
    kernel = cases.vector(0.5, 0.6, 1).kernel
    before = kernel.init(jnp.asarray(cases.START, jnp.float32))
    after, info = kernel.step(jax.random.key(5), before)
    np.testing.assert_allclose(info.energy, kernel.energy(after.position), rtol=1e-6)
    gradient = cases.PRECISION @ (cases.START - cases.MEAN)
    np.testing.assert_allclose(info.gradient_norm, np.linalg.norm(gradient), rtol=1e-6)
    moved = np.linalg.norm(np.asarray(after.position, np.float64) - cases.START)
    np.testing.assert_allclose(info.displacement, moved, rtol=1e-6)
    assert after.step == 1


def test_info_of_alternating_blocks_joins_the_gradients_that_drove_the_step():
    case = cases.alternating()
    kernel = Alternating(jebm.langevin(cases.joint_energy(), {"z": 0.6, "y": 0.25}, 0.0), ("z", "y"))
    _, unravel = ravel_pytree(case.template)
    after, info = kernel.step(jax.random.key(0), kernel.init(unravel(jnp.asarray(case.start, jnp.float32))))
    half = case.start.copy()
    first = (cases.JOINT_PRECISION @ (case.start - cases.JOINT_MEAN))[1:]
    half[1:] -= 0.6 * first
    second = (cases.JOINT_PRECISION @ (half - cases.JOINT_MEAN))[:1]
    norm = np.linalg.norm(np.concatenate([first, second]))
    np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-6)
    np.testing.assert_allclose(after.position["y"], [[half[0] - 0.25 * second[0]]], rtol=1e-5)


# Clipping and reflection


def test_clip_bounds_the_drift_of_each_leaf_of_each_example_and_leaves_its_direction():
    energy = cases.joint_energy()
    bounds, step_size = {"a": 0.9, "b": np.inf}, 0.5
    noise = {"a": jnp.zeros((1, 2)), "b": jnp.zeros(1)}
    kernel = jebm.langevin(energy, step_size, 0.0, max_drift=bounds, noise=noise)
    rng = np.random.default_rng(4)
    x = {
        "a": jnp.asarray(rng.normal(size=(64, 2)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=64), jnp.float32),
    }
    state, _ = jebm.sample_chains(jax.random.key(0), kernel, x, 1)
    flat = np.concatenate([x["a"], x["b"][:, None]], axis=1)
    drift = step_size * (flat - cases.JOINT_MEAN) @ cases.JOINT_PRECISION
    drift = {"a": drift[:, :2], "b": drift[:, 2]}
    norms = np.linalg.norm(drift["a"], axis=1, keepdims=True)
    assert 10 < np.sum(norms > 0.9) < 54
    np.testing.assert_allclose(
        x["a"] - state.position["a"], drift["a"] * np.minimum(1.0, 0.9 / norms), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(x["b"] - state.position["b"], drift["b"], rtol=1e-5, atol=1e-6)


def test_clip_leaves_the_noise_alone():
    kernel = jebm.langevin(cases.joint_energy(), 0.5, 0.6, max_drift=0.01)
    cold = jebm.langevin(cases.joint_energy(), 0.5, 0.0, max_drift=0.01)
    x = {"a": jnp.array([3.0, -1.0]), "b": jnp.array(2.0)}
    noise = {"a": jnp.array([10.0, -20.0]), "b": jnp.array(30.0)}
    hot_move, cold_move = (k.advance(noise, k.init(x))[0].position for k in (kernel, cold))
    difference = jax.tree.map(lambda a, b: a - b, hot_move, cold_move)
    jax.tree.map(lambda d, xi: np.testing.assert_allclose(d, np.sqrt(0.6) * xi, rtol=1e-5), difference, noise)


def move_by(offset, x):
    return -jnp.sum(offset * x)


@pytest.mark.parametrize(
    ("target", "reflected"),
    [(2.5, 1.5), (-1.25, -0.75), (6.0, 0.0), (-5.5, 0.5), (8.25, 1.75), (2.0, 2.0), (-1.0, -1.0), (0.3, 0.3)],
)
def test_reflection_of_known_points(target, reflected):
    energy, noise = jebm.energy.bind(move_by, jnp.float32(target)), jnp.zeros(1)
    kernel = jebm.langevin(energy, 1.0, 0.0, box=(-1.0, 2.0), noise=noise)
    state, _ = jebm.sample(jax.random.key(0), kernel, jnp.zeros(()), 1)
    assert state.position == jnp.float32(reflected)


def test_an_infinite_box_bounds_nothing_and_boxes_are_per_leaf():
    box = ({"a": -jnp.inf, "b": -0.1}, {"a": jnp.inf, "b": 0.7})
    noise = {"a": jnp.full((1, 2), 2.0), "b": jnp.full((1, 3), 0.3)}
    free, boxed = (jebm.langevin(jebm.energy.standard_normal, 0.5, 2.0, box=b, noise=noise) for b in (None, box))
    starts = np.linspace(-3.0, 2.0, 500, dtype=np.float32)[:, None]
    x = {"a": np.tile(starts, 2), "b": np.tile(starts, 3)}
    positions = [jebm.sample_chains(jax.random.key(0), k, x, 1)[0].position for k in (free, boxed)]
    np.testing.assert_array_equal(positions[0]["a"], positions[1]["a"])
    low, high = np.float32(-0.1), np.float32(0.7)
    assert positions[1]["b"].min() >= low
    assert positions[1]["b"].max() <= high
    assert positions[0]["b"].max() > 1.0


NUM_SMALL_STEPS = 800


def test_reflection_keeps_the_uniform_law_at_any_step_size():
    rng = np.random.default_rng(6)
    x = rng.uniform(-0.4, 1.1, 2**13).astype(np.float32)
    uniform = scipy.stats.uniform(-0.4, 1.5).cdf
    kernel = jebm.langevin(jebm.energy.gaussian(0.0, 0.0), 0.3, 0.7, box=(-0.4, 1.1))
    position = jebm.sample_chains(jax.random.key(2), kernel, x, NUM_SMALL_STEPS)[0].position
    accept(ks_test(position, uniform))
    assert np.mean(np.abs(position - x)) > 0.3  # they moved
    clamped = np.clip(x + np.sqrt(2 * 0.3 * 0.7) * rng.normal(size=x.shape), -0.4, 1.1)
    reject(ks_test(clamped, uniform))  # a clamp is not a reflection


def test_reflection_samples_the_truncated_gaussian_at_small_steps():
    mean, deviation, low, high, temperature = 0.9, 0.8, -0.4, 1.1, 0.7
    energy = jebm.energy.gaussian(jnp.float32(mean), jnp.float32(deviation**-2))
    kernel = jebm.langevin(energy, 0.002, temperature, box=(low, high))
    x = np.full(2**13, low, np.float32)
    position = jebm.sample_chains(jax.random.key(3), kernel, x, NUM_SMALL_STEPS)[0].position
    assert position.min() >= np.float32(low)
    assert position.max() <= np.float32(high)
    scale = deviation * np.sqrt(temperature)
    accept(ks_test(position, scipy.stats.truncnorm((low - mean) / scale, (high - mean) / scale, mean, scale).cdf))
    cold = deviation  # as if T were 1
    reject(ks_test(position, scipy.stats.truncnorm((low - mean) / cold, (high - mean) / cold, mean, cold).cdf))


def annealed_joint(mean, precision, scales, step, x):
    flat = jnp.concatenate([x["y"].ravel(), x["z"]]) - mean
    return 0.5 * scales[step] * flat @ precision @ flat


def test_blocks_with_schedules_bounds_boxes_and_an_annealed_energy_follow_the_recursion():
    """Every option at once, apart for each block, against numpy: z first, then y with the gradient at the new z."""
    num_steps, scales = 4, np.array([1.0, 0.4, 1.7, 0.8, 0.1])
    temperatures = np.array([0.5, 0.0, 1.2, 0.3])
    eta = {"z": np.array([0.6, 0.2, 0.4, 0.1]), "y": np.array([0.1, 0.5, 0.3, 0.2])}
    bound, box = {"z": 0.35, "y": np.inf}, {"z": (-0.9, 1.4), "y": (-1.1, 0.2)}
    table = lambda a: jebm.mcmc.table_schedule(jnp.asarray(a, jnp.float32))  # noqa: E731
    given = (jnp.asarray(a, jnp.float32) for a in (cases.JOINT_MEAN, cases.JOINT_PRECISION, scales))
    rng = np.random.default_rng(8)
    noise = {"y": rng.normal(size=(num_steps, 1, 1)), "z": rng.normal(size=(num_steps, 2))}
    options = jebm.langevin(
        jebm.energy.anneal(annealed_joint, *given), {name: table(values) for name, values in eta.items()},
        table(temperatures), max_drift=bound, noise=noise,
        box=tuple({name: box[name][side] for name in box} for side in (0, 1)),
    )  # fmt: skip
    kernel = Alternating(options, ("z", "y"))
    start = {"z": jnp.array([0.7, 1.1]), "y": jnp.full((1, 1), -1.0)}
    state, info = jebm.sample(
        jax.random.key(0), kernel, start, num_steps, trace=("energy", "gradient_norm"), positions_every=1
    )

    rows, x = {"z": slice(1, 3), "y": slice(0, 1)}, np.array([-1.0, 0.7, 1.1])
    folded = clipped = 0
    for k in range(num_steps):
        squared = 0.0
        for name in ("z", "y"):
            gradient = scales[k] * (cases.JOINT_PRECISION @ (x - cases.JOINT_MEAN))[rows[name]]
            squared += np.sum(gradient**2)
            drift = eta[name][k] * gradient
            length = np.linalg.norm(drift)
            clipped += length > bound[name]
            drift *= min(1.0, bound[name] / length)
            spread = np.sqrt(2 * eta[name][k] * temperatures[k])
            moved = x[rows[name]] - drift + spread * noise[name][k].ravel()
            low, high = box[name]
            outside = (moved < low) | (moved > high)
            folded += outside.sum()
            along = np.mod(moved - low, 2 * (high - low))  # there and back
            x[rows[name]] = low + np.minimum(along, 2 * (high - low) - along)
        for name in ("z", "y"):
            np.testing.assert_allclose(np.ravel(info["position"][name][k]), x[rows[name]], rtol=1e-5, atol=1e-6)
        centred = x - cases.JOINT_MEAN
        energy = 0.5 * scales[k + 1] * centred @ cases.JOINT_PRECISION @ centred
        np.testing.assert_allclose([info["gradient_norm"][k], info["energy"][k]], [squared**0.5, energy], rtol=1e-5)
    assert clipped > 0
    assert folded > 0
    assert state.step == num_steps


# Papers' units


def test_conversions_of_papers_units():
    g, t, eps, s = 1.7, 0.3, 0.05, 0.002
    eta = jebm.mcmc.from_noise_scale(eps, t)
    np.testing.assert_allclose([eta * g, np.sqrt(2 * eta * t)], [eps**2 / 2 * g / t, eps], rtol=1e-12)
    eta = jebm.mcmc.from_half_step(s, t)
    np.testing.assert_allclose([eta * g, np.sqrt(2 * eta * t)], [s / 2 * g / t, np.sqrt(s)], rtol=1e-12)


def test_table_schedule_stays_at_its_last_value():
    schedule = jebm.mcmc.table_schedule(jnp.array([3.0, 2.0, 1.0]))
    assert [float(schedule(jnp.int32(k))) for k in (0, 1, 2, 7)] == [3.0, 2.0, 1.0, 1.0]
