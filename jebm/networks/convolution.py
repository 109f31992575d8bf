"""A convolution that is fast on a CPU, also inside a loop and under `jax.vmap`.

*The gradient.* XLA:CPU has a fast routine for convolutions with kernels laid out HWIO. Differentiating with respect
to the input gives a convolution with the same kernel, flipped in space and with its channel axes exchanged. Outside
a loop XLA rewrites that layout; inside a ``while`` body (`lax.scan`, hence every Langevin chain) it does not, and the
naive routine takes over (jax-ml/jax#12868). Writing the flipped, transposed kernel out keeps the fast one.

*The batch.* Under `jax.vmap` over images the mapped axis joins the batch axis, before differentiation:
``grad(mean(vmap(E)))`` with respect to the parameters of an energy of one image is the program that a batch gives,
with one kernel gradient. (A `jax.custom_vjp` would make a kernel gradient per image, to sum them afterwards.)
`jebm.networks.trilinear` has the primitives.

*The arithmetic.* Wide 3x3 convolutions are done by Winograd's algorithm: 2x2 output pixels from a 4x4 patch with 16
products per pair of channels instead of 36 (Lavin and Gray, "Fast algorithms for convolutional neural networks",
arXiv 1509.09308), and their gradients in the kernel by its transpose. Rounding differs from the direct sum, by a few
1e-6 of the largest output. Maps with fewer pixels than the kernel, at which XLA:CPU exchanges the two and falls into
its naive routine, are one product over patches.

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

from jebm.networks.trilinear import Wanted, as_jax_writes, trilinear

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
        if math.prod(lhs.shape[1:3]) < math.prod(rhs.shape[:2]):
            implementation = "patches"
        else:
            wide = is_wide(lhs, rhs) and min(lhs.shape[1:3]) >= WINOGRAD_SIZE
            implementation = "winograd" if wide else "canonical"
    if implementation == "patches":
        fixed: Any = {"strides": strides, "padding": pads}
        return lax.platform_dependent(
            lhs, rhs, cpu=functools.partial(_product_over_patches, **fixed), default=functools.partial(direct, **fixed)
        )
    return conv_p.bind(
        lhs, rhs, wanted="y", image=lhs.shape[1:3], window=rhs.shape[:2],
        strides=strides, padding=pads, fast=implementation == "winograd",
    )  # fmt: skip


def is_wide(x: Array, kernel: Array) -> bool:
    """Whether products are so large a part of a convolution that fewer of them pay for the additions around."""
    return min(kernel.shape[2:]) >= WINOGRAD_CHANNELS and x.dtype == kernel.dtype == jnp.float32


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
"""`flax.linen.Conv` with the convolution of this module."""


def direct(
    x: Array, kernel: Array, *, strides: Strides, padding: Padding, dilation: Strides = (1, 1), fast: bool = False
) -> Array:
    """As JAX writes convolutions; ``dilation`` is that of the image, ``fast`` means nothing here."""
    return lax.conv_general_dilated(x, kernel, strides, padding, dilation, dimension_numbers=LAYOUT)


def _on_cpu(
    a: Array, b: Array, *, wanted: Wanted, image: Strides, window: Strides, strides: Strides, padding: Padding,
    fast: bool,
) -> Array:  # fmt: skip
    height, width = ((image[i] + sum(padding[i]) - window[i]) // strides[i] + 1 for i in (0, 1))
    fast = fast and window == (3, 3) and strides == (1, 1)
    if wanted == "k":
        if fast and height % 2 == width % 2 == 0:
            return _winograd_kernel_gradient(_pad(a, padding), b)
        return as_jax_writes(direct, a, b, wanted="k", image=image, window=window, strides=strides, padding=padding)
    dilation = (1, 1)
    if wanted == "x":
        pads: list[tuple[int, int]] = []
        for i, places in enumerate((height, width)):
            low = window[i] - 1 - padding[i][0]
            spread = (places - 1) * strides[i] + 1  # extent of y with strides - 1 zeros between
            pads.append((low, image[i] + window[i] - 1 - spread - low))
        b, padding, dilation, strides, (height, width) = adjoint_kernel(b), (pads[0], pads[1]), strides, (1, 1), image
    if fast and height % 2 == width % 2 == 0:
        return _winograd(_pad(a, padding), b)
    return direct(a, b, strides=strides, padding=padding, dilation=dilation)


conv_p = trilinear("jebm_conv", direct, _on_cpu)


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
    n, height, width, outputs = x.shape[0], x.shape[1] - 2, x.shape[2] - 2, kernel.shape[-1]
    kernels = jnp.einsum("abij,ijco->abco", _KERNEL_TRANSFORM, kernel)
    products = [jnp.einsum("bpc,bco->bpo", *row) for row in zip(_transformed_patches(x), kernels, strict=True)]
    products = [product.reshape(4, n, height // 2, width // 2, outputs) for product in products]
    rows = [jnp.stack(_output_transform(product), axis=3) for product in _output_transform(products)]
    return jnp.stack(rows, axis=2).reshape(n, height, width, outputs)


@jax.jit
def _winograd_kernel_gradient(x: Array, y: Array) -> Array:
    """The transpose of `_winograd` to the kernel: ``Gᵀ [Σ (Bᵀ d B) ⊗ (A y Aᵀ)] G`` over images and patches."""
    # y's 2x2 blocks, transformed as the patches are
    blocks = [
        _stacked(_output_transpose(row[:, :, 0::2], row[:, :, 1::2]))
        for row in _output_transpose(y[:, 0::2], y[:, 1::2])
    ]
    rows = zip(_transformed_patches(x), blocks, strict=True)
    # patches in one axis: with three, XLA would write a transposed copy of them for the product
    kernels = jnp.stack([jnp.einsum("bpc,bpo->bco", *row) for row in rows])
    return jnp.einsum("abij,abco->ijco", _KERNEL_TRANSFORM, kernels)


def _transformed_patches(x: Array) -> list[Array]:
    """``Bᵀ d B`` of all 4x4 patches, row by row of the transform: four of [4, patches, channels]."""
    height, width = x.shape[1] - 3, x.shape[2] - 3
    rows = _patch_transform([x[:, i : i + height : 2] for i in range(4)])
    return [_stacked(_patch_transform([row[:, :, j : j + width : 2] for j in range(4)])) for row in rows]


def _stacked(maps: Sequence[Array]) -> Array:
    return jnp.stack(maps).reshape(len(maps), -1, maps[0].shape[-1])


def _patch_transform(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]  # Bᵀ d


def _output_transform(m: Sequence[Array] | Array) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]  # Aᵀ m


def _output_transpose(first: Array, second: Array) -> list[Array]:
    return [first, first + second, first - second, -second]  # A y


_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_KERNEL_TRANSFORM = np.einsum("ai,bj->abij", _G, _G)
