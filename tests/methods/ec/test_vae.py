"""Energy calibration against exact laws, and the options of the energy-calibrated VAE.

All tests of the chain use unequal numbers for K, s and τ, so that none can stand in for another.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import methods
from jebm.energy import bind
from jebm.errors import ConfigError
from jebm.methods import ECFlowConfig, ECGANConfig, ECVAEConfig
from jebm.methods.ec import calibration, vae_networks
from jebm.methods.ec import vae as ec_vae
from jebm.methods.ec.calibration import CalibrationConfig, calibrate, calibration_loss, dual_step, hinged_distance
from jebm.methods.ec.posterior import PosteriorCalibrationConfig
from jebm.networks import spectral_norm

SHAPE = (6, 5, 3)
D = 90


def linear(slope, x):
    return jnp.sum(slope * x)


def nothing(x):
    return 0.0 * jnp.sum(x)


# --- the law of the chain ---------------------------------------------------------------------------------------------


def displacement(run):
    """``Σ (x_c - x_g)² / (B K s D)`` of 64 chains of 3,072 values: 1 within 0.32 % (one standard deviation)."""
    config = CalibrationConfig()
    start = jnp.zeros((64, 32, 32, 3))
    moved = run(jax.random.key(1), nothing, start, config)
    return float(jnp.sum(moved**2) / (64 * 15e-6 * 3072))


def test_without_energy_the_displacement_is_the_noise_floor():
    assert displacement(calibrate) == pytest.approx(1, abs=0.01)
    assert calibration.noise_floor(CalibrationConfig(), 3072) == pytest.approx(0.04608)


def noise_of_twice_the_variance(key, head, start, config):
    return calibrate(key, head, start, dataclasses.replace(config, step_size=2 * config.step_size))


def one_step_too_few(key, head, start, config):
    return calibrate(key, head, start, dataclasses.replace(config, num_steps=config.num_steps - 1))


def the_same_noise_each_step(key, head, start, config):
    noise = jax.random.normal(key, (start.shape[0], 1, *start.shape[1:]))
    repeated = jnp.broadcast_to(noise, (start.shape[0], config.num_steps, *start.shape[1:]))
    return calibrate(key, head, start, config, repeated)


@pytest.mark.parametrize("mutant", [noise_of_twice_the_variance, one_step_too_few, the_same_noise_each_step])
def test_the_law_of_the_noise_tells_mutants(mutant):
    assert abs(displacement(mutant) - 1) > 0.05  # fifteen standard deviations


def test_a_linear_energy_drifts_by_k_half_steps():
    config = CalibrationConfig(num_steps=7, step_size=3e-4, temperature=2e-3, cond_scale=0.0)
    slope = jax.random.normal(jax.random.key(0), SHAPE)
    start = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-0.9, maxval=0.9)
    quiet = jnp.zeros((3, 7, *SHAPE))
    moved = calibrate(jax.random.key(2), bind(linear, slope), start, config, quiet) - start
    expected = -7 * 3e-4 / (2 * 2e-3) * jnp.broadcast_to(slope, moved.shape)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    noise = jax.random.normal(jax.random.key(3), (3, 7, *SHAPE))
    noisy = calibrate(jax.random.key(2), bind(linear, slope), start, config, noise) - start
    np.testing.assert_allclose(noisy - moved, np.sqrt(3e-4) * noise.sum(1), rtol=1e-3, atol=2e-5)


# --- the conditional term ---------------------------------------------------------------------------------------------


def weight_by_displacement(step, config, x, reference):
    """w_k, read off one noiseless step of the chain that starts from ``x`` at ``step``."""
    quiet = jnp.zeros((config.num_steps, *x.shape))
    kernel = calibration.calibration_kernel(nothing, reference, config, quiet)
    state = kernel.init(x)
    weights = []
    for _ in range(step + 1):
        before = state.position
        state, _ = kernel.step(jax.random.key(0), state)
        pull = 2 * (jnp.clip(before, -1, 1) - jnp.clip(reference, -1, 1)) * (jnp.abs(before) <= 1)
        weights.append(float(jnp.vdot(before - state.position, pull) / jnp.vdot(pull, pull)))
    return np.array(weights) / (config.step_size / 2) / config.cond_scale


ACTIVE = CalibrationConfig(cond_scale=2e3, hinge=0.07)


def test_the_weight_of_the_condition_falls_from_14_15ths_to_0():
    reference = jax.random.uniform(jax.random.key(0), SHAPE, minval=-0.8, maxval=0.8)
    weights = weight_by_displacement(14, ACTIVE, reference + 0.1, reference)
    np.testing.assert_allclose(weights, (14 - np.arange(15)) / 15, rtol=2e-3, atol=1e-4)
    assert weights[14] == 0


def test_the_law_of_the_weights_tells_an_index_off_by_one(monkeypatch):
    def off_by_one(head, reference, weight, threshold, last, step, x):
        return CONDITIONAL(head, reference, weight, threshold, last, step - 1, x)

    monkeypatch.setattr(calibration, "_conditional_energy", off_by_one)
    reference = jax.random.uniform(jax.random.key(0), SHAPE, minval=-0.8, maxval=0.8)
    weights = weight_by_displacement(14, ACTIVE, reference + 0.1, reference)
    np.testing.assert_allclose(weights, (15 - np.arange(15)) / 15, rtol=2e-3, atol=1e-4)


CONDITIONAL = calibration._conditional_energy


def test_the_condition_does_not_pull_below_the_hinge_nor_outside_the_range():
    reference = jnp.array([0.5, -0.2, 0.9, -1.0])
    gradient = jax.grad(hinged_distance)
    near = reference + jnp.array([0.1, -0.1, 0.05, 0.1])  # d = 0.0325
    assert float(hinged_distance(near, reference, 0.07)) == pytest.approx(0.07)
    np.testing.assert_array_equal(gradient(near, reference, 0.07), jnp.zeros(4))
    far = jnp.array([0.9, -0.2, 1.3, -1.2])
    # values outside [-1, 1] count in d as ±1 and are not pulled
    assert float(hinged_distance(far, reference, 0.07)) == pytest.approx(0.16 + 0.01, rel=1e-5)
    np.testing.assert_allclose(gradient(far, reference, 0.07), [0.8, 0, 0, 0], rtol=1e-6)
    edge = jnp.array([1.0, -0.2, 0.9, 1.0])
    np.testing.assert_allclose(gradient(edge, reference, 0.07), [1.0, 0, 0, 4.0], rtol=1e-6)


def test_cond_scale_makes_the_condition_act():
    """The released coefficient changes nothing visible; c/τ pulls what the energy pushes away back."""
    slope = jnp.full(SHAPE, 0.5)
    start = jnp.zeros((4, *SHAPE))
    distance = {}
    for scale in (0.0, 1.0, 1e5):
        config = CalibrationConfig(cond_scale=scale)
        quiet = jnp.zeros((4, 15, *SHAPE))
        moved = calibrate(jax.random.key(0), bind(linear, slope), start, config, quiet)
        distance[scale] = float(calibration_loss(moved, start))
    assert distance[0.0] == pytest.approx(D * (15 * 0.05 * 0.5) ** 2, rel=1e-4)
    assert distance[1.0] == pytest.approx(distance[0.0], rel=1e-4)
    assert distance[1e5] < 0.8 * distance[0.0]


# --- the constraint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0465, 29.97), (0.05, 30.0), (0.1, 30.5), (0.5, 34.5), (1.0, 39.5), (5.0, 79.5)]
)
def test_a_thousand_dual_steps(loss, expected):
    """Measured with the released code from 30, C held constant."""
    config = CalibrationConfig(tolerance=0.05)
    step = lambda _, dual: dual_step(dual, jnp.float32(loss), config, 3072)  # noqa: E731
    dual = jax.lax.fori_loop(0, 1000, step, jnp.float32(30))
    assert float(dual) == pytest.approx(expected, abs=0.006)


def test_the_dual_variable_stays_in_its_range():
    config = CalibrationConfig(tolerance=0.05, dual_max=40.0)
    assert float(dual_step(jnp.float32(39.99), jnp.float32(50.0), config, 3072)) == 40
    assert float(dual_step(jnp.float32(1e-4), jnp.float32(0.0), config, 3072)) == 0


@pytest.mark.parametrize("family", [ECFlowConfig, ECGANConfig, ECVAEConfig])
def test_long_runs_walk_in_half_steps_of_the_energy_over_the_temperature(family):
    config = family(calibration=CalibrationConfig(num_steps=7, step_size=3e-4, temperature=2e-3))
    method = methods.build(config)
    num_steps, step_size, bound = method.chain
    assert (num_steps, method.temperature, bound) == (7, 2e-3, None)
    assert step_size * method.temperature == pytest.approx(1.5e-4)


def test_tolerance_and_hinge_follow_the_noise():
    config = CalibrationConfig(num_steps=7, step_size=3e-6)
    floor = 7 * 3e-6 * 500
    assert calibration.tolerance(config, 500) == pytest.approx(1.085 * floor)
    assert calibration.hinge(config, 500) == pytest.approx(1.52 * floor)
    given = CalibrationConfig(num_steps=7, step_size=3e-6, tolerance=0.3, hinge=0.0)
    assert (calibration.tolerance(given, 500), calibration.hinge(given, 500)) == (0.3, 0.0)
    # the rule moves λ: C between the two tolerances lets it fall under one and rise under the other
    dual, loss = jnp.float32(30), jnp.float32(0.1)
    assert float(dual_step(dual, loss, config, 500)) > 30 > float(dual_step(dual, loss, given, 500))


def test_the_gradient_of_the_constraint_reaches_the_generator_alone():
    config = CalibrationConfig(num_steps=3, step_size=2e-4, temperature=1e-2)
    slope = jax.random.normal(jax.random.key(0), SHAPE)
    generated = jax.random.uniform(jax.random.key(1), (4, *SHAPE), minval=-0.9, maxval=0.9)
    dual = 17.0

    def weighted(generated, slope):
        calibrated = calibrate(jax.random.key(2), bind(curved, slope), generated, config)
        return dual * calibration_loss(calibrated, generated)

    def curved(slope, x):
        return jnp.sum(slope * jnp.sin(x))

    to_generator, to_energy = jax.grad(weighted, argnums=(0, 1))(generated, slope)
    calibrated = calibrate(jax.random.key(2), bind(curved, slope), generated, config)
    # nothing through the chain: its start moves x_c one to one, which would cancel the gradient
    np.testing.assert_allclose(to_generator, 2 * dual / 4 * (generated - calibrated), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(to_energy, jnp.zeros(SHAPE))
    assert float(jnp.abs(to_generator).max()) > 0.1


# --- the model --------------------------------------------------------------------------------------------------------


def config_of(**options):
    chain = CalibrationConfig(num_steps=2, **options.pop("calibration", {}))
    return ECVAEConfig(
        image_size=8, channels=1, latent_size=4, encoder_width=2, decoder_width=2, energy_layers=((4, 1),),
        energy_head_width=8, energy_scales=1, calibration=chain, **options,
    )  # fmt: skip


def start_of(config):
    batch = jax.random.uniform(jax.random.key(5), (6, 8, 8, 1), minval=-1, maxval=1)
    return jax.jit(lambda: ec_vae.initialize(config, jax.random.key(4), batch))(), batch


@pytest.fixture(scope="module")
def model():
    config = config_of()
    state, batch = start_of(config)
    return config, state, batch, ec_vae.build(config)


def test_a_fresh_state(model):
    config, state, _, _ = model
    for network in state.vae.values():
        jax.tree.map(np.testing.assert_array_equal, network.ema, network.params)
    assert float(state.dual) == config.calibration.dual_initial == 30.0
    settings = PosteriorCalibrationConfig(dual_initial=2.5)
    both = dataclasses.replace(config, calibrated_posterior=True, posterior=settings)
    duals = jax.jit(lambda: ec_vae.initialize(both, jax.random.key(4), jnp.zeros((1, 8, 8, 1))).dual)()
    np.testing.assert_array_equal(duals, [30.0, 2.5])


def test_generation_is_a_function_of_key_and_state(model):
    config, state, _, method = model
    generate = jax.jit(method.generate, static_argnums=2)
    images = generate(jax.random.key(0), state, 5)
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), jnp.float32)
    assert 0.1 < float(jnp.abs(images).max()) <= 1  # tanh rounds to 1
    np.testing.assert_array_equal(images, generate(jax.random.key(0), state, 5))
    assert float(jnp.abs(images - generate(jax.random.key(1), state, 5)).max()) > 1e-3
    np.testing.assert_allclose(generate(jax.random.key(0), state, 3), images[:3], atol=1e-5)
    scaled = lambda tree: jax.tree.map(lambda a: 1.1 * a, tree)  # noqa: E731
    decoder = state.vae["decoder"]
    other = state._replace(vae={**state.vae, "decoder": decoder._replace(ema=scaled(decoder.ema))})
    assert float(jnp.abs(images - generate(jax.random.key(0), other, 5)).max()) > 1e-4
    # the weights that generate are the averaged ones; the energy has no part in it
    raw = state._replace(vae={**state.vae, "decoder": decoder._replace(params=scaled(decoder.params))})
    f = state.energy.trained
    others = [
        raw,
        state._replace(energy=state.energy._replace(trained=f._replace(params=scaled(f.params)))),
        state._replace(energy=state.energy._replace(spectral=scaled(state.energy.spectral))),
        state._replace(dual=1.1 * state.dual),
    ]
    for other in others:
        np.testing.assert_array_equal(images, generate(jax.random.key(0), other, 5))


def test_generation_is_one_pass_of_the_decoder(model, monkeypatch):
    config, state, _, method = model
    calls = []
    apply = ec_vae.Decoder.__call__
    monkeypatch.setattr(ec_vae.Decoder, "__call__", lambda self, z, train=False: calls.append((z.shape[0], train)) or
                        apply(self, z, train))  # fmt: skip
    jax.eval_shape(lambda key, state: method.generate(key, state, 7), jax.random.key(0), state)
    # the statistics of a fixed set of latents, once whatever the number of images; then one pass
    assert calls == [(vae_networks.STANDING_LATENTS, True), (7, False)]


def chains_of(config, monkeypatch):
    """How often an iteration calibrates."""
    batch = jax.ShapeDtypeStruct((6, 8, 8, 1), jnp.float32)
    method, calls = ec_vae.build(config), []
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    inner = calibration.calibrate
    monkeypatch.setattr(calibration, "calibrate", lambda *a, **k: calls.append(1) or inner(*a, **k))
    jax.eval_shape(method.update, jax.random.key(0), state, batch)
    monkeypatch.undo()
    return len(calls)


def test_reused_negatives_save_the_second_chain(monkeypatch):
    assert chains_of(config_of(), monkeypatch) == 2
    assert chains_of(config_of(reuse_negatives=True), monkeypatch) == 1


@pytest.mark.slow
def test_power_iterations_of_both_kinds_agree_when_the_vectors_have_converged(model):
    config, state, batch, _ = model
    converged = state._replace(
        energy=state.energy._replace(
            spectral=spectral_norm.iterate(state.energy.trained.params, state.energy.spectral, num_iterations=500)
        )
    )
    draws = ec_vae.draw(config, jax.random.key(7), 6)
    draws = draws._replace(
        calibration_noise=jax.random.normal(jax.random.key(1), (6, 2, 8, 8, 1)),
        negative_noise=jax.random.normal(jax.random.key(2), (6, 2, 8, 8, 1)),
    )

    @functools.partial(jax.jit, static_argnums=0)
    def metrics(kind, state):
        return ec_vae.iterate(dataclasses.replace(config, power_iterations=kind), draws, state, batch)[1]

    names = ("calibration", "energy_data", "energy_negative", "energy_gradient_norm", "vae_gradient_norm")
    update, evaluation = metrics("per_update", converged), metrics("per_evaluation", converged)
    for name in names:
        np.testing.assert_allclose(update[name], evaluation[name], rtol=1e-4, err_msg=name)
    raw_update, raw_evaluation = metrics("per_update", state), metrics("per_evaluation", state)
    assert abs(raw_update["energy_data"] / raw_evaluation["energy_data"] - 1) > 1e-3


# --- the calibrated posterior -----------------------------------------------------------------------------------------


def test_the_posterior_is_that_of_the_decoder_as_it_reconstructs(model):
    config, state, _, _ = model
    nets, z = ec_vae.networks(config), jax.random.normal(jax.random.key(1), (64, 4))
    params = {name: network.params for name, network in state.vae.items()}
    images, after, spectral = ec_vae._decode(nets, params, state.batch_stats, state.vae_spectral, z)
    decoder = ec_vae._decoder_of_batch(nets, params, state.batch_stats, after, spectral)
    np.testing.assert_allclose(jax.vmap(decoder)(z), images, atol=5e-3)  # the unbiased variance stands for the biased
    running = decoder_of_running_averages(nets, state, after, spectral)
    assert float(jnp.abs(jax.vmap(running)(z) - images).max()) > 0.1


def decoder_of_running_averages(nets, state, after, spectral):
    params = spectral_norm.normalize(state.vae["decoder"].params, spectral["decoder"])
    return bind(nets.decoder.apply, {"params": params, "batch_stats": after["decoder"]})


def test_the_posterior_needs_a_gaussian_likelihood():
    for wrong in ({"kl_weight": 0.0}, {"reconstruction": "ssim"}):
        with pytest.raises(ConfigError, match="calibrated_posterior=True does not fit"):
            config_of(calibrated_posterior=True, **wrong)
