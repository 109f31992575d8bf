"""Operations counted on the traced step: closed forms, and the reader of compiled programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jebm.networks.convolution import Conv, conv_general_dilated
from jebm.planning import hlo
from jebm.training import meters
from jebm.training.operations import count


def counted(function, *arguments):
    return count(jax.jit(function).trace(*arguments).jaxpr)


def test_products_loops_and_branches():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    once = 2 * 3 * 5 * 7
    assert counted(jnp.dot, a, b) == once
    assert counted(jax.vmap(jnp.dot, (0, None)), jnp.ones((4, 3, 5)), b) == 4 * once
    square = jnp.ones((5, 5))
    step = lambda _, x: x @ square  # noqa: E731
    assert counted(lambda x: lax.fori_loop(0, 6, step, x), a) == 6 * 2 * 3 * 5 * 5
    assert counted(lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ square @ square, lambda x: x @ square, x), a) == 300
    assert counted(lambda x: lax.map(lambda row: row @ square, x), a) == 2 * 3 * 5 * 5
    assert counted(jax.grad(lambda x: jnp.sum(jax.checkpoint(jnp.dot)(x, b) ** 2)), a) in (2 * once, 3 * once)
    until = lambda x: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ square, x)  # noqa: E731
    assert np.isnan(counted(until, a))
    assert counted(lambda x: lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + 1, x), a) == 0


@pytest.mark.parametrize(
    ("strides", "padding", "implementation"),
    [((1, 1), "SAME", "xla"), ((2, 1), "SAME", "canonical"), ((2, 2), ((2, 0), (1, 1)), "canonical"),
     ((1, 1), "VALID", "patches")],
)  # fmt: skip
def test_convolutions_and_their_gradients_as_in_the_compiled_program(strides, padding, implementation):
    x, kernel = jnp.ones((3, 7, 6, 2)), jnp.ones((3, 2, 2, 5))
    layout = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, k: conv_general_dilated(  # noqa: E731
        x, k, strides, padding, dimension_numbers=layout, implementation=implementation
    )
    program = jax.jit(jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 3), (0, 1)))
    traced = program.trace(x, kernel)
    expected = hlo.flops(hlo.executed(traced.lower().compile().as_text()))
    assert expected > 0
    assert count(traced.jaxpr) == expected


def test_a_transposed_convolution_and_a_layer():
    x, kernel = jnp.ones((2, 5, 4, 3)), jnp.ones((4, 4, 3, 6))
    spread = functools.partial(lax.conv_transpose, strides=(2, 2), padding="SAME")
    traced = jax.jit(spread).trace(x, kernel)
    assert count(traced.jaxpr) == hlo.flops(hlo.executed(traced.lower().compile().as_text()))
    layer = Conv(6, (1, 1))
    weights = layer.init(jax.random.key(0), x)
    assert counted(layer.apply, weights, x) == 2 * x.size * 6


def test_the_share_of_the_peak():
    assert meters.utilization(6e9, 2.5, 4, 1e10) == {"flops_per_second": 1.5e10, "mfu": 0.375}
    assert meters.utilization(6e9, 2.5, 4, None) == {}
    assert meters.utilization(float("nan"), 2.5, 4, 1e10) == {}
