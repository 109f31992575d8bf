"""What energies learn from, in closed form, and that the families hand on their regularisation."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import methods
from jebm.errors import ConfigError
from jebm.learning.likelihood import contrastive_loss
from jebm.methods import ECVAEConfig, HatEBMConfig
from jebm.methods.hat.ebm import energy_loss, hat_network


def test_the_loss_in_closed_form():
    data, negatives = jnp.array([1.0, 3.0]), jnp.array([-2.0, 0.0, 5.0])
    np.testing.assert_allclose(contrastive_loss(data, negatives, 0.5), (2.0 - 1.0) / 0.5)
    expected = (2.0 - 1.0 + 0.1 * (10.0 / 2 + 29.0 / 3)) / 0.5
    np.testing.assert_allclose(contrastive_loss(data, negatives, 0.5, 0.1), expected, rtol=1e-6)
    gradient = jax.grad(lambda f: contrastive_loss(f, negatives, 0.5, 0.1))(data)
    np.testing.assert_allclose(gradient, (1 + 0.2 * data) / 2 / 0.5, rtol=1e-6)


def test_hat_ebm_hands_it_on(key):
    config = HatEBMConfig(image_size=8, channels=1, energy_width=8, temperature=0.5)
    images = jax.random.normal(key, (2, 3, 8, 8, 1))
    params = jax.jit(hat_network(config).init)(key, images[0])["params"]
    f = [hat_network(config).apply({"params": params}, x) for x in images]
    for regularization in (0.0, 0.7):
        changed = dataclasses.replace(config, energy_regularization=regularization)
        loss, _ = energy_loss(changed, params, *images)
        np.testing.assert_allclose(loss, contrastive_loss(*f, 0.5, regularization), rtol=1e-4)


def test_ec_vae_hands_it_on(monkeypatch):
    config = ECVAEConfig(
        image_size=8, channels=1, latent_size=4, encoder_width=8, decoder_width=4, energy_layers=((4, 1),),
        energy_head_width=4, energy_scales=1, energy_regularization=0.3,
    )  # fmt: skip
    given = []
    recorded = lambda *terms: given.append(terms[2:]) or contrastive_loss(*terms)  # noqa: E731
    monkeypatch.setattr(sys.modules["jebm.methods.ec.energy_model"], "contrastive_loss", recorded)
    method, batch = methods.build(config), jnp.zeros((4, 8, 8, 1))
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    jax.eval_shape(method.update, jax.random.key(0), state, batch)
    assert given == [(config.calibration.temperature, 0.3)]


@pytest.mark.parametrize("config", [ECVAEConfig, HatEBMConfig])
def test_below_zero(config):
    with pytest.raises(ConfigError, match="energy_regularization=-0.1 is out of range"):
        config(energy_regularization=-0.1)
