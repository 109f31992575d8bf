"""3x3 convolutions before a halving or after a doubling of the map, on a CPU with nine products a pair of channels.

Along one axis a mean of two neighbouring outputs of a convolution by ``(k0, k1, k2)`` is

    ½ (k0 d0 + (k0 + k1) d1 + (k1 + k2) d2 + k2 d3)
        = ½ k0 (d0 - d2) + ½ (k0 + k1 + k2) (d1 + d2) + ½ k2 (d3 - d1),

three products where the convolution alone takes four by Winograd's algorithm and six as it stands: of its products
for two outputs, ``m0 + m1 + m2`` and ``m1 - m2 - m3``, the third drops out of the sum. In two dimensions nine remain
of 16 or 36, and the convolution with its pooling is one matrix product, as is each of its gradients.

The transpose of that is a doubling of the map by repetition, divided by four, before a convolution, so that the same
three programs serve generators. Other platforms have XLA's convolution, and the resampling as it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jebm.networks.convolution import adjoint_kernel, conv_general_dilated, direct, is_wide
from jebm.networks.layers import average_pool, nearest_upsample
from jebm.networks.trilinear import Wanted, trilinear

__all__ = ["PooledConv", "UpsampledConv", "pooled_conv", "upsampled_conv"]

BORDER = ((1, 1), (1, 1))


def pooled_conv(x: Array, kernel: Array) -> Array:
    """`average_pool` of a 3x3 convolution with a border of zeros: [N, H, W, I], [3, 3, I, O] -> [N, H//2, W//2, O].

    Differentiable any number of times, in both modes.

    Raises:
        ValueError: H or W below 2.
    """
    if not is_wide(x, kernel) or x.shape[1] % 2 or x.shape[2] % 2:
        return average_pool(conv_general_dilated(x, kernel, (1, 1), BORDER))
    return pooled_p.bind(x, kernel, wanted="y", image=x.shape[1:3], window=(3, 3))


def upsampled_conv(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution, with a border of zeros, of `nearest_upsample`: [N, H, W, I], [3, 3, I, O] -> [N, 2H, 2W, O].

    Differentiable any number of times, in both modes.
    """
    if not is_wide(x, kernel):
        return conv_general_dilated(nearest_upsample(x), kernel, (1, 1), BORDER)
    return upsampled_p.bind(x, kernel, wanted="y", image=x.shape[1:3], window=(3, 3))


def _layer(convolve: Callable[[Array, Array], Array]) -> Callable[..., nn.Conv]:
    def called_by_flax(x: Array, kernel: Array, strides: Sequence[int], padding: Any, **rest: Any) -> Array:
        return convolve(x, kernel)

    # a bias that is added after pooling, or after the convolution of a doubled map, is the same
    return functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=called_by_flax)


PooledConv = _layer(pooled_conv)
"""`flax.linen.Conv` of 3x3 with `average_pool` after it: the same parameters; strides and padding are not to be set."""

UpsampledConv = _layer(upsampled_conv)
"""`flax.linen.Conv` of 3x3 with `nearest_upsample` before it: the same parameters; as `PooledConv`."""


def _pooled(x: Array, kernel: Array) -> Array:
    return average_pool(direct(x, kernel, strides=(1, 1), padding=BORDER))


def _upsampled(x: Array, kernel: Array) -> Array:
    return direct(nearest_upsample(x), kernel, strides=(1, 1), padding=BORDER)


def _pooled_on_cpu(a: Array, b: Array, *, wanted: Wanted, image: Any = None, window: Any = None) -> Array:
    if wanted == "x":
        return _spread_products(a, b)
    patches = _patches(jnp.pad(a, ((0, 0), *BORDER, (0, 0))))
    if wanted == "y":
        return (_rows(patches) @ _kernels(b)).reshape(*patches.shape[:3], -1)
    products = lax.dot_general(_rows(patches), _rows(b), (((0,), (0,)), ((), ())))
    return jnp.einsum("abij,abco->ijco", _KERNEL_SUMS, products.reshape(3, 3, a.shape[3], b.shape[3]))


def _upsampled_on_cpu(a: Array, b: Array, *, wanted: Wanted, image: Any, window: Any) -> Array:
    if wanted == "k":
        return 4.0 * adjoint_kernel(_pooled_on_cpu(b, a, wanted="k"))
    return _pooled_on_cpu(a, 4.0 * adjoint_kernel(b), wanted="x" if wanted == "y" else "y")


pooled_p = trilinear("jebm_pooled_conv", _pooled, _pooled_on_cpu)
upsampled_p = trilinear("jebm_upsampled_conv", _upsampled, _upsampled_on_cpu)


def _patches(x: Array) -> Array:
    """The nine sums of each 4x4 patch that the products are of: [N, H + 2, W + 2, I] -> [N, H/2, W/2, 9 I]."""
    height, width = x.shape[1] - 3, x.shape[2] - 3
    rows = _sums([x[:, i : i + height : 2] for i in range(4)])
    return jnp.concatenate([p for row in rows for p in _sums([row[:, :, j : j + width : 2] for j in range(4)])], -1)


def _spread_products(y: Array, kernel: Array) -> Array:
    """The transpose of ``_patches(x) @ _kernels(kernel)`` to x: [N, H/2, W/2, O] -> [N, H, W, I]."""
    products = (_rows(y) @ _kernels(kernel).T).reshape(*y.shape[:3], 3, 3, kernel.shape[2])
    return _spread([_spread([products[:, :, :, a, b] for b in range(3)], 2) for a in range(3)], 1)


def _sums(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[3] - d[1]]


def _spread(sums: Sequence[Array], axis: int) -> Array:
    """The transpose of `_sums` over all patches of an axis, less the border: twice as long."""
    first, middle, last = sums
    size, zeros = first.shape[axis], jnp.zeros_like(lax.slice_in_dim(first, 0, 1, axis=axis))
    before = jnp.concatenate([zeros, lax.slice_in_dim(last, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(first, 1, size, axis=axis), zeros], axis)
    pairs = jnp.stack([middle - last + before, middle - first + after], axis + 1)
    return pairs.reshape(*first.shape[:axis], 2 * size, *first.shape[axis + 1 :])


def _kernels(kernel: Array) -> Array:
    return jnp.einsum("abij,ijco->abco", _KERNEL_SUMS, kernel).reshape(-1, kernel.shape[3])


def _rows(maps: Array) -> Array:
    return maps.reshape(-1, maps.shape[-1])


_HALVES = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 1]], np.float32) / 2
_KERNEL_SUMS = np.einsum("ai,bj->abij", _HALVES, _HALVES)
