"""Networks of Hat EBM: parameter counts, initial laws, and what the blocks promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jebm.methods.hat.networks import (
    IMAGE_SIZES,
    HatDecoder,
    HatEncoder,
    HatEnergy,
    HatGenerator,
    bilinear_upsample,
    code_shape,
)


def count(module, *shape):
    """(trainable parameters, frozen statistics), by shape only."""
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    return size(variables["params"]), size(variables.get("batch_stats", {}))


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [(32, 256, 4_204_800), (64, 1024, 19_542_720), (128, 1024, 38_419_136), (128, 2048, 153_654_656)],
)
def test_parameters_of_the_hat(size, width, expected):
    assert count(HatEnergy(size, width), size, size, 3) == (expected, 0)


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        (32, 256, (4_276_739, 3_584)), (64, 1024, (12_220_675, 5_888)), (128, 1024, (32_150_787, 9_984)),
        (128, 2048, (124_340_739, 19_968)),
    ],
)  # fmt: skip
def test_parameters_of_the_generator(size, width, expected):
    assert count(HatGenerator(size, width), 128) == expected


def test_parameters_of_the_autoencoder():
    assert count(HatDecoder(), 16, 16, 1) == (4_210_435, 4_096)
    assert count(HatEncoder(), 32, 32, 3) == (4_206_849, 0)


def test_initial_law_is_glorot_uniform():
    params = HatEnergy(8, 64).init(jax.random.key(0), jnp.zeros((8, 8, 3)))["params"]
    for path, leaf in flatten_dict(params).items():
        if path[-1] == "bias":
            assert not leaf.any()
            continue
        *window, fan_in, fan_out = leaf.shape
        area = int(np.prod(window))
        bound = np.sqrt(6 / (area * fan_in + area * fan_out))
        assert np.abs(leaf).max() <= bound
        if leaf.size > 4000:
            np.testing.assert_allclose(leaf.std(), bound / np.sqrt(3), rtol=0.05)


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_shapes_with_and_without_batch_axes(size):
    hat, generator, encoder, decoder = HatEnergy(size, 16), HatGenerator(size, 16, 2), HatEncoder(4), HatDecoder(4, 2)
    key, image, code = jax.random.key(0), (size, size, 2), code_shape(size)

    def check(module, given, result):
        for batch in ((), (3,), (2, 3)):
            x = jnp.zeros((*batch, *given))
            out = jax.eval_shape(lambda x: module.init_with_output(key, x)[0], x)
            assert out.shape == (*batch, *result)
            assert out.dtype == jnp.float32

    check(hat, image, ())
    check(generator, (5,), image)
    check(encoder, image, code)
    check(decoder, code, image)


def test_single_examples_by_vmap_equal_the_batch(key):
    x = jax.random.normal(key, (3, 8, 8, 1))
    hat = HatEnergy(8, 8)
    params = hat.init(key, x)
    batched = hat.apply(params, x)
    np.testing.assert_allclose(jax.vmap(lambda image: hat.apply(params, image))(x), batched, rtol=1e-6)
    np.testing.assert_allclose(hat.apply(params, x[1:2]), batched[1:2], rtol=1e-6)  # whatever else is in the batch


def test_codes_lie_on_the_sphere_and_the_projection_alone_puts_them_there(key):
    x = jax.random.normal(key, (4, 8, 8, 1))
    encoder = HatEncoder(8)
    params = encoder.init(key, x)
    codes, raw = encoder.apply(params, x), HatEncoder(8, project=False).apply(params, x)
    np.testing.assert_allclose(jnp.linalg.norm(codes.reshape(4, -1), axis=1), 4.0, rtol=1e-4)  # 16 numbers
    norms = jnp.linalg.norm(raw.reshape(4, -1), axis=1)[:, None, None, None]
    np.testing.assert_allclose(codes, 4.0 * raw / (norms + 1e-6), rtol=1e-5)


def test_images_lie_within_twice_the_range_of_data(key):
    decoder, generator = HatDecoder(4, 1), HatGenerator(8, 4, 1)
    for module, latents in ((decoder, (64, 4, 4, 1)), (generator, (64, 6))):
        z = 60.0 * jax.random.normal(key, latents)
        size = np.abs(jax.jit(module.init_with_output)(key, z)[0]).max()
        assert 1.5 < size <= 2.0  # 2 tanh, which float32 rounds to 2 far out


def test_statistics_normalise_and_are_not_updated(key):
    generator, z = HatGenerator(8, 4, 1), jax.random.normal(key, (2, 6))
    variables = generator.init(key, z)
    image, updated = generator.apply(variables, z, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    assert np.abs(image).max() < 2
    # statistics 0 and 1 amount to scale / sqrt(1.001)
    narrow = jax.tree.map(lambda a: a * np.sqrt(1.001), variables["params"]["out_bn"]["scale"])
    stats = {**variables["batch_stats"], "out_bn": {"mean": jnp.zeros(4), "var": jnp.ones(4) * (1.001**2 - 1e-3)}}
    params = {**variables["params"], "out_bn": {**variables["params"]["out_bn"], "scale": narrow}}
    np.testing.assert_allclose(generator.apply({"params": params, "batch_stats": stats}, z), image, rtol=1e-5)


def test_dense_output_is_read_channels_first(key):
    generator, z = HatGenerator(8, 4, 1), jnp.ones((2,))
    variables = generator.init(key, z)
    _, captured = generator.apply(variables, z, capture_intermediates=True, mutable=["intermediates"])
    dense = captured["intermediates"]["dense"]["__call__"][0]
    moved = np.asarray(dense).reshape(4, 4, 4).transpose(1, 2, 0)
    first = captured["intermediates"]["block2"]["bn_1"]["__call__"][0]  # an affine map with scale 1 and bias 0
    np.testing.assert_allclose(first, moved / np.sqrt(1.001), rtol=1e-5)


def test_upsampling_puts_pixel_centres_half_way():
    x = jnp.arange(3.0)[:, None, None]
    column = bilinear_upsample(jnp.broadcast_to(x, (3, 2, 1)))[:, 0, 0]
    np.testing.assert_allclose(column, [0, 0.25, 0.75, 1.25, 1.75, 2], atol=1e-6)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"image_size must be one of \[8, 16, 32, 64, 128\], got 24"):
        HatEnergy(24, 16).init(jax.random.key(0), jnp.zeros((24, 24, 3)))
    with pytest.raises(ValueError, match="width must be a multiple of 16 at 64 px, got 24"):
        HatGenerator(64, 24).init(jax.random.key(0), jnp.zeros(5))
    with pytest.raises(ValueError, match=r"images must be \[..., 8, 8, C\] \(image_size\), got shape \(16, 16, 1\)"):
        HatEnergy(8, 16).init(jax.random.key(0), jnp.zeros((16, 16, 1)))
