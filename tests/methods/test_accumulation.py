"""Gradient accumulation: what a batch gives in one piece, in the memory of a part; or the reason why it cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy
from helpers.families import CONFIGS as FAMILIES
from helpers.families import away_from_the_start
from jax.extend.core import jaxprs_in_params

from jebm import methods, sharding
from jebm.errors import ConfigError
from jebm.methods import accumulation
from jebm.methods.denoising.chains import SemanticChainConfig
from jebm.methods.hat.chains import ChainConfig
from jebm.methods.shared import Trained

KEY = jax.random.key(3)
ROWS = 22  # in no other size of the tiny networks
IMAGES = jnp.asarray(np.random.default_rng(1).integers(0, 256, (ROWS, 8, 8, 1)) / 127.5 - 1, jnp.float32)

JOINT = ChainConfig(num_steps=2, latent_noise_scale=0.1, residual_precision=0.5, latent_prior=True)
COUPLED = {
    "ec_vae": "statistics of the whole batch",
    "ec_gan": "statistics of the whole batch",
    "toy": "whole batch",
    "ebm": "whole batch",
}
CONFIGS = {name: config for name, config in FAMILIES.items() if name not in COUPLED} | {
    "hat_ebm_joint": dataclasses.replace(
        FAMILIES["hat_ebm"], application="refinement", generator="network", energy_regularization=0.3,
        chain=JOINT, test_chain=JOINT,
    ),
    "ec_flow_likelihood": dataclasses.replace(FAMILIES["ec_flow"], variant="likelihood"),
    "denoising_ebm_pixels": dataclasses.replace(
        FAMILIES["denoising_ebm"], semantic_chain="pixel", negatives="recovery",
        chain=SemanticChainConfig(num_steps=2),
    ),
}  # fmt: skip
for name in ("hat_ebm", "denoising_ebm"):
    CONFIGS[name] = dataclasses.replace(CONFIGS[name], bank_size=44)


def moving(node):
    """A network whose optimiser has a past: Adam's first update is the gradient's sign, which rounding turns."""
    if not isinstance(node, Trained):
        return node
    floating = lambda a: a + 0.1 if jnp.issubdtype(a.dtype, jnp.floating) else a  # noqa: E731
    past = jax.tree.map(floating, node.optimizer)
    return node._replace(params=away_from_the_start(node.params), optimizer=past)


def started(name):
    method = methods.build(CONFIGS[name])
    state = jax.jit(method.init)(jax.random.key(0), IMAGES)
    return method, jax.tree.map(moving, state, is_leaf=lambda node: isinstance(node, Trained))


def products(jaxpr):
    """The shapes of what the program multiplies, in its loops and functions, too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated", "jebm_conv"):
            yield from (variable.aval.shape for variable in equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


READINGS = ("hat_ebm_joint", "ec_flow_likelihood", "denoising_ebm_pixels")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in READINGS)) for n in CONFIGS])
def test_two_microbatches_are_one_batch_in_half_of_it(name):
    method, state = started(name)
    after, metrics = jax.jit(accumulation.update_of(method, 1))(KEY, state, IMAGES)
    halves = jax.jit(accumulation.update_of(method, 2)).trace(KEY, state, IMAGES)
    accumulated, measured = halves.lower().compile()(KEY, state, IMAGES)
    assert measured.keys() == metrics.keys()
    for metric, expected in metrics.items():
        np.testing.assert_allclose(measured[metric], expected, rtol=1e-4, atol=2e-6, err_msg=metric)
    paths = jax.tree_util.tree_leaves_with_path(after)
    for (path, expected), found in zip(paths, jax.tree.leaves(accumulated), strict=True):
        largest = np.max(
            np.abs(expected), initial=1e-3
        )  # the gradients, which optimisers keep, are differences of large means
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path))
    sizes = {size for shape in products(halves.jaxpr.jaxpr) for size in shape}
    assert ROWS // 2 in sizes
    assert not {ROWS, 2 * ROWS} & sizes  # nothing multiplies more than a half at a time


@pytest.mark.parametrize("name", COUPLED)
def test_a_method_that_needs_the_whole_batch_says_why_in_one_line(name):
    method = methods.build(toy.ToyConfig() if name == "toy" else FAMILIES[name])
    assert accumulation.update_of(method, 1) is method.update
    with pytest.raises(ConfigError, match=f"training.microbatches=2: not for this method, .*{COUPLED[name]}") as error:
        accumulation.update_of(method, 2)
    assert "\n" not in str(error.value)


def test_a_gradient_is_the_mean_of_those_of_the_parts():
    weights, x = jnp.arange(3.0), jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)

    def loss(weights, x, scale):
        rows = jnp.tanh(x @ weights) * scale
        return jnp.mean(rows**2), ({"mean": jnp.mean(rows)}, rows)

    scale = jnp.arange(6.0)
    expected, (means, rows) = jax.grad(loss, has_aux=True)(weights, x, scale)
    for number in (1, 2, 3, 6):
        found, averaged, in_order = accumulation.gradients(loss, number, weights, x, scale)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(averaged["mean"], means["mean"], rtol=1e-5)
        np.testing.assert_allclose(in_order, rows, rtol=1e-6)
    doubled = accumulation.by_rows(lambda x, keys: {"x": 2 * x, "key": keys}, 3, x, jax.random.split(KEY, 6))
    np.testing.assert_array_equal(doubled["x"], 2 * x)
    np.testing.assert_array_equal(jax.random.key_data(doubled["key"]), jax.random.key_data(jax.random.split(KEY, 6)))
    with pytest.raises(ValueError, match="a batch of 6 rows does not divide into 4 microbatches"):
        accumulation.by_rows(jnp.sin, 4, x)


def test_devices_keep_their_own_rows():
    mesh = sharding.make_mesh()
    x = sharding.shard_batch(jnp.arange(24.0).reshape(8, 3), mesh)
    with jax.set_mesh(mesh):
        program = jax.jit(lambda x: accumulation.by_rows(jnp.sin, 2, x)).lower(x).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program.as_text()
    np.testing.assert_allclose(program(x), jnp.sin(x), rtol=1e-6)
    assert {shard.data.shape for shard in program(x).addressable_shards} == {(4, 3)}
