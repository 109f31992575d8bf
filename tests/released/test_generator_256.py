"""The 256 px generator with both heads of the release, and that ours is the one without the second head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import load, stats_like, trees_close, vectors_like

from jebm.methods.ec.vae_networks_256 import Generator256
from jebm.networks import spectral_norm
from released.generator_256 import TwoHeadedGenerator256


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def evaluate(module, variables, inputs, train=False):
    """The outputs, and the batch statistics afterwards."""
    outputs, updated = module.apply(variables, inputs, train=train, mutable=["batch_stats"])
    return outputs, updated["batch_stats"]


def test_ours_is_the_released_one_without_its_second_head():
    shapes = lambda module: jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 128)))  # noqa: E731
    both, one = shapes(TwoHeadedGenerator256()), shapes(Generator256())
    assert sum(leaf.size for leaf in jax.tree.leaves(both["params"])) == 24_933_536
    assert both["params"].pop("to_128")["kernel"].shape == (1, 1, 64, 3)
    assert both == one


@pytest.mark.golden
def test_the_generator_of_the_release(golden, highest_precision):
    case = golden("E4_generator256")
    z = case["in/z"]
    channels = case["w/to_big/kernel"].shape[-1]
    module = TwoHeadedGenerator256(int(case["cfg/ngf"]), channels, int(case["cfg/nz"]))
    variables, state = load(module, case, z, vectors="sn0")
    params = variables["params"]

    def close(actual, expected, atol):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)

    frozen = {**variables, "params": jax.jit(spectral_norm.normalize)(params, state)}
    (image, _), _ = evaluate(module, frozen, z)
    close(image[:, ::8, ::8], case["out/image_eval0_s8"], 5e-5)
    close(image[:1, :64, :64], case["out/image_eval0_crop_a"], 5e-5)
    close(image[1:2, 100:180, 176:256], case["out/image_eval0_crop_b"], 5e-5)
    # the side head takes no part in the train call, so its vectors rest
    used = {name: vectors for name, vectors in state.items() if name != "to_128"}
    state = state | jax.jit(spectral_norm.iterate)(params, used)
    trees_close(state, vectors_like(state, case, "sn1"), atol=2e-5)
    frozen = {**variables, "params": jax.jit(spectral_norm.normalize)(params, state)}
    (image, _), stats = evaluate(module, frozen, z, train=True)
    close(image[:, ::8, ::8], case["out/image_train_s8"], 2e-4)
    trees_close(stats, stats_like(stats, case, "stats1"), rtol=1e-5, atol=1e-6)
    image, side = evaluate(module, frozen | {"batch_stats": stats}, z)[0]
    close(image[:, ::8, ::8], case["out/image_eval1_s8"], 5e-5)
    close(side[:, ::4, ::4], case["out/image128_eval1_s4"], 5e-5)
