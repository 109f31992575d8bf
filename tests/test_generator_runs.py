"""A generator from another run: an EC-VAE's decoder, an autoencoder's; its weights stay those of the start."""

import dataclasses

import jax
import numpy as np
import pytest

import jebm
from jebm import runs
from jebm.config import Config, ConfigError, DataConfig
from jebm.methods import ChainConfig, ECVAEConfig, HatAutoencoderConfig, HatEBMConfig
from jebm.methods.ec_vae import standing_decoder
from jebm.methods.hat_autoencoder import decoder
from jebm.training import Checkpoints
from jebm.training.state import initial_state

VAE = ECVAEConfig(
    image_size=8, channels=1, latent_size=4, encoder_width=4, decoder_width=2, energy_layers=((4, 1),),
    energy_head_width=4, energy_scales=1, spectral_norm=False,
)  # fmt: skip
AUTOENCODER = HatAutoencoderConfig(image_size=8, channels=1, width=4)
MOVING = ChainConfig(num_steps=0, latent_noise_scale=1e-2)


def fresh_run(path, method, seed=0):
    """A run directory with a checkpoint of step 0."""
    config = Config(method, DataConfig(batch_size=2))
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    directory = runs.RunDirectory(path)
    directory.write_config(config)
    batch = np.zeros((2, 8, 8, 1), np.float32)
    checkpoints = Checkpoints(directory.checkpoints, 1)
    built = runs.build(config)
    checkpoints.save(jax.jit(lambda seed, b: initial_state(built, seed, b))(seed, batch), {})
    checkpoints.close()
    return jebm.load(path)


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
