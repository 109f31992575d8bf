"""Convolutions with a pooling or a doubling against the two operations one after the other, by XLA."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jebm.networks import resampled
from jebm.networks.layers import average_pool, nearest_upsample
from jebm.networks.resampled import PooledConv, UpsampledConv, pooled_conv, upsampled_conv


def plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def means(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def pooled(x, kernel):
    return means(plain(x, kernel))


def upsampled(x, kernel):
    return plain(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel)


PAIRS = {"pooled": (pooled_conv, pooled), "upsampled": (upsampled_conv, upsampled)}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Three channels are wide enough here."""
    monkeypatch.setattr("jebm.networks.convolution.WINOGRAD_CHANNELS", 3)


def operands(size, *batch, inputs=3, outputs=4, dtype=jnp.float32):
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), dtype)  # noqa: E731
    return draw(*batch, *size, inputs), draw(3, 3, inputs, outputs)


def compositions(convolve):
    """Values, derivatives and batches in the orders that the library or a user nests them in."""
    f = lambda x, k: jnp.sum(jnp.sin(convolve(x, k)))  # noqa: E731
    both = functools.partial(jax.grad, argnums=(0, 1))
    mean = lambda axes: lambda x, k: jnp.mean(jax.vmap(f, axes)(x, k))  # noqa: E731
    penalty = lambda x, k: jnp.sum(jnp.square(both(f)(x, k)[0])) + jnp.sum(jnp.square(both(f)(x, k)[1]))  # noqa: E731

    def evaluate(x, k):  # [2, 2, H, W, C]
        kernels = jnp.stack([k, jnp.flip(k, 0)])
        return {
            "value": convolve(x[0], k),
            "gradients": both(f)(x[0], k),
            "gradients of gradients": both(penalty)(x[0], k),
            "mean over images": both(mean((0, None)))(x, k),
            "mean over the third axis": both(mean((2, None)))(jnp.moveaxis(x, 0, 2), k),
            "mean over kernels": both(mean((None, 0)))(x[0], kernels),
            "a kernel for each image": both(mean((0, 0)))(x, kernels),
            "kernel gradient of each image": jax.vmap(jax.grad(f, 1), (0, None))(x, k),
            "forward over reverse": jax.jvp(both(mean((0, None))), (x, k), (jnp.cos(x), jnp.cos(k))),
        }

    return evaluate


@pytest.mark.parametrize("size", [(2, 2), (4, 6)], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_derivatives_are_those_of_the_two_operations(name, size):
    ours, theirs = PAIRS[name]
    x, kernel = operands(size, 2, 2)
    assert resampled.is_wide(x[0], kernel)
    found, expected = (jax.jit(compositions(c))(x, kernel) for c in (ours, theirs))
    for key, value in expected.items():
        for a, b in zip(jax.tree.leaves(found[key]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * max(1.0, np.abs(b).max()), err_msg=f"{name}, {key}")


@pytest.mark.parametrize("name", PAIRS)
def test_rounding_is_little_over_many_channels(name):
    ours, theirs = PAIRS[name]
    x, kernel = operands((8, 8), 2, inputs=256, outputs=16)
    with jax.enable_x64():
        exact = np.asarray(theirs(x.astype("float64"), kernel.astype("float64")))
    error = np.abs(ours(x, kernel) - exact)
    assert np.sqrt(np.mean(error**2)) < 1e-6 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize(("size", "dtype"), [((5, 4), jnp.float32), ((4, 5), jnp.float32), ((4, 4), jnp.bfloat16)])
def test_odd_maps_and_other_dtypes_have_the_two_operations(size, dtype):
    x, kernel = operands(size, 2, dtype=dtype)
    even = tuple(n // 2 * 2 for n in size)
    expected = means(plain(x, kernel)[:, : even[0], : even[1]].astype(jnp.float32))
    found = pooled_conv(x, kernel)
    assert found.dtype == dtype
    tolerance = 5e-2 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=tolerance)
    whole = lambda x: jnp.sum(pooled_conv(x, kernel).astype(jnp.float32))  # noqa: E731
    cut = lambda x: jnp.sum(means(plain(x, kernel)[:, : even[0], : even[1]].astype(jnp.float32)))  # noqa: E731
    gradients = [jax.grad(f)(x).astype(jnp.float32) for f in (whole, cut)]
    np.testing.assert_allclose(*gradients, atol=tolerance)
    found = upsampled_conv(x, kernel)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), upsampled(x, kernel).astype(jnp.float32), atol=tolerance)


@pytest.mark.parametrize(("layer", "around"), [(PooledConv, "pool"), (UpsampledConv, "double")])
def test_the_layers_have_the_parameters_and_values_of_flax_s(layer, around):
    x, _ = operands((4, 6), 5)
    theirs = nn.Conv(4, (3, 3), padding=1, bias_init=nn.initializers.normal(1.0))
    params = theirs.init(jax.random.key(0), x)
    ours = layer(4, bias_init=nn.initializers.normal(1.0))
    found = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    expected = {
        "pool": lambda: average_pool(theirs.apply(params, x)),
        "double": lambda: theirs.apply(params, nearest_upsample(x)),
    }[around]()
    np.testing.assert_allclose(ours.apply(params, x), expected, atol=1e-5)
    np.testing.assert_allclose(ours.apply(params, x[0]), expected[0], atol=1e-5)  # an image alone


def written(function, platform, *arguments):
    """What XLA is given for a platform: the operations that matter; equal ones it merges."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"stablehlo\.(convolution|dot_general|reverse|transpose|case|reduce_window)\b(.*)", text)
    return {name + re.sub(r"%\w+(#\d+)?", "", rest) for name, rest in found}


@pytest.mark.parametrize("name", PAIRS)
def test_each_platform_has_its_own(name):
    ours = PAIRS[name][0]
    theirs = {
        "pooled": lambda x, k: average_pool(plain(x, k)), "upsampled": lambda x, k: plain(nearest_upsample(x), k)
    }[name]  # fmt: skip
    x, kernel = operands((4, 4), 2)
    both = lambda f: jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), (0, 1))  # noqa: E731
    assert written(both(ours), "tpu", x, kernel) == written(both(theirs), "tpu", x, kernel)
    cpu = written(both(ours), "cpu", x, kernel)
    assert not any(line.startswith(("convolution", "case")) for line in cpu)
