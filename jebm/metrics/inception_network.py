"""The Inception network of the Fréchet Inception distance: the TensorFlow graph of 2015-12-05 up to its last pool.

Szegedy et al., "Rethinking the Inception architecture" (arXiv 1512.00567), as the graph has it: its average pools leave
the padding out of the count, the last block pools by maximum, and images are enlarged by TensorFlow 1's bilinear rule.
Modules bear the graph's names, so that a parameter's path is the name of its tensor. There are no logits.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["IMAGE_SIZE", "NUM_FEATURES", "Inception", "resize_bilinear"]

IMAGE_SIZE = 299
NUM_FEATURES = 2048

Kernel = tuple[int, int]


def resize_bilinear(images: Array, size: int) -> Array:
    """TensorFlow 1's ``resize_bilinear`` (corners not aligned): [N, H, W, C] -> float32 [N, size, size, C].

    Output row i is read at input row ``i H / size``, without a shift of half a pixel; above the last row it is the
    last. Not antialiased.
    """
    images = images.astype(jnp.float32)
    for axis in (1, 2):
        length = images.shape[axis]
        at = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = np.minimum(at.astype(np.int32), length - 1)
        high = np.minimum(low + 1, length - 1)
        share = jnp.asarray((at - low).reshape([size if i == axis else 1 for i in range(4)]))
        below = jnp.take(images, low, axis)
        images = below + (jnp.take(images, high, axis) - below) * share
    return images


class Convolution(nn.Module):
    """Convolution, ``(y - mean) / sqrt(var + 0.001) + beta``, ReLU. Parameters: w (HWIO), beta, mean, var."""

    features: int
    kernel: Kernel
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        vector = functools.partial(self.param, shape=(self.features,))
        w = self.param("w", nn.initializers.he_normal(), (*self.kernel, x.shape[-1], self.features))
        beta, mean = (vector(name, lambda _, shape: jnp.zeros(shape)) for name in ("beta", "mean"))
        var = vector("var", lambda _, shape: jnp.ones(shape))
        # without strides VALID is SAME cut: three times as fast on a CPU
        cut = self.padding == "VALID" and self.stride == 1 and self.kernel == (3, 3)
        y = lax.conv_general_dilated(
            x, w, (self.stride, self.stride), "SAME" if cut else self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        y = y[:, 1:-1, 1:-1] if cut else y
        beta, mean, var = (lax.broadcast_to_rank(a, y.ndim) for a in (beta, mean, var))
        return nn.relu((y - mean) / jnp.sqrt(var + 1e-3) + beta)


class Tower(nn.Module):
    """Convolutions one after the other, called conv, conv_1, ...; the last may have a stride, without padding then."""

    layers: tuple[tuple[int, Kernel], ...]
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, (features, kernel) in enumerate(self.layers):
            strided = self.stride > 1 and i == len(self.layers) - 1
            x = Convolution(
                features, kernel, self.stride if strided else 1, "VALID" if strided else "SAME", name=_name("conv", i)
            )(x)
        return x


class Mixed(nn.Module):
    """A block of parallel branches: ``conv``, the towers, and a convolution of the average pool."""

    conv: int
    towers: tuple[tuple[tuple[int, Kernel], ...], ...]
    pool: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [Convolution(self.conv, (1, 1), name="conv")(x)]
        branches += [Tower(layers, name=_name("tower", i))(x) for i, layers in enumerate(self.towers)]
        branches.append(Tower(((self.pool, (1, 1)),), name=_name("tower", len(self.towers)))(_average_pool(x)))
        return jnp.concatenate(branches, -1)


class Reduction(nn.Module):
    """A block that halves height and width: strided branches, and a maximum pool."""

    conv: int | None
    towers: tuple[tuple[tuple[int, Kernel], ...], ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [Convolution(self.conv, (3, 3), 2, "VALID", name="conv")(x)] if self.conv else []
        branches += [Tower(layers, 2, name=_name("tower", i))(x) for i, layers in enumerate(self.towers)]
        return jnp.concatenate([*branches, _max_pool(x)], -1)


class Fork(nn.Module):
    """One of the last two blocks, whose towers end in a row and a column convolution side by side."""

    maximum: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        convolve = lambda name, features, kernel, y: Convolution(features, kernel, name=name)(y)  # noqa: E731
        wide = convolve("tower_conv", 384, (1, 1), x)
        deep = convolve("tower_1_conv_1", 384, (3, 3), convolve("tower_1_conv", 448, (1, 1), x))
        pooled = _pool(jnp.maximum, _bordered(x, -jnp.inf)) if self.maximum else _average_pool(x)
        branches = [convolve("conv", 320, (1, 1), x)]
        for prefix, y in (("tower", wide), ("tower_1", deep)):
            branches.append(convolve(f"{prefix}_mixed_conv", 384, (1, 3), y))
            branches.append(convolve(f"{prefix}_mixed_conv_1", 384, (3, 1), y))
        return jnp.concatenate([*branches, convolve("tower_2_conv", 192, (1, 1), pooled)], -1)


class Inception(nn.Module):
    """Images of 256 levels, uint8 or float32 [N, H, W, 3] -> float32 features [N, 2048], the mean over 8x8 positions.

    The arithmetic is float32 throughout, on every device.
    """

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = (resize_bilinear(images, IMAGE_SIZE) - 128.0) / 128.0
        x = Convolution(32, (3, 3), 2, "VALID", name="conv")(x)
        x = Convolution(32, (3, 3), 1, "VALID", name="conv_1")(x)
        x = Convolution(64, (3, 3), name="conv_2")(x)
        x = _max_pool(x)
        x = Convolution(80, (1, 1), 1, "VALID", name="conv_3")(x)
        x = Convolution(192, (3, 3), 1, "VALID", name="conv_4")(x)
        x = _max_pool(x)
        for i, pool in enumerate((32, 64, 64)):
            double = ((64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
            x = Mixed(64, (((48, (1, 1)), (64, (5, 5))), double), pool, name=_name("mixed", i))(x)
        x = Reduction(384, (((64, (1, 1)), (96, (3, 3)), (96, (3, 3))),), name="mixed_3")(x)
        for i, c in enumerate((128, 160, 160, 192), 4):
            single = ((c, (1, 1)), (c, (1, 7)), (192, (7, 1)))
            twice = ((c, (1, 1)), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7)))
            x = Mixed(192, (single, twice), 192, name=_name("mixed", i))(x)
        through_7 = ((192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)))
        x = Reduction(None, (((192, (1, 1)), (320, (3, 3))), through_7), name="mixed_8")(x)
        x = Fork(maximum=False, name="mixed_9")(x)
        x = Fork(maximum=True, name="mixed_10")(x)
        return x.mean((1, 2))


def _name(kind: str, i: int) -> str:
    return f"{kind}_{i}" if i else kind


def _pool(join: Callable[[Array, Array], Array], x: Array, stride: int = 1) -> Array:
    """3x3 windows joined by shifts, several times as fast on a CPU as ``lax.reduce_window``."""
    for axis in (1, 2):
        last = x.shape[axis] - 2
        first, second, third = (lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(3))
        x = join(join(first, second), third)
    return x


def _max_pool(x: Array) -> Array:
    return _pool(jnp.maximum, x, 2)


def _average_pool(x: Array) -> Array:
    counts = _pool(jnp.add, _bordered(jnp.ones((1, *x.shape[1:3], 1)), 0.0))
    return _pool(jnp.add, _bordered(x, 0.0)) / counts


def _bordered(x: Array, value: float) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)
