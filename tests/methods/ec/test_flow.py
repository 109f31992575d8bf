"""The energy-calibrated flow: likelihoods of levels, generation, refusals. Its iteration: `test_iteration_ec_flow`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import methods
from jebm.errors import ConfigError
from jebm.methods import ECFlowConfig
from jebm.methods.ec import calibration
from jebm.methods.ec import flow as ec_flow

CONFIG = ECFlowConfig(
    image_size=2, channels=1, num_scales=1, num_steps=1, width=4, energy_layers=((4, 1),), energy_head_width=4,
    calibration=calibration.CalibrationConfig(num_steps=2, dual_initial=5.0),
)  # fmt: skip
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1)) / 127.5 - 1, jnp.float32)


@pytest.fixture(scope="module")
def state():
    fresh = ec_flow.initialize(CONFIG, jax.random.key(0), IMAGES)
    jax.tree.map(np.testing.assert_array_equal, fresh.flow.ema, fresh.flow.params)
    assert float(fresh.dual) == 5.0
    leaves, structure = jax.tree.flatten(fresh.flow.params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    return fresh._replace(flow=fresh.flow._replace(params=params, ema=params))


def test_levels_and_images_are_inverse():
    levels = jnp.arange(256.0)
    images = levels / 127.5 - 1
    u = ec_flow.dequantized(images, jax.random.uniform(jax.random.key(0), images.shape))
    np.testing.assert_array_equal(jnp.floor(256 * u), levels)
    np.testing.assert_allclose(ec_flow.to_unit(images), (levels + 0.5) / 256, atol=1e-6)
    np.testing.assert_allclose(ec_flow.to_images(ec_flow.to_unit(images)), images, atol=1e-6)


def test_the_density_of_one_pixel_integrates_to_one(state):
    """Along each pixel the density of u is that of a change of variables: its integral over [0, 1]^4 is 1.

    By importance sampling from the uniform law; F(logit) reaches all but the tails that α leaves out.
    """
    u = jax.random.uniform(jax.random.key(5), (40_000, 2, 2, 1))
    density = 2.0 ** (-4 * (ec_flow.bits_per_dimension(CONFIG, state.flow.params, u) - 8))
    # the mass outside the cube is that of samples whose u lies outside [0, 1]
    samples = ec_flow.generate_from(CONFIG, state.flow.params, jax.random.normal(jax.random.key(6), (40_000, 4)))
    beyond = ((samples + 1) * 127.5 + 0.5) / 256
    inside = float(jnp.mean(jnp.all((beyond >= 0) & (beyond <= 1), (1, 2, 3))))
    error = float(density.std()) / 200 + np.sqrt(inside * (1 - inside)) / 200
    assert 0.05 < inside < 0.999
    assert error < 0.02
    np.testing.assert_allclose(density.mean(), inside, atol=4 * error)


def test_generation_inverts_the_flow(state):
    back = ec_flow.reconstruct(CONFIG, jax.random.key(0), state, 0.9 * IMAGES)
    np.testing.assert_allclose(back, 0.9 * IMAGES, atol=1e-5)
    generator = ec_flow.generator_of(CONFIG, state)
    z = jax.random.normal(jax.random.key(1), (3, 4))
    np.testing.assert_allclose(generator(z)[1], generator(z[1]), atol=1e-6)


def test_mistakes():
    with pytest.raises(ConfigError, match="image_size=12 is out of range: it must be a multiple of"):
        ECFlowConfig(image_size=12)
    with pytest.raises(ConfigError, match="alpha=0.5 is out of range: it must be below 0.5"):
        ECFlowConfig(alpha=0.5)
    with pytest.raises(ConfigError, match=r"the data are images of \(4, 4, 1\)"):
        methods.build(CONFIG).init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))
    assert methods.family_of(CONFIG) == "ec_flow"
