"""A convolution whose gradient stays fast inside a loop on a CPU.

XLA:CPU has a fast routine for convolutions with kernels laid out HWIO. Differentiating with respect to the
input gives a convolution with the same kernel, flipped in space and with its channel axes exchanged. Outside a
loop XLA rewrites that layout; inside a ``while`` body (`lax.scan`, hence every Langevin chain) it does not, and
the naive routine takes over (jax-ml/jax#12868). Writing the flipped, transposed kernel out keeps the fast one.

On other backends XLA's own gradient is used.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["Conv", "conv", "conv_general_dilated"]

Implementation = Literal["auto", "canonical", "xla"]
LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], tuple[int, int]]


def conv(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    """Two-dimensional convolution with the canonical gradient: [N, H, W, I] and [h, w, I, O] -> [N, H', W', O].

    Reverse mode only (of any order); there is no forward-mode derivative.
    """
    return _conv(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def _forward(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> tuple[Array, Any]:
    return _conv(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, int], padding: Padding, residuals: Any, g: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    plain = lambda k: lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=LAYOUT)  # noqa: E731
    (dkernel,) = jax.vjp(plain, kernel)[1](g)
    pads = []
    for axis in (0, 1):
        low = kernel.shape[axis] - 1 - padding[axis][0]
        spread = (g.shape[1 + axis] - 1) * strides[axis] + 1  # extent of g with strides - 1 zeros between
        pads.append((low, x.shape[1 + axis] + kernel.shape[axis] - 1 - spread - low))
    dx = lax.conv_general_dilated(
        g, adjoint_kernel(kernel), (1, 1), pads, lhs_dilation=strides, dimension_numbers=LAYOUT
    )
    return dx, dkernel


def adjoint_kernel(kernel: Array) -> Array:
    """The adjoint convolution's kernel, flipped in space and channels exchanged: [h, w, I, O] -> [h, w, O, I]."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


_conv.defvjp(_forward, _backward)


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
    """`lax.conv_general_dilated` as `flax.linen.Conv` calls it, with the canonical gradient where it is faster.

    Args:
        implementation: "auto" (canonical on a CPU, XLA's own elsewhere), "canonical" or "xla". Dilated, grouped
            and other than two-dimensional convolutions, and a ``precision``, always go to XLA.

    Other arguments are those of `lax.conv_general_dilated`. The canonical gradient is reverse mode only: where
    forward mode is needed (`jax.jvp`, `jax.hessian`), use "xla".
    """
    canonical = implementation == "canonical" or (implementation == "auto" and jax.default_backend() == "cpu")
    plain_2d = lhs.ndim == 4 and feature_group_count == 1 and precision is None
    undilated = all(d == 1 for dilation in (lhs_dilation, rhs_dilation) for d in (dilation or ()))
    if not (canonical and plain_2d and undilated):
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, precision=precision,
        )  # fmt: skip
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    return conv(lhs, rhs, strides, tuple(map(tuple, padding)))  # type: ignore[arg-type]


Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
"""`flax.linen.Conv` with the convolution of this module."""
