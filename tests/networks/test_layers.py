"""Pooling: its law on both kinds of platform, its derivatives, and which program each platform gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm.networks import layers
from jebm.networks.layers import average_pool


def means(x):
    """Means of 2x2 blocks, written out."""
    x = x[..., : x.shape[-3] // 2 * 2, : x.shape[-2] // 2 * 2, :]
    return (x[..., ::2, ::2, :] + x[..., 1::2, ::2, :] + x[..., ::2, 1::2, :] + x[..., 1::2, 1::2, :]) / 4


def derivatives(pool, x):
    """Value, gradient, second order, forward over reverse, and batches over two axes."""
    energy = lambda x: jnp.sum(jnp.sin(pool(x)) ** 2)  # noqa: E731
    gradient = jax.grad(energy)
    penalty = jax.grad(lambda x: jnp.sum(gradient(x) ** 2))
    mapped = jax.vmap(jax.vmap(gradient), in_axes=2, out_axes=1)(jnp.stack([x, 2 * x, -x], 2))
    return pool(x), gradient(x), penalty(x), jax.jvp(gradient, (x,), (jnp.cos(x),)), mapped


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 7, 1), (3, 2, 4, 4, 2)], ids=str)
@pytest.mark.parametrize("implementation", [layers._mean_of_blocks, layers._mean_of_windows])
def test_average_pool_is_the_mean_of_blocks_with_its_derivatives(monkeypatch, shape, implementation):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    even = lambda x: x[..., : shape[-3] // 2 * 2, : shape[-2] // 2 * 2, :]  # noqa: E731
    expected = derivatives(means, x)
    found = derivatives(average_pool, x), derivatives(lambda x: implementation(even(x), adjoint=False), x)
    for one in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, expected)
    y = means(x)  # the transpose that each platform gets: <A x, y> = <x, A' y>
    back = implementation(y, adjoint=True)
    np.testing.assert_allclose(jnp.sum(y * y), jnp.sum(even(x) * back), rtol=1e-5)


def test_average_pool_keeps_bfloat16_and_adds_in_float32():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 3)), jnp.bfloat16)
    for implementation in (layers._mean_of_blocks, layers._mean_of_windows):
        pooled = implementation(x, adjoint=False)
        assert pooled.dtype == jnp.bfloat16
        np.testing.assert_array_equal(pooled, means(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize(("platform", "windows"), [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_the_platform_compiled_for_chooses(platform, windows):
    def program(function):
        x = jnp.zeros((2, 8, 8, 3))
        return jax.jit(function).trace(x).lower(lowering_platforms=(platform,)).as_text()

    assert program(average_pool).count("reduce_window") == windows
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(average_pool(x))))

    def chain(x):
        return jax.lax.scan(lambda x, _: (gradient(x), None), x, length=3)

    text = program(chain)
    assert text.count("reduce_window") == 2 * windows  # the pool, and its transpose
    assert "stablehlo.case" not in text
