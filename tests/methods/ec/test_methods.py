"""The three families as methods: their energy, generator, networks and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import CONFIGS, IMAGES
from helpers.iterations import chain_noise

from jebm import methods
from jebm.methods.ec import flow, gan
from jebm.methods.shared import Trained, with_weights


@pytest.fixture(scope="module", params=["ec_flow", "ec_gan", "ec_vae"])
def case(request):
    method = methods.build(CONFIGS[request.param])
    return method, jax.jit(method.init)(jax.random.key(0), IMAGES)


def moved(tree):
    """All numbers changed, also those that start at 0 or 1."""
    return jax.tree.map(lambda a: 1.2 * a + 0.05 if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def test_programs_of_an_energy_and_of_a_generator_compile_once(case):
    """Other weights are other leaves of the same function."""
    method, state = case
    for make, x in ((method.energy, IMAGES[0]), (method.generator, jnp.ones(method.latent_shape))):
        traces = []
        program = jax.jit(lambda function, x, traces=traces: traces.append(1) or function(x))
        first, second = program(make(state), x), program(make(moved(state)), x)
        assert len(traces) == 1
        assert float(jnp.abs(first - second).max()) > 1e-4


def test_the_generator_is_that_of_the_samples(case):
    method, state = case
    z = jnp.stack([jax.random.normal(jax.random.fold_in(jax.random.key(3), i), method.latent_shape) for i in range(2)])
    images = jax.jit(lambda state: jax.vmap(method.generator(state))(z))(state)
    samples = jax.jit(lambda state: method.generate(jax.random.key(3), state, 2))(state)
    np.testing.assert_allclose(jnp.clip(images, -1, 1), samples, atol=1e-5)


def test_the_weights_asked_for_generate(case):
    """A fresh average equals its weights: raw and averaged samples differ as soon as the weights have moved."""
    method, state = case
    is_trained = lambda node: isinstance(node, Trained)  # noqa: E731
    trained = lambda node: node._replace(params=moved(node.params)) if is_trained(node) else node  # noqa: E731
    after = jax.tree.map(trained, state, is_leaf=is_trained)
    generate = jax.jit(lambda state: method.generate(jax.random.key(0), state, 2))
    raw, average = (with_weights(after, weights) for weights in ("raw", "ema"))
    samples = generate(after)
    assert method.weights == "ema"
    np.testing.assert_array_equal(generate(average), samples)
    assert float(jnp.abs(generate(raw) - samples).max()) > 1e-3


def test_the_networks_that_learn(case):
    method, state = case
    networks = method.networks(state)
    assert "energy" in networks
    assert all(isinstance(network, Trained) for network in networks.values())
    kept = {name for name, network in networks.items() if network.ema is not None}
    assert kept == set(networks) - {"energy", "discriminator"}


@pytest.mark.parametrize("name", ["ec_flow", "ec_gan", "ec_vae"])
def test_a_recovery_backs_off_numbers_of_the_configuration(name):
    for fields in CONFIGS[name].BACK_OFF.values():
        for field in fields:
            group = CONFIGS[name]
            *path, last = field.split(".")
            for part in path:
                group = getattr(group, part)
            assert isinstance(getattr(group, last), float), field


@pytest.mark.parametrize(("name", "family"), [("ec_flow", flow), ("ec_gan", gan)])
def test_recorded_noise_takes_the_place_of_the_key(name, family):
    """So an iteration of another code can be repeated; for the EC-VAE the golden iterations do it."""
    config = CONFIGS[name]
    state = jax.jit(lambda: family.initialize(config, jax.random.key(0), IMAGES))()
    distance = jax.jit(lambda draws: family.iterate(config, draws, state, IMAGES)[1]["calibration"])
    draws = family.draw(config, jax.random.key(1), len(IMAGES))
    noise = chain_noise(draws.calibration_key, IMAGES.shape, config.calibration)
    recorded = distance(draws._replace(calibration_noise=noise))
    np.testing.assert_allclose(recorded, distance(draws), rtol=1e-3)
    assert float(distance(draws._replace(calibration_noise=0 * noise))) < 0.5 * float(recorded)
