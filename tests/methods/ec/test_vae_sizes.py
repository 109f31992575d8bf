"""The networks for 64 and 256 px inside EC-VAE, narrow, trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import methods
from jebm.methods import ECVAEConfig
from jebm.methods.ec.calibration import CalibrationConfig


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "layers"), [(64, ((2, 1),) * 5), (256, ((2, 1),) * 7)]
)  # fmt: skip
def test_larger_networks_learn(size, layers):
    """Reconstruction of two images falls: encoder, decoder and energy of that size, in one program."""
    config = ECVAEConfig(
        image_size=size, latent_size=4, encoder_width=4, decoder_width=2, energy_layers=layers, energy_head_width=4,
        energy_scales=1, vae_learning_rate=2e-3, calibration=CalibrationConfig(num_steps=1), reuse_negatives=True,
    )  # fmt: skip
    method = methods.build(config)
    row = jnp.linspace(-0.9, 0.9, size)
    images = jnp.stack([jnp.broadcast_to(row[:, None, None], (size, size, 3)), jnp.full((size, size, 3), -0.5)])
    state, update = jax.jit(method.init)(jax.random.key(0), images), jax.jit(method.update)
    errors = []
    for step in range(12):
        state, metrics = update(jax.random.fold_in(jax.random.key(1), step), state, images)
        errors.append(float(metrics["reconstruction"]))
        assert all(np.isfinite(float(metric)) for metric in metrics.values())
    assert np.mean(errors[-3:]) < 0.8 * errors[0]
