"""The convolutions against XLA's own, over shapes, strides and paddings: values, derivatives, batches, programs."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT
from jax import lax
from jax.extend.core import jaxprs_in_params

from jebm.config import load_file, override
from jebm.networks import convolution
from jebm.networks.convolution import LAYOUT, Conv, conv_general_dilated
from jebm.runs import run as runs

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


SMALL_CASES = [  # maps of fewer pixels than the kernel
    ((2, 2), (3, 3), (1, 1), "SAME"),
    ((1, 1), (3, 3), (1, 1), "SAME"),
    ((2, 3), (3, 3), (2, 1), ((1, 1), (0, 2))),
    ((1, 4), (5, 2), (2, 3), ((4, 1), (1, 3))),
    ((2, 3), (4, 3), (1, 1), ((3, 1), (2, -1))),
]


def plain(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def ours(x, kernel, strides, padding, implementation="canonical"):
    return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, implementation=implementation)


canonical = ours
winograd = functools.partial(ours, implementation="winograd")
patches = functools.partial(ours, implementation="patches")
TOLERANCES = {canonical: 2e-6, winograd: 1e-5, patches: 2e-6}


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


def program(function, *arguments):
    """What XLA is given."""
    return jax.jit(function).lower(*arguments).as_text()


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
    assert "stablehlo.convolution" not in program(lambda x: winograd(x, kernel, strides, padding), x)
    expected = derivatives(lambda x, k: plain(x, k, strides, padding), x, kernel)
    assert_same(derivatives(lambda x, k: winograd(x, k, strides, padding), x, kernel), expected, 1e-5)


def test_winograd_rounds_little_over_many_channels():
    x, kernel = operands((8, 8), (3, 3), inputs=256, outputs=16)
    with jax.enable_x64():
        exact = np.asarray(plain(x.astype("float64"), kernel.astype("float64"), (1, 1), "SAME"))
    error = np.abs(winograd(x, kernel, (1, 1), "SAME") - exact)
    assert np.sqrt(np.mean(error**2)) < 1e-6 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize("case", [CASES[3], *SMALL_CASES], ids=str)
def test_a_product_over_patches_equals_the_direct_sum(case):
    image, size, strides, padding = case
    x, kernel = operands(image, size)
    expected = derivatives(lambda x, k: plain(x, k, strides, padding), x, kernel)
    assert_same(derivatives(lambda x, k: patches(x, k, strides, padding), x, kernel), expected)


def test_auto_takes_what_pays():
    def taken(size, inputs, outputs, dtype=jnp.float32, kernel=(3, 3), strides=(1, 1)):
        x, weights = operands(size, kernel, inputs=inputs, outputs=outputs)
        convolve = lambda x: ours(x, weights.astype(dtype), strides, "SAME", "auto")  # noqa: E731
        if "jebm_conv" not in primitives(convolve, x.astype(dtype)):
            return "patches"
        return "canonical" if "stablehlo.convolution" in program(convolve, x.astype(dtype)) else "winograd"

    assert taken((4, 4), 64, 96) == "winograd"
    assert taken((4, 4), 63, 96) == "canonical"
    assert taken((4, 4), 64, 3) == "canonical"
    assert taken((3, 3), 64, 64) == "canonical"
    assert taken((7, 7), 64, 64) == "canonical"
    assert taken((4, 4), 64, 64, jnp.bfloat16) == "canonical"
    assert taken((4, 4), 64, 64, kernel=(1, 1)) == "canonical"
    assert taken((4, 4), 64, 64, strides=(2, 2)) == "canonical"
    assert taken((2, 4), 3, 3) == "patches"
    assert taken((2, 2), 64, 64, jnp.bfloat16, strides=(2, 2)) == "patches"
    assert taken((1, 1), 64, 64) == "patches"
    assert taken((1, 1), 64, 64, kernel=(1, 1)) == "canonical"


def written(function, platform, *arguments):
    """What XLA is given for a platform, which need not be here: the operations that matter, in order of their text."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r"stablehlo\.(convolution|dot_general|reverse|transpose|case)\b(.*)", text)
    return sorted(name + re.sub(r"%\w+(#\d+)?", "", rest) for name, rest in found)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("size", "channels", "strides"), [(8, 64, 1), (8, 3, 2)])
def test_programs_for_accelerators_have_xla_s_convolution_and_its_gradient(platform, size, channels, strides):
    x, kernel = operands((size, size), (3, 3), inputs=channels, outputs=channels)

    def programs(platform, convolve):
        value = lambda x, k: jnp.sin(convolve(x, k, (strides, strides), "SAME"))  # noqa: E731
        gradients = jax.grad(lambda x, k: jnp.sum(value(x, k)), (0, 1))
        return written(value, platform, x, kernel), written(gradients, platform, x, kernel)

    auto = functools.partial(ours, implementation="auto")
    found, expected = (programs(platform, convolve) for convolve in (auto, plain))
    assert [line.partition("(")[0] for line in expected[0]] == ["convolution"]
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert programs("cpu", auto)[1] != expected[1]


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


def compositions(convolve, strides, padding):
    """Derivatives and batches in every order that the library or a user nests them in."""
    f = lambda x, k: jnp.sum(jnp.sin(convolve(x, k, strides, padding)))  # noqa: E731
    both = functools.partial(jax.grad, argnums=(0, 1))
    mean = lambda axes: lambda x, k: jnp.mean(jax.vmap(f, axes)(x, k))  # noqa: E731
    grid = lambda x, ks: jnp.mean(jax.vmap(jax.vmap(f, (0, None)), (None, 0))(x, ks))  # noqa: E731
    penalty = lambda x, k: jnp.mean(jax.vmap(lambda x: jnp.sum(jnp.square(jax.grad(f)(x, k))))(x))  # noqa: E731

    def chain(x, k):  # a loss through a checkpointed loop, whose batch is mapped inside
        step = jax.checkpoint(lambda x, _: (x - 0.1 * jax.vmap(jax.grad(f), (0, None))(x, k), None))
        return jnp.sum(jnp.square(lax.scan(step, x, length=2)[0]))

    def evaluate(x, ks):
        k = ks[0]
        return {
            "mean over images": both(mean((0, None)))(x, k),
            "mean over the third axis": both(mean((2, None)))(jnp.moveaxis(x, 0, 2), k),
            "mean over kernels": both(mean((None, 0)))(x[0], ks),
            "mean over kernels, last axis": both(mean((None, 4)))(x[0], jnp.moveaxis(ks, 0, 4)),
            "a kernel for each image": both(mean((0, 0)))(x, ks),
            "a kernel for each image, second order": jax.vmap(both(lambda x, k: jnp.sum(jax.grad(f)(x, k) ** 2)))(
                x, ks
            ),
            "images by kernels": both(grid)(x, ks),
            "kernel gradient of each image": jax.vmap(jax.grad(f, 1), (0, None))(x, k),
            "gradient penalty": both(penalty)(x, k),
            "chain": both(chain)(x, k),
            "forward": jax.jvp(mean((0, None)), (x, k), (jnp.cos(x), jnp.cos(k))),
            "forward over reverse": jax.jvp(both(mean((0, None))), (x, k), (jnp.cos(x), jnp.cos(k))),
            "tangents mapped": jax.vmap(lambda t: jax.jvp(lambda k: f(x[0], k), (k,), (t,))[1])(ks),
        }

    return evaluate


@pytest.mark.parametrize(
    ("convolve", "case"),
    [(canonical, CASES[9]), (canonical, CASES[8]), (winograd, WINOGRAD_CASES[3]), (patches, SMALL_CASES[2])],
    ids=["canonical, strides", "canonical", "winograd", "patches"],
)
def test_derivatives_and_batches_in_any_order(convolve, case):
    image, size, strides, padding = case
    x, kernel = operands(image, size, batch=6)
    x, kernels = x.reshape(3, 2, *x.shape[1:]), jnp.stack([kernel, 2.0 * kernel, jnp.flip(kernel, 0)])
    found, expected = (jax.jit(compositions(c, strides, padding))(x, kernels) for c in (convolve, plain))
    for name, value in expected.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(value), strict=True):
            scale = max(1.0, np.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=0, atol=10 * TOLERANCES[convolve] * scale, err_msg=name)


@pytest.mark.parametrize(
    ("convolve", "case"), [(canonical, CASES[9]), (patches, SMALL_CASES[2])], ids=["canonical", "patches"]
)
def test_bfloat16_under_vmap(convolve, case):
    image, size, strides, padding = case
    x, kernel = (a.astype(jnp.bfloat16) for a in operands(image, size))

    def gradients(convolve, x, kernel):
        loss = lambda x, k: jnp.sum(jnp.sin(convolve(x[None], k, strides, padding).astype(jnp.float32)))  # noqa: E731
        mean = lambda x, k: jnp.mean(jax.vmap(loss, (0, None))(x, k))  # noqa: E731
        return jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(x, kernel)

    found = gradients(convolve, x, kernel)
    assert [a.dtype for a in found[1]] == [jnp.bfloat16, jnp.bfloat16]
    exact = gradients(plain, x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert_same(jax.tree.map(lambda a: a.astype(jnp.float32), found), exact, 2e-2)


def test_an_empty_batch():
    x, kernel = operands((4, 4), (3, 3))
    for convolve in (canonical, winograd, patches):
        mapped = jax.vmap(lambda x: convolve(x[None], kernel, (1, 1), "SAME")[0])  # noqa: B023
        assert mapped(x[:0]).shape == (0, 4, 4, 4)


class TwoLayers(nn.Module):
    """An energy of one image, or of each of a batch."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(Conv(64, (3, 3))(x))
        return nn.Dense(1)(x.mean((-3, -2)))[..., 0]


def test_the_gradient_of_a_mean_of_single_energies_is_the_gradient_of_a_batch():
    network, batch = TwoLayers(), 16
    x = jnp.zeros((batch, 16, 16, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    losses = {
        "batch": lambda params, x: jnp.mean(network.apply(params, x)),
        "mapped": lambda params, x: jnp.mean(jax.vmap(lambda x: network.apply(params, x))(x)),
    }
    compiled = {name: jax.jit(jax.grad(loss)).lower(params, x).compile() for name, loss in losses.items()}
    planned = {name: c.memory_analysis().temp_size_in_bytes for name, c in compiled.items()}
    assert 0 < planned["mapped"] <= 1.1 * planned["batch"]
    operations = {name: c.cost_analysis()["flops"] for name, c in compiled.items()}
    assert 0 < operations["mapped"] <= 1.01 * operations["batch"]
    found = {
        math.prod(map(int, re.findall(r"\d+", s))) for s in re.findall(r"f32(\[[\d,]+\])", compiled["mapped"].as_text())
    }
    assert not found & {batch * size for size in kernel_sizes(params)}  # no kernel gradient for each image


def kernel_sizes(params):
    return {p.size for p in jax.tree.leaves(params) if p.shape[:2] == (3, 3)}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hat_synthesis", ()),
        ("hat_autoencoder", ()),
        ("ec_vae", ()),
        ("ec_gan", ()),
        ("ec_flow", ()),
        ("denoising_ebm", ()),
        ("denoising_ebm", ("method.semantic_chain=pixel",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
def test_no_training_step_makes_a_kernel_gradient_for_each_image(name, change):
    batch = 7  # a factor that nothing else here has, as 9 is one of kernels alone
    config = override(load_file(ROOT / f"configs/digits/{name}.py"), [f"data.batch_size={batch}", *change])
    method = runs.build(config)
    state = runs.abstract_state(method, config).method
    images = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(method.update)(key, state, images)
    sizes = kernel_sizes(state)
    assert sizes
    shapes = {v.aval.shape for e in equations(traced.jaxpr) for v in e.outvars if hasattr(v.aval, "shape")}
    maps = {shape for shape in shapes if len(shape) == 4 and shape[0] == batch}  # patches have the factor 9, too
    found = {math.prod(shape) for shape in shapes - maps}
    assert sizes <= found  # gradients are there
    assert not found & {batch * size for size in sizes}


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
        return re.findall(r"x\[(.*?)\]->", program(gradient, x))

    assert kernel_layouts(canonical) == ["0, 1, i, o", "0, 1, i, o"]
    assert kernel_layouts(plain) == ["0, 1, i, o", "0, 1, o, i"]


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
