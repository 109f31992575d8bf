"""Calibration of generators that are no VAE: a small GAN, and a generator of one-dimensional signals."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm.methods import ECGANConfig, _ec_gan, calibration
from jebm.methods.calibration import CalibrationConfig, calibrate, calibration_loss

# --- a signal generator of one's own: nothing below knows of images ---------------------------------------------------

LENGTH = 12


def test_the_readme_calibrates_signals(capsys):
    """Only the constraint trains the generator: height and shift of the data are found without any other loss."""
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    (snippet,) = [block.partition("```")[0] for block in text.split("```python\n") if "calibration_loss(" in block]
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102
    capsys.readouterr()
    found = {name: float(values[-100:].mean()) for name, values in names["trace"].items()}
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
    assert all(float(metrics[f"{name}_gradient_norm"]) > 0 for name in ("generator", "energy", "data", "negative"))
    assert 0.5 < float(metrics["discriminator"]) < 3.5  # the hinge loss of a fresh discriminator is near 2
    for before, after in ((state.generator, new.generator), (state.discriminator.params, new.discriminator.params)):
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
        assert max(jax.tree.leaves(moved)) > 1e-5
    generated = jax.eval_shape(lambda state: method.generate(jax.random.key(2), state, 3), new)
    assert generated.shape == (3, 8, 8, 1)
