"""A convolution that is fast on a CPU, also inside a loop and under `jax.vmap`.

*The gradient.* XLA:CPU has a fast routine for convolutions with kernels laid out HWIO. Differentiating with respect
to the input gives a convolution with the same kernel, flipped in space and with its channel axes exchanged. Outside
a loop XLA rewrites that layout; inside a ``while`` body (`lax.scan`, hence every Langevin chain) it does not, and the
naive routine takes over (jax-ml/jax#12868). Writing the flipped, transposed kernel out keeps the fast one.

*The batch.* Under `jax.vmap` over images the mapped axis joins the batch axis, before differentiation:
``grad(mean(vmap(E)))`` with respect to the parameters of an energy of one image is the program that a batch gives,
with one kernel gradient. (A `jax.custom_vjp` would make a kernel gradient per image, to sum them afterwards.)

*The arithmetic.* Wide 3x3 convolutions are done by Winograd's algorithm: 2x2 output pixels from a 4x4 patch with 16
products per pair of channels instead of 36 (Lavin and Gray, "Fast algorithms for convolutional neural networks",
arXiv 1509.09308). Rounding differs from the direct sum, by a few 1e-6 of the largest output. Maps with fewer pixels
than the kernel, at which XLA:CPU exchanges the two and falls into its naive routine, are one product over patches.

On other backends XLA's own convolution and gradient are used.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["Conv", "conv_general_dilated"]

Implementation = Literal["auto", "canonical", "patches", "winograd", "xla"]
LAYOUT = ("NHWC", "HWIO", "NHWC")
Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]

# Narrower or smaller maps gain less than Winograd's additions and its compilation cost.
WINOGRAD_CHANNELS = 64
WINOGRAD_SIZE = 4


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    implementation: Implementation = "auto",
) -> Array:
    """`lax.conv_general_dilated` as `flax.linen.Conv` calls it: [N, H, W, I] and [h, w, I, O] -> [N, H', W', O].

    Args:
        implementation: "auto" is "xla" except on a CPU, where it is "patches" for maps of fewer pixels than the
            kernel, "winograd" for float32, 64 channels and more on both sides and outputs of 4x4 and more, else
            "canonical". "canonical" has XLA's values and the gradient that stays fast in loops; "winograd" moreover
            its own values where the kernel is 3x3, the strides are 1 and the output's height and width even;
            "patches" is one matrix product over the patches written out. Dilated, grouped and other than
            two-dimensional convolutions, and a ``precision``, always go to XLA.

    Other arguments are those of `lax.conv_general_dilated`. All are differentiable any number of times, in both modes.
    """
    if implementation == "auto" and jax.default_backend() != "cpu":
        implementation = "xla"
    plain_2d = lhs.ndim == 4 and feature_group_count == 1 and precision is None
    undilated = all(d == 1 for dilation in (lhs_dilation, rhs_dilation) for d in (dilation or ()))
    if implementation == "xla" or not (plain_2d and undilated):
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, precision=precision,
        )  # fmt: skip
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    strides, pads = tuple(window_strides), tuple((low, high) for low, high in padding)
    if implementation == "auto":
        wide = min(rhs.shape[2:]) >= WINOGRAD_CHANNELS and min(lhs.shape[1:3]) >= WINOGRAD_SIZE
        if math.prod(lhs.shape[1:3]) < math.prod(rhs.shape[:2]):
            implementation = "patches"
        else:
            implementation = "winograd" if wide and lhs.dtype == rhs.dtype == jnp.float32 else "canonical"
    if implementation == "patches":
        return _product_over_patches(lhs, rhs, strides, pads)  # type: ignore[arg-type]
    return conv_p.bind(lhs, rhs, strides=strides, padding=pads, fast=implementation == "winograd")


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
"""`flax.linen.Conv` with the convolution of this module."""


# A primitive, since it alone can have both a batching rule and derivatives. It is bilinear: its tangents are the
# primitive again, its transposes are below.
conv_p = Primitive("jebm_conv")


def _direct(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def _evaluate(x: Array, kernel: Array, *, strides: Strides, padding: Padding, fast: bool) -> Array:
    height, width = (x.shape[1 + i] + sum(padding[i]) - kernel.shape[i] + 1 for i in (0, 1))
    if fast and kernel.shape[:2] == (3, 3) and strides == (1, 1) and height % 2 == width % 2 == 0:
        return _winograd(_pad(x, padding), kernel)
    return _direct(x, kernel, strides, padding)


@functools.lru_cache(maxsize=4096)
def _abstract(x: Any, kernel: Any, *, strides: Strides, padding: Padding, fast: bool) -> Any:
    # shape, dtype and sharding are those of XLA's convolution, as are the errors
    return jax.make_jaxpr(lambda x, k: _direct(x, k, strides, padding))(x, kernel).out_avals[0]


def _transpose_to_image(g: Array, x: Any, kernel: Array, *, strides: Strides, padding: Padding, fast: bool) -> Array:
    size, pads = x.aval.shape, []
    for axis in (0, 1):
        low = kernel.shape[axis] - 1 - padding[axis][0]
        spread = (g.shape[1 + axis] - 1) * strides[axis] + 1  # extent of g with strides - 1 zeros between
        pads.append((low, size[1 + axis] + kernel.shape[axis] - 1 - spread - low))
    adjoint = adjoint_kernel(kernel)
    if strides == (1, 1):
        return conv_p.bind(g, adjoint, strides=strides, padding=tuple(pads), fast=fast)
    return lax.conv_general_dilated(g, adjoint, (1, 1), pads, lhs_dilation=strides, dimension_numbers=LAYOUT)


def _transpose_to_kernel(g: Array, x: Array, kernel: Any, *, strides: Strides, padding: Padding, fast: bool) -> Array:
    return jax.linear_transpose(lambda k: _direct(x, k, strides, padding), kernel.aval)(g)[0]


def _batch(operands: Sequence[Array], axes: Sequence[int | None], **parameters: Any) -> tuple[Array, int]:
    (x, kernel), (x_axis, kernel_axis) = operands, axes
    if x_axis is not None and kernel_axis is not None:  # a kernel for each image: nothing to join
        one: Any = functools.partial(_evaluate, **parameters)
        return jax.vmap(one, (x_axis, kernel_axis))(x, kernel), 0
    if x_axis is not None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = conv_p.bind(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), kernel, **parameters)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    assert kernel_axis is not None
    kernel = jnp.moveaxis(kernel, kernel_axis, 3)  # many kernels on one image: more output channels
    y = conv_p.bind(x, kernel.reshape(*kernel.shape[:3], kernel.shape[3] * kernel.shape[4]), **parameters)
    return y.reshape(*y.shape[:3], *kernel.shape[3:]), 3


conv_p.def_impl(jax.jit(_evaluate, static_argnames=("strides", "padding", "fast")))
conv_p.def_abstract_eval(_abstract)
ad.defbilinear(conv_p, _transpose_to_image, _transpose_to_kernel)
batching.primitive_batchers[conv_p] = _batch
mlir.register_lowering(conv_p, mlir.lower_fun(_evaluate, multiple_results=False))


def _pad(x: Array, padding: Padding) -> Array:
    sides = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), sides)


def _product_over_patches(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """One matrix product; its derivatives and batches are those that JAX has for products."""
    x = _pad(x, padding)
    height, width = ((x.shape[1 + i] - kernel.shape[i]) // strides[i] + 1 for i in (0, 1))
    taps = [
        x[:, i : i + (height - 1) * strides[0] + 1 : strides[0], j : j + (width - 1) * strides[1] + 1 : strides[1]]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return jnp.concatenate(taps, -1) @ kernel.reshape(-1, kernel.shape[-1])


def adjoint_kernel(kernel: Array) -> Array:
    """The adjoint convolution's kernel, flipped in space and channels exchanged: [h, w, I, O] -> [h, w, O, I]."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


@jax.jit  # traced once for each shape
def _winograd(x: Array, kernel: Array) -> Array:
    """``Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`` summed over input channels, for the 4x4 patches ``d`` of a padded ``x``."""
    n, height, width = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
    kernels = jnp.einsum("abij,ijco->abco", _KERNEL_TRANSFORM, kernel)
    products = []
    for a, row in enumerate(_patch_transform([x[:, i : i + height - 1 : 2] for i in range(4)])):
        patches = jnp.stack(_patch_transform([row[:, :, j : j + width - 1 : 2] for j in range(4)]))
        products.append(jnp.einsum("bnhwc,bco->bnhwo", patches, kernels[a]))
    rows = [jnp.stack(_output_transform(product), axis=3) for product in _output_transform(products)]
    return jnp.stack(rows, axis=2).reshape(n, height, width, kernel.shape[-1])


def _patch_transform(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]  # Bᵀ d


def _output_transform(m: Sequence[Array] | Array) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]  # Aᵀ m


_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_KERNEL_TRANSFORM = np.einsum("ai,bj->abij", _G, _G)
