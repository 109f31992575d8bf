"""A generator from another run: an EC-VAE's decoder, an autoencoder's; its weights stay those of the start."""

import jax
import numpy as np
import pytest
from helpers.runs import AUTOENCODER, VAE, fresh_run

import jebm
from jebm.config import Config
from jebm.errors import ConfigError
from jebm.methods import ChainConfig, HatEBMConfig
from jebm.methods.ec.vae import standing_decoder
from jebm.methods.hat.autoencoder import decoder
from jebm.runs import run as runs

MOVING = ChainConfig(num_steps=0, latent_noise_scale=1e-2)


@pytest.mark.parametrize(
    ("method", "generator_of", "application", "latent"),
    [
        pytest.param(VAE, standing_decoder, "refinement", (4,), id="ec_vae"),
        pytest.param(AUTOENCODER, decoder, "retrofit", (4, 4, 1), id="autoencoder", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_hat_over_the_generator_of_a_run(tmp_path, key, method, generator_of, application, latent):
    base = fresh_run(tmp_path / "base", method)
    settings = HatEBMConfig(
        application=application, generator=str(tmp_path / "base"), image_size=8, channels=1, latent_size=4,
        energy_width=4, chain=MOVING, test_chain=MOVING,
    )  # fmt: skip
    run = fresh_run(tmp_path / "hat", settings)
    keys = jebm.chain_keys(jax.random.split(key)[0], 3)
    z = jax.vmap(lambda k: jax.random.normal(jax.random.split(k)[0], latent))(keys)
    expected = jax.jit(generator_of(method, base.state))(z)
    images = jax.jit(run.method.generate, static_argnums=2)(key, run.state, 3)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    assert np.std(expected) > 0.01

    # the weights are in the hat's own checkpoint: another base of that name changes nothing
    (tmp_path / "base").rename(tmp_path / "old")
    fresh_run(tmp_path / "base", method, seed=1)
    again = jebm.load(tmp_path / "hat")
    np.testing.assert_array_equal(jax.jit(again.method.generate, static_argnums=2)(key, again.state, 3), images)


def test_a_run_that_is_not_there_is_named(tmp_path):
    settings = HatEBMConfig(
        application="refinement", generator=str(tmp_path / "no"), image_size=8, chain=MOVING, test_chain=MOVING
    )
    with pytest.raises(ConfigError, match=r"method.generator=.*no: .*is no run directory"):
        runs.build(Config(settings))
    with pytest.raises(ConfigError, match="take that run itself"):
        jebm.methods.build(Config(settings))
