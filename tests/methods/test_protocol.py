"""What every family promises the rest of the library: one test of each promise, over all of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy
from helpers.families import CONFIGS as FAMILIES
from helpers.families import IMAGES, away_from_the_start
from jax.tree_util import Partial

import jebm
from jebm import methods
from jebm.config import Config, from_dict, to_dict
from jebm.errors import ConfigError
from jebm.methods.ec.calibration import calibration_kernel
from jebm.methods.hat.chains import conditional_kernel
from jebm.methods.shared import Trained, chain_kernel, with_weights

CONFIGS = {**FAMILIES, "toy": toy.ToyConfig()}
KEY = jax.random.key(3)


@functools.cache
def made(name):
    """(method, a state whose floating arrays are all away from their start), compiled once."""
    method = methods.build(CONFIGS[name])
    state = jax.jit(method.init)(jax.random.key(0), IMAGES)
    is_trained = lambda node: isinstance(node, Trained)  # noqa: E731
    move = lambda node: node._replace(  # noqa: E731
        params=away_from_the_start(node.params), ema=node.ema and away_from_the_start(node.ema)
    ) if is_trained(node) else node  # fmt: skip
    return method, jax.tree.map(move, state, is_leaf=is_trained)


every_family = pytest.mark.parametrize("name", CONFIGS)


def test_every_family_is_here():
    assert set(CONFIGS) == set(methods.FAMILIES)


@every_family
def test_an_iteration_keeps_the_state_and_is_told_in_words(name):
    method, state = methods.build(CONFIGS[name]), None
    state = jax.eval_shape(method.init, KEY, IMAGES)
    after, metrics = jax.eval_shape(method.update, KEY, state, IMAGES)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert {(m.shape, m.dtype.name) for m in metrics.values()} == {((), "float32")}
    scores = jax.eval_shape(method.scores, KEY, state, IMAGES)
    assert {(s.shape, s.dtype.name) for s in scores.values()} <= {((), "float32")}

    # and the summary speaks of what there is: three numbers for the progress bar, four to six curves, each score
    from jebm.training import monitors

    logged = set(jax.eval_shape(functools.partial(monitors.measure, method), state, after, metrics, IMAGES))
    summary, few = type(CONFIGS[name]).SUMMARY, name == "hat_autoencoder"  # which has no chains
    assert set(summary.progress) <= logged
    assert len(summary.progress) == (2 if few else 3)
    assert (2 if few else 4) <= len(set(summary.curves) & logged) <= 6
    assert set(summary.scores) == set(scores) | ({"elbo"} if name == "ec_vae" else set())  # of Gaussian errors
    sentences = [*summary.curves.values(), *(score.meaning for score in summary.scores.values())]
    assert all(text[0].isupper() and text.endswith(".") for text in sentences)


@every_family
def test_more_samples_begin_with_the_fewer(name):
    method, state = made(name)
    few, many = (jax.jit(lambda key, n=n: method.generate(key, state, n))(KEY) for n in (2, 4))
    assert few.shape == (2, *method.image_shape)
    np.testing.assert_allclose(few, many[:2], atol=2e-4)


@every_family
def test_an_energy_is_one_scalar_of_one_image(name):
    method, state = made(name)
    energy = method.energy(state)
    assert isinstance(energy, Partial)
    # the same function object at each call: programs that take it compile once
    assert jax.tree.structure(energy) == jax.tree.structure(method.energy(state))
    values = jax.jit(jax.vmap(energy))(IMAGES)
    assert (values.shape, values.dtype.name) == ((4,), "float32")
    assert np.isfinite(values).all()
    assert np.ptp(values) > 0
    single = jax.jit(energy)(IMAGES[1])
    np.testing.assert_allclose(single, values[1], rtol=1e-4, atol=1e-4 * np.ptp(values))


@every_family
def test_images_that_are_none_of_its_own_are_refused_in_one_line(name):
    method, state = made(name)
    energy = method.energy(state)
    for wrong, words in (
        (IMAGES, "shape"),
        (jnp.zeros((8, 8, 3)), "shape"),
        (jnp.zeros((9, 8, 1)), "shape"),
        (jnp.zeros((8, 8, 1), jnp.uint8), "got uint8"),
        (jnp.full((8, 8, 1), 200.0), "values from 200 to 200"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            energy(wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"the method expects \(8, 8, 1\)"):
        method.init(KEY, jnp.zeros((4, 9, 9, 1)))


@every_family
def test_the_generator_takes_one_latent(name):
    method, state = made(name)
    assert (method.generator is None) == (method.latent_shape is None)
    if method.generator is not None:
        image = jax.eval_shape(method.generator(state), jnp.zeros(method.latent_shape))
        assert (image.shape, image.dtype.name) == (method.image_shape, "float32")


@every_family
def test_either_weights_generate(name):
    method, state = made(name)
    for weights in ("raw", "ema"):
        chosen = with_weights(state, weights)
        assert jax.tree.structure(chosen) == jax.tree.structure(state)
        networks = [n for n in method.networks(chosen).values() if isinstance(n, Trained) and n.ema is not None]
        assert networks
        for network in networks:
            jax.tree.map(np.testing.assert_array_equal, network.params, network.ema)


@every_family
def test_a_configuration_survives_json(name):
    config = Config(method=CONFIGS[name])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@every_family
def test_the_fields_that_back_off_are_there(name):
    config = CONFIGS[name]
    assert set(type(config).BACK_OFF) <= {"learning_rate", "step_size", "energy_regularization"}
    assert type(config).BACK_OFF["learning_rate"]
    for path in sum(type(config).BACK_OFF.values(), ()):
        value = functools.reduce(getattr, path.split("."), config)
        assert isinstance(value, float | tuple), path


# one unit of energy


def with_a_chain(name, **chain):
    config = CONFIGS[name]
    field = {"hat_ebm": "chain"}.get(name, "calibration")
    return dataclasses.replace(config, **{field: dataclasses.replace(getattr(config, field), **chain)})


@pytest.mark.parametrize("name", ["ec_vae", "ec_flow", "ec_gan", "hat_ebm"])
def test_the_drift_of_trainings_chain_is_eta_t_times_the_slope_of_the_energy(name):
    """A step of the chain as the family makes it, without noise, against the energy's gradient."""
    method, state = made(name)
    x, zeros = IMAGES[0], jnp.zeros((1, 8, 8, 1))
    own = jax.tree_util.Partial(lambda energy, x: method.temperature * energy(x), method.energy(state))  # f, or H
    if name == "hat_ebm":
        config = with_a_chain(name, residual_precision=0.0, max_drift=None).chain
        kernel = conditional_kernel(own, x, config, method.temperature, zeros)
        start = jnp.zeros_like(x)
    else:
        config = with_a_chain(name, cond_scale=0.0).calibration
        kernel, start = calibration_kernel(own, x, config, zeros), x
    drift = jax.jit(lambda kernel: kernel.step(KEY, kernel.init(start))[0].position - start)(kernel)
    slope = jax.jit(jax.grad(method.energy(state)))(x)
    expected = -method.chain.step_size * method.temperature * slope
    scale = float(jnp.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(drift, expected, atol=2e-3 * scale + 1e-7)
    # and the chain that long runs and the report walk is that one
    walked = chain_kernel(method._replace(chain=method.chain._replace(max_drift=None)), state)
    silent = dataclasses.replace(walked, noise=zeros)
    ahead = jax.jit(lambda kernel: kernel.step(KEY, kernel.init(x))[0].position - x)(silent)
    np.testing.assert_allclose(ahead, expected, atol=2e-3 * scale + 1e-7)


def test_the_chain_keeps_its_bound():
    method, state = made("hat_ebm")
    bound = 1e-3
    kernel = chain_kernel(method._replace(chain=method.chain._replace(step_size=1e6, max_drift=bound)), state)
    silent = dataclasses.replace(kernel, noise=jnp.zeros((1, 8, 8, 1)))
    moved = silent.step(KEY, silent.init(IMAGES[0]))[0].position - IMAGES[0]
    assert float(jnp.sqrt(jnp.sum(moved**2))) == pytest.approx(bound, rel=1e-3)


def test_the_sum_of_two_runs_is_their_product():
    energies = [method.energy(state) for method, state in (made("ec_vae"), made("hat_ebm"))]
    both = jax.jit(jax.vmap(jebm.energy.sum(*energies)))(IMAGES)
    by_hand = sum(np.asarray(jax.jit(jax.vmap(energy))(IMAGES), np.float64) for energy in energies)
    np.testing.assert_allclose(both, by_hand, rtol=1e-5)
    gaussian = jebm.energy.gaussian(jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1)))
    tilted = jebm.energy.sum(energies[0], gaussian)(IMAGES[0])
    np.testing.assert_allclose(tilted, energies[0](IMAGES[0]) + 0.5 * jnp.sum(IMAGES[0] ** 2), rtol=1e-5)


# what the trainer logs


def test_the_probes_energy_is_in_the_units_of_the_logged_ones():
    from jebm.training import monitors

    method, state = made("hat_ebm")
    metrics = jax.jit(lambda state: monitors.measure(method, state, state, {}, IMAGES))(state)
    energies = jax.vmap(method.energy(state))(IMAGES)
    expected = method.temperature * float(jnp.mean(energies))
    assert float(metrics["probe_energy"]) == pytest.approx(expected, rel=1e-4)
    assert {name for name in metrics if name.startswith("update_ratio/")} == {
        f"update_ratio/{name}" for name, network in method.networks(state).items() if isinstance(network, Trained)
    }
