"""The canonical gradient against XLA's own, over shapes, strides and paddings, of first and second order."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from jebm.networks import convolution
from jebm.networks.convolution import LAYOUT, Conv, conv_general_dilated

CASES = [  # image, kernel, strides, padding
    ((8, 8), (3, 3), (1, 1), "SAME"),
    ((7, 5), (3, 3), (1, 1), "SAME"),
    ((7, 5), (3, 3), (2, 2), "SAME"),
    ((8, 8), (4, 4), (2, 2), "SAME"),
    ((9, 7), (5, 3), (2, 1), "VALID"),
    ((10, 9), (4, 4), (3, 2), "VALID"),
    ((4, 4), (4, 4), (1, 1), "VALID"),
    ((7, 8), (1, 1), (2, 2), "SAME"),
    ((8, 7), (3, 3), (1, 1), ((2, 0), (0, 3))),
    ((9, 8), (3, 2), (2, 3), ((0, 1), (3, 1))),
    ((5, 6), (2, 3), (1, 2), ((1, 4), (0, 2))),
    ((7, 7), (3, 3), (1, 1), ((-1, 2), (0, -1))),
]

WINOGRAD_CASES = [  # 3x3, strides 1, even outputs
    ((4, 6), (3, 3), (1, 1), "SAME"),
    ((8, 6), (3, 3), (1, 1), "VALID"),
    ((7, 6), (3, 3), (1, 1), ((0, 1), (2, 2))),
    ((7, 5), (3, 3), (1, 1), ((-1, 2), (3, 0))),
]


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def ours(x, kernel, strides, padding, implementation="canonical"):
    return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, implementation=implementation)


canonical = ours
winograd = functools.partial(ours, implementation="winograd")


def operands(image, kernel, *, batch=2, inputs=3, outputs=4):
    """Input and kernel without any symmetry: a flipped or transposed kernel gives other numbers."""
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)  # noqa: E731
    return draw(batch, *image, inputs), draw(*kernel, inputs, outputs)


def equations(jaxpr):
    """All equations, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def primitives(function, *arguments):
    return {equation.primitive.name for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr)}


def derivatives(convolve, x, kernel):
    """Value, first derivatives, and derivatives of the norm of the input gradient (a gradient penalty)."""
    loss = lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel)))  # noqa: E731
    penalty = lambda x, kernel: jnp.sum(jnp.square(jax.grad(loss)(x, kernel)))  # noqa: E731
    both = functools.partial(jax.grad, argnums=(0, 1))
    return jax.jit(lambda x, k: (convolve(x, k), both(loss)(x, k), both(penalty)(x, k)))(x, kernel)


def assert_same(one, other, tolerance=2e-6):
    # the same sums in another order: a few units of float32's last place, of the largest entry
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_equal_those_of_xla(case):
    image, size, strides, padding = case
    x, kernel = operands(image, size)
    expected = derivatives(lambda x, k: plain(x, k, strides, padding), x, kernel)
    assert_same(derivatives(lambda x, k: canonical(x, k, strides, padding), x, kernel), expected)


@pytest.mark.parametrize("case", [CASES[0], *WINOGRAD_CASES], ids=str)
def test_winograd_equals_the_direct_sum(case):
    image, size, strides, padding = case
    x, kernel = operands(image, size)
    assert not primitives(lambda x: winograd(x, kernel, strides, padding), x) & {"conv_general_dilated"}
    expected = derivatives(lambda x, k: plain(x, k, strides, padding), x, kernel)
    assert_same(derivatives(lambda x, k: winograd(x, k, strides, padding), x, kernel), expected, 1e-5)


def test_winograd_rounds_little_over_many_channels():
    x, kernel = operands((8, 8), (3, 3), inputs=256, outputs=16)
    with jax.enable_x64():
        exact = np.asarray(plain(x.astype("float64"), kernel.astype("float64"), (1, 1), "SAME"))
    error = np.abs(winograd(x, kernel, (1, 1), "SAME") - exact)
    assert np.sqrt(np.mean(error**2)) < 1e-6 * np.sqrt(np.mean(exact**2))


def test_auto_takes_winograd_where_it_pays():
    def taken(size, inputs, outputs, dtype=jnp.float32, kernel=(3, 3), strides=(1, 1)):
        x, weights = operands((size, size), kernel, inputs=inputs, outputs=outputs)
        convolve = lambda x: ours(x, weights.astype(dtype), strides, "SAME", "auto")  # noqa: E731
        return "conv_general_dilated" not in primitives(convolve, x.astype(dtype))

    assert taken(4, 64, 96)
    assert not taken(4, 63, 96)
    assert not taken(4, 64, 3)
    assert not taken(2, 64, 64)
    assert not taken(7, 64, 64)
    assert not taken(4, 64, 64, jnp.bfloat16)
    assert not taken(4, 64, 64, kernel=(1, 1))
    assert not taken(4, 64, 64, strides=(2, 2))


@pytest.mark.parametrize("case", CASES[1:3], ids=str)
@pytest.mark.parametrize(
    "mutant",
    [
        lambda kernel: kernel.swapaxes(2, 3),
        lambda kernel: jnp.flip(kernel, 0).swapaxes(2, 3),
        lambda kernel: jnp.flip(kernel, (0, 1)),
    ],
    ids=["not flipped", "flipped along one axis", "channels not exchanged"],
)
def test_a_wrong_kernel_is_noticed(monkeypatch, case, mutant):
    image, size, strides, padding = case
    x, kernel = operands(image, size, outputs=3)  # square in channels, or a kernel not exchanged does not even run
    right = derivatives(lambda x, k: plain(x, k, strides, padding), x, kernel)
    monkeypatch.setattr(convolution, "adjoint_kernel", mutant)
    wrong = derivatives(lambda x, k: canonical(x, k, strides, padding), x, kernel)
    with pytest.raises(AssertionError):
        assert_same(wrong, right)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_under_vmap(axes):
    image, size, strides, padding = CASES[2]
    x, kernel = operands(image, size, batch=6)
    x = x.reshape(3, 2, *x.shape[1:]) if axes[0] == 0 else x
    kernel = jnp.stack([kernel, 2.0 * kernel, jnp.flip(kernel, 0)]) if axes[1] == 0 else kernel

    def gradients(convolve):
        def loss(x, kernel):
            mapped = jax.vmap(lambda x, k: convolve(x, k, strides, padding), axes)
            return jnp.sum(jnp.sin(mapped(x, kernel)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)

    assert_same(gradients(canonical), gradients(plain))


def test_one_example_without_a_batch_axis_through_flax():
    convolve = functools.partial(conv_general_dilated, implementation="canonical")
    layer, reference = Conv(4, (3, 3), 2, conv_general_dilated=convolve), nn.Conv(4, (3, 3), 2)
    x, _ = operands((7, 6), (3, 3), batch=3)
    params = jax.jit(reference.init)(jax.random.key(1), x)

    def gradient(module):
        return jax.grad(lambda params, x: jnp.sum(jnp.sin(module.apply(params, x))), argnums=(0, 1))

    batched = jax.jit(jax.vmap(gradient(layer), (None, 0)))(params, x)
    one_by_one = jax.jit(gradient(reference))
    expected = [one_by_one(params, example) for example in x]
    assert_same(batched, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))
    assert_same(jax.jit(gradient(layer))(params, x[0]), expected[0])


@pytest.mark.parametrize(("convolve", "tolerance"), [(canonical, 2e-6), (winograd, 1e-5)])
def test_inside_a_loop(convolve, tolerance):
    x, kernel = operands((8, 8), (3, 3), outputs=3)

    def descend(convolve):
        loss = lambda x: 0.5 * jnp.sum(jnp.square(convolve(x, kernel, (1, 1), "SAME")))  # noqa: E731
        step = lambda x, _: (x - 0.01 * jax.grad(loss)(x), loss(x))  # noqa: E731
        return jax.jit(lambda x: lax.scan(step, x, length=8))(x)

    assert_same(descend(convolve), descend(plain), tolerance)


def test_the_loop_differentiated():
    x, kernel = operands((6, 6), (3, 3), outputs=3)

    def unrolled(convolve):
        def loss(kernel):
            step = lambda x, _: (jnp.tanh(convolve(x, kernel, (1, 1), "SAME")), None)  # noqa: E731
            return jnp.sum(jnp.square(lax.scan(step, x, length=3)[0]))

        return jax.jit(jax.value_and_grad(loss))(kernel)

    np.testing.assert_allclose(unrolled(canonical)[1], unrolled(plain)[1], rtol=1e-4, atol=1e-4)


def test_the_gradient_convolution_takes_a_kernel_written_out():
    """What makes it fast: no convolution of the gradient reads the kernel with its channel axes exchanged."""
    x, kernel = operands((8, 8), (3, 3))

    def kernel_layouts(convolve):
        gradient = jax.grad(lambda x: jnp.sum(jnp.square(convolve(x, kernel, (1, 1), "SAME"))))
        return _kernel_specifications(jax.make_jaxpr(gradient)(x).jaxpr)

    assert (3, 2, 0, 1) in kernel_layouts(canonical)  # HWIO as (O, I, H, W) positions
    assert (2, 3, 0, 1) in kernel_layouts(plain)
    assert (2, 3, 0, 1) not in kernel_layouts(canonical)


def _kernel_specifications(jaxpr):
    return [tuple(e.params["dimension_numbers"].rhs_spec) for e in equations(jaxpr) if "conv_" in e.primitive.name]


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1)},
        {"feature_group_count": 3},
        {"precision": lax.Precision.HIGHEST},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_it_does_not_cover_falls_back_to_lax(options):
    x, kernel = operands((9, 8), (3, 3), outputs=6)
    kernel = kernel[:, :, : 3 // options.get("feature_group_count", 1)]
    padding = ((1, 1), (1, 1))

    def fallback(x, k):
        return conv_general_dilated(
            x, k, (1, 1), padding, dimension_numbers=LAYOUT, implementation="canonical", **options
        )

    def theirs(x, k):
        return lax.conv_general_dilated(x, k, (1, 1), padding, dimension_numbers=LAYOUT, **options)

    for one, other in zip(
        jax.tree.leaves(derivatives(fallback, x, kernel)),
        jax.tree.leaves(derivatives(theirs, x, kernel)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    tangent = lambda f: jax.jvp(lambda x: f(x, kernel), (x,), (x,))[1]  # noqa: E731
    np.testing.assert_array_equal(tangent(fallback), tangent(theirs))  # forward mode: only lax has it
