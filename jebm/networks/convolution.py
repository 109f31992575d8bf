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

For other platforms XLA's own convolution and gradient are used. The choice is made when a program is lowered, by the
platform that it is compiled for: a host without accelerator compiles for one that is elsewhere.
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
ADJOINT_LAYOUT = ("NHWC", "HWOI", "NHWC")
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
        implementation: of programs for a CPU; those for other platforms always have XLA's. "auto" is "patches" for
            maps of fewer pixels than the kernel, "winograd" for float32, 64 channels and more on both sides and
            outputs of 4x4 and more, else "canonical". "canonical" has XLA's values and the gradient that stays fast
            in loops; "winograd" moreover its own values where the kernel is 3x3, the strides are 1 and the output's
            height and width even; "patches" is one matrix product over the patches written out. Dilated, grouped and
            other than two-dimensional convolutions, and a ``precision``, always go to XLA.

    Other arguments are those of `lax.conv_general_dilated`. All are differentiable any number of times, in both modes.
    """
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
        fixed: Any = {"strides": strides, "padding": pads}
        return lax.platform_dependent(
            lhs, rhs, cpu=functools.partial(_product_over_patches, **fixed), default=functools.partial(direct, **fixed)
        )
    fast = implementation == "winograd"
    return conv_p.bind(lhs, rhs, strides=strides, padding=pads, dilation=(1, 1), adjoint=False, fast=fast)


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
"""`flax.linen.Conv` with the convolution of this module."""


# A primitive, since it alone can have a batching rule, derivatives, and a program for each platform. It is bilinear:
# its tangents are the primitive again, its transposes are below. ``dilation`` is that of the image; with ``adjoint``
# the kernel [h, w, O, I] is flipped in space and its channels are exchanged first: each platform writes that its way.
conv_p = Primitive("jebm_conv")


def direct(
    x: Array, kernel: Array, *, strides: Strides, padding: Padding, dilation: Strides = (1, 1), adjoint: bool = False,
    fast: bool = False,
) -> Array:  # fmt: skip
    """As JAX writes convolutions and their gradients."""
    layout = LAYOUT
    if adjoint:
        kernel, layout = jnp.flip(kernel, (0, 1)), ADJOINT_LAYOUT
    return lax.conv_general_dilated(x, kernel, strides, padding, dilation, dimension_numbers=layout)


def _on_cpu(
    x: Array, kernel: Array, *, strides: Strides, padding: Padding, dilation: Strides, adjoint: bool, fast: bool
) -> Array:
    kernel = adjoint_kernel(kernel) if adjoint else kernel
    height, width = (x.shape[1 + i] + sum(padding[i]) - kernel.shape[i] + 1 for i in (0, 1))
    undilated = dilation == strides == (1, 1)
    if fast and kernel.shape[:2] == (3, 3) and undilated and height % 2 == width % 2 == 0:
        return _winograd(_pad(x, padding), kernel)
    return direct(x, kernel, strides=strides, padding=padding, dilation=dilation)


@functools.lru_cache(maxsize=4096)
def _abstract(x: Any, kernel: Any, **parameters: Any) -> Any:
    # shape, dtype and sharding are those of XLA's convolution, as are the errors
    return jax.make_jaxpr(functools.partial(direct, **parameters))(x, kernel).out_avals[0]


def _transpose_to_image(
    g: Array, x: Any, kernel: Array, *, strides: Strides, padding: Padding, dilation: Strides, adjoint: bool, fast: bool
) -> Array:
    pads = []
    for axis in (0, 1):
        low = kernel.shape[axis] - 1 - padding[axis][0]
        spread = (g.shape[1 + axis] - 1) * strides[axis] + 1  # extent of g with strides - 1 zeros between
        size = (x.aval.shape[1 + axis] - 1) * dilation[axis] + 1
        pads.append((low, size + kernel.shape[axis] - 1 - spread - low))
    return conv_p.bind(
        g, kernel, strides=dilation, padding=tuple(pads), dilation=strides, adjoint=not adjoint, fast=fast
    )


def _transpose_to_kernel(g: Array, x: Array, kernel: Any, *, adjoint: bool, **parameters: Any) -> Array:
    turned = adjoint_kernel if adjoint else lambda k: k
    return jax.linear_transpose(lambda k: direct(x, turned(k), **parameters), kernel.aval)(g)[0]


def _batch(operands: Sequence[Array], axes: Sequence[int | None], **parameters: Any) -> tuple[Array, int]:
    (x, kernel), (x_axis, kernel_axis) = operands, axes
    if x_axis is not None and kernel_axis is not None:  # a kernel for each image: nothing to join
        each = [jax.vmap(functools.partial(of, **parameters), axes) for of in (_on_cpu, direct)]
        return lax.platform_dependent(x, kernel, cpu=each[0], default=each[1]), 0
    if x_axis is not None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = conv_p.bind(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), kernel, **parameters)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    assert kernel_axis is not None
    if parameters["adjoint"]:
        kernel, kernel_axis = jax.vmap(adjoint_kernel, kernel_axis)(kernel), 0
        parameters = {**parameters, "adjoint": False}
    kernel = jnp.moveaxis(kernel, kernel_axis, 3)  # many kernels on one image: more output channels
    y = conv_p.bind(x, kernel.reshape(*kernel.shape[:3], kernel.shape[3] * kernel.shape[4]), **parameters)
    return y.reshape(*y.shape[:3], *kernel.shape[3:]), 3


conv_p.def_impl(jax.jit(conv_p.bind, static_argnames=("strides", "padding", "dilation", "adjoint", "fast")))
conv_p.def_abstract_eval(_abstract)
ad.defbilinear(conv_p, _transpose_to_image, _transpose_to_kernel)
batching.primitive_batchers[conv_p] = _batch
mlir.register_lowering(conv_p, mlir.lower_fun(direct, multiple_results=False))
mlir.register_lowering(conv_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")


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
