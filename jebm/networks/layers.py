"""Small layers that the image networks share. Maps are [..., H, W, C], with or without batch axes."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jebm.networks.initializers import uniform_fan_in, uniform_fan_in_transposed

__all__ = [
    "PointwiseConv", "Projection", "average_pool", "average_pool_to", "gated_linear_unit", "leaky_relu",
    "nearest_upsample", "rematerialized",
]  # fmt: skip


def leaky_relu(x: Array) -> Array:
    """``max(x, 0.2 x)``."""
    return jax.nn.leaky_relu(x, 0.2)


def gated_linear_unit(x: Array) -> Array:
    """``a * sigmoid(b)`` with ``a``, ``b`` the first and second half of the channels."""
    a, b = jnp.split(x, 2, axis=-1)
    return a * jax.nn.sigmoid(b)


def average_pool(x: Array) -> Array:
    """Means of 2x2 blocks, [..., H, W, C] -> [..., H//2, W//2, C]; an odd last row or column is left out.

    Raises:
        ValueError: H or W below 2.

    Examples:
        >>> jebm.networks.layers.average_pool(jnp.arange(4.0).reshape(2, 2, 1))
        Array([[[1.5]]], dtype=float32)
    """
    height, width = x.shape[-3] // 2, x.shape[-2] // 2
    if height == 0 or width == 0:
        raise ValueError(f"a map of {x.shape[-3]}x{x.shape[-2]} cannot be halved: use larger images or fewer stages")
    x = x[..., : 2 * height, : 2 * width, :]
    pooled: Array = pool_p.bind(x, adjoint=False)
    return pooled


# A primitive, since it alone can have a program for each platform without a choice left in its gradient. It is linear;
# with ``adjoint`` it is its own transpose. For a TPU, `lax.reduce_window` takes an eighth of the cycles of a reshaped
# mean; a CPU is faster with the mean.
pool_p = Primitive("jebm_average_pool")


def _mean_of_blocks(x: Array, *, adjoint: bool) -> Array:
    *batch, height, width, channels = x.shape
    if adjoint:
        return nearest_upsample(x) / 4
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channels).mean((-4, -2))


def _mean_of_windows(x: Array, *, adjoint: bool) -> Array:
    *batch, height, width, channels = x.shape
    if adjoint:
        pooled = jax.ShapeDtypeStruct((*batch, 2 * height, 2 * width, channels), x.dtype)
        return jax.linear_transpose(functools.partial(_mean_of_windows, adjoint=False), pooled)(x)[0]
    window = (*(1 for _ in batch), 2, 2, 1)
    return (lax.reduce_window(x.astype(jnp.float32), 0.0, lax.add, window, window, "VALID") / 4).astype(x.dtype)


@functools.lru_cache(maxsize=4096)
def _pooled(x: Any, *, adjoint: bool) -> Any:
    return jax.make_jaxpr(functools.partial(_mean_of_blocks, adjoint=adjoint))(x).out_avals[0]


def _batch(operands: Sequence[Array], axes: Sequence[int], *, adjoint: bool) -> tuple[Array, int]:
    return pool_p.bind(jnp.moveaxis(operands[0], axes[0], 0), adjoint=adjoint), 0


pool_p.def_impl(jax.jit(pool_p.bind, static_argnames="adjoint"))
pool_p.def_abstract_eval(_pooled)
ad.deflinear2(pool_p, lambda g, x, *, adjoint: [pool_p.bind(g, adjoint=not adjoint)])
batching.primitive_batchers[pool_p] = _batch
mlir.register_lowering(pool_p, mlir.lower_fun(_mean_of_windows, multiple_results=False))
mlir.register_lowering(pool_p, mlir.lower_fun(_mean_of_blocks, multiple_results=False), platform="cpu")


def average_pool_to(x: Array, size: int) -> Array:
    """Block means, [..., H, W, C] -> [..., size, size, C]; H and W must be multiples of ``size``."""
    height, width = x.shape[-3] // size, x.shape[-2] // size
    return x.reshape(*x.shape[:-3], size, height, size, width, x.shape[-1]).mean((-4, -2))


def nearest_upsample(x: Array) -> Array:
    """Every pixel becomes 2x2 pixels, [..., H, W, C] -> [..., 2H, 2W, C].

    Examples:
        >>> jebm.networks.layers.nearest_upsample(jnp.ones((2, 2, 1))).shape
        (4, 4, 1)
    """
    *batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*batch, height, 2, width, 2, channels))
    return x.reshape(*batch, 2 * height, 2 * width, channels)


def rematerialized(block: type[nn.Module], on: bool) -> type[nn.Module]:
    """``block`` whose gradient computes its inside again instead of keeping it, where ``on``; parameters are the same.

    A gradient then keeps the maps between blocks, not those within, at the price of one more evaluation.
    """
    return nn.remat(block) if on else block


class PointwiseConv(nn.Module):
    """A 1x1 convolution without bias as a matrix product; kernel [1, 1, in, out].

    Attributes:
        features: output channels.
        stride: pixels from one output to the next.
        kernel_init: initial law of the kernel.
        dtype: compute dtype.
    """

    features: int
    stride: int = 1
    kernel_init: Initializer = uniform_fan_in
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., H, W, in] -> [..., ceil(H/stride), ceil(W/stride), features]."""
        kernel: Any = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features), jnp.float32)
        x = x[..., :: self.stride, :: self.stride, :]
        return x.astype(self.dtype) @ kernel[0, 0].astype(self.dtype)


class Projection(nn.Module):
    """A vector becomes a map: the transposed convolution of a 1x1 map, as one matrix product.

    ``y[h, w, o] = Σ_i z[i] K[h, w, i, o]``, kernel [size, size, in, out], no bias.

    Attributes:
        features: output channels.
        size: height and width of the map.
        kernel_init: initial law of the kernel.
        dtype: compute dtype.
    """

    features: int
    size: int = 4
    kernel_init: Initializer = uniform_fan_in_transposed
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[..., in] -> [..., size, size, features]."""
        shape = (self.size, self.size, z.shape[-1], self.features)
        kernel: Any = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return jnp.einsum("...i,hwio->...hwo", z.astype(self.dtype), kernel.astype(self.dtype))
