"""Calibration of generators that are no VAE: a small GAN, and a generator of one-dimensional signals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jebm.methods import ECGANConfig, _ec_gan, calibration
from jebm.methods.calibrating_energy import EnergyModel
from jebm.methods.calibration import CalibrationConfig, calibrate, calibration_loss, dual_step

# --- a signal generator of one's own: nothing below knows of images ---------------------------------------------------

LENGTH = 12


class SignalEnergy(nn.Module):
    """``f`` of signals [..., LENGTH]."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(16)(x)))[..., 0]


def generate(params, z):
    """A sine of unknown height and a shift: the generator's two parameters. z [B, 1] is the phase."""
    t = jnp.linspace(0, 2 * jnp.pi, LENGTH, endpoint=False)
    return params["height"] * jnp.sin(t + z) + params["shift"]


def data(key, n):
    return generate({"height": 0.8, "shift": 0.3}, jax.random.uniform(key, (n, 1), maxval=2 * jnp.pi))


def test_a_signal_generator_is_calibrated():
    """Only the constraint trains it: the height and shift of the data are found without any other loss."""
    settings = CalibrationConfig(num_steps=10, step_size=1e-4, temperature=1e-3, dual_initial=50.0, dual_max=50.0)
    model = EnergyModel(SignalEnergy(), learning_rate=5e-3, spectral_norm=True)
    optimizer = optax.adam(1e-2)

    def iteration(carry, step):
        params, optimizer_state, energy, dual = carry
        latent, chain, real = jax.random.split(jax.random.fold_in(jax.random.key(7), step), 3)
        energy = model.refresh(energy)
        z = jax.random.uniform(latent, (64, 1), maxval=2 * jnp.pi)

        def loss(params):
            generated = generate(params, z)
            calibrated = calibrate(chain, model.head(energy), generated, settings)
            return dual * calibration_loss(calibrated, generated), (generated, calibrated)

        gradients, (generated, calibrated) = jax.grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        energy, _ = model.step(energy, data(real, 64), calibrated, settings.temperature)
        dual = dual_step(dual, calibration_loss(calibrated, generated), settings, LENGTH)
        return (optax.apply_updates(params, updates), optimizer_state, energy, dual), params

    params = {"height": jnp.asarray(0.3), "shift": jnp.asarray(-0.4)}
    energy = model.init(jax.random.key(1), jnp.zeros(LENGTH))
    carry = (params, optimizer.init(params), energy, jnp.asarray(settings.dual_initial))
    _, trace = jax.jit(lambda carry: jax.lax.scan(iteration, carry, jnp.arange(600)))(carry)
    found = {name: float(values[-100:].mean()) for name, values in trace.items()}
    assert found["shift"] == pytest.approx(0.3, abs=0.15)  # from -0.4
    assert found["height"] == pytest.approx(0.8, abs=0.25)  # from 0.3


def test_the_floor_of_signals_counts_their_values():
    settings = CalibrationConfig(num_steps=4, step_size=1e-3)
    still = lambda x: 0.0 * jnp.sum(x)  # noqa: E731
    signals = jnp.zeros((2000, LENGTH))
    moved = calibrate(jax.random.key(0), still, signals, settings)
    loss = float(calibration_loss(moved, signals))
    assert loss == pytest.approx(calibration.noise_floor(settings, LENGTH), rel=0.05)


# --- the GAN ----------------------------------------------------------------------------------------------------------

GAN = ECGANConfig(
    image_size=8, channels=1, latent_size=3, generator_width=2, discriminator_layers=((4, 1),), energy_layers=((4, 1),),
    head_width=4, calibration=CalibrationConfig(num_steps=2, dual_initial=7.0),
)  # fmt: skip


def test_an_iteration_of_the_gan():
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)), jnp.float32)
    method = _ec_gan.build(GAN)
    state = method.init(jax.random.key(0), images)
    new, metrics = jax.jit(method.update)(jax.random.key(1), state, images)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    floor = calibration.noise_floor(GAN.calibration, 64)
    assert 0.5 * floor < float(metrics["calibration"]) < 30 * floor
    expected = calibration.dual_step(jnp.asarray(7.0), metrics["calibration"], GAN.calibration, 64)
    np.testing.assert_allclose(new.dual, expected, rtol=1e-6)
    assert 0.5 < float(metrics["discriminator"]) < 3.5  # the hinge loss of a fresh discriminator is near 2
    for before, after in ((state.generator, new.generator), (state.discriminator.params, new.discriminator.params)):
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
        assert max(jax.tree.leaves(moved)) > 1e-5
    generated = jax.eval_shape(lambda state: method.generate(jax.random.key(2), state, 3), new)
    assert generated.shape == (3, 8, 8, 1)
