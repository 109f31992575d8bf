"""Calibration of generators that are no VAE: a small GAN, and a generator of one-dimensional signals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT

from jebm.methods import ECGANConfig
from jebm.methods.ec import calibration, gan
from jebm.methods.ec.calibration import CalibrationConfig, calibrate, calibration_loss

# --- a signal generator of one's own: nothing below knows of images ---------------------------------------------------

LENGTH = 12


def test_the_documentation_calibrates_signals(capsys):
    """Only the constraint trains the generator: height and shift of the data are found without any other loss."""
    text = (ROOT / "docs/how-to/calibrate.md").read_text()
    (snippet,) = [block.partition("```")[0] for block in text.split("```python\n") if "calibration_loss(" in block]
    names = {}
    exec(compile(snippet, "calibrate.md", "exec"), names)  # noqa: S102
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


def test_a_fresh_gan():
    """Its iteration: `test_iteration_ec_gan`."""
    images = jnp.zeros((4, 8, 8, 1))
    state = jax.jit(gan.build(GAN).init)(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, state.generator.ema, state.generator.params)
    assert float(state.dual) == 7.0
    f, d = (jax.tree.leaves(network.trained.params) for network in (state.energy, state.discriminator))
    assert any(not np.array_equal(a, b) for a, b in zip(f, d, strict=True))  # of one shape, not of one key
