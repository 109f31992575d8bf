"""Networks of Hat EBM (arXiv 2210.16486, released code): the hat, SN-GAN generators, and the retrofit autoencoder.

Residual networks of 3x3 and 1x1 convolutions, all with bias, Glorot-uniform kernels and ReLU. No spectral norm; the
hats and the encoder have no normalisation at all. "Batch norm" in the generators is a frozen affine map: running
statistics (``batch_stats``) normalise in training, too, and nothing updates them, so they stay 0 and 1 unless a
trained SN-GAN's are loaded. Parameters carry the names of the authors' layers as `jebm.convert.hat_ebm` reads them.

Images and latents are [..., H, W, C] and [..., latent_size], with or without batch axes. The widths are those of the
widest layer. Sizes 8 and 16 are ours; 32, 64 and 128 are the authors'.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jebm.networks.convolution import Conv
from jebm.networks.layers import average_pool, rematerialized
from jebm.networks.normalization import BatchNorm
from jebm.networks.resampled import PooledConv

__all__ = ["IMAGE_SIZES", "HatDecoder", "HatEncoder", "HatEnergy", "HatGenerator", "code_shape"]

glorot = nn.initializers.glorot_uniform()
EPSILON = 1e-3  # Keras's, of batch normalisation


class Stage(NamedTuple):
    """A residual block: its channels are the network's width over ``divisor``; ``resample`` halves or doubles."""

    divisor: int
    resample: bool = True


HAT_STAGES: dict[int, tuple[Stage, ...]] = {
    8: (Stage(1), Stage(1, False), Stage(1, False)),
    16: (Stage(1), Stage(1), Stage(1, False)),
    32: (Stage(1), Stage(1), Stage(1, False), Stage(1, False)),
    64: (Stage(16), Stage(8), Stage(4), Stage(2), Stage(1)),
    128: (Stage(16), Stage(8), Stage(4), Stage(2), Stage(1), Stage(1, False)),
}
"""Blocks of the hat by image size; the first one is the stem."""

GENERATOR_STAGES: dict[int, tuple[Stage, ...]] = {
    8: (Stage(1),),
    16: (Stage(1), Stage(1)),
    32: (Stage(1), Stage(1), Stage(1)),
    64: (Stage(2), Stage(4), Stage(8), Stage(16)),
    128: (Stage(1), Stage(2), Stage(4), Stage(8), Stage(16)),
}
"""Blocks of the generator by image size, each doubling a map that begins at 4x4."""

IMAGE_SIZES = tuple(HAT_STAGES)


class HatEnergy(nn.Module):
    """``H(x)``: residual blocks that halve the image, ReLU, mean over pixels, a linear map without bias.

    Attributes:
        image_size: 8, 16, 32, 64 or 128.
        width: channels of the widest block (authors: 256 at 32 px, 1024 at 64 px, 1024 or 2048 at 128 px).
        dtype: compute dtype of the blocks; parameters, the mean and H are float32.
        rematerialize: gradients compute each residual block again instead of keeping its inside.
    """

    image_size: int = 32
    width: int = 256
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., image_size, image_size, C] -> [...], float32.

        Raises:
            ValueError: an image size that is not listed, images of another size, or a width that the
                divisors of the blocks do not divide.
        """
        stages = _stages(HAT_STAGES, self.image_size, self.width)
        _check_shape("images", x, (self.image_size, self.image_size))
        for i, (divisor, resample) in enumerate(stages):
            block = rematerialized(HatBlock, self.rematerialize)
            x = block(self.width // divisor, resample, i == 0, self.dtype, name=_block_name(i))(x)
        features = nn.relu(x).astype(jnp.float32).mean((-3, -2))
        return nn.Dense(1, use_bias=False, kernel_init=glorot, name="head")(features)[..., 0]


class HatGenerator(nn.Module):
    """``G(z)``: a linear map to 4x4, residual blocks that double it, and ``output_scale * tanh`` (SN-GAN's layout).

    The linear map's output is read as (width, 4, 4), channels first, as in the PyTorch networks it comes from.

    Attributes:
        image_size: 8, 16, 32, 64 or 128.
        width: channels of the 4x4 map (authors: 256 at 32 px, 1024 at 64 px, 1024 or 2048 at 128 px).
        channels: of the images.
        output_scale: 2 in synthesis, where targets leave [-1, 1]; 1 for an SN-GAN.
        dtype: compute dtype; parameters, statistics and the image are float32.
    """

    image_size: int = 32
    width: int = 256
    channels: int = 3
    output_scale: float = 2.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[..., latent_size] -> [..., image_size, image_size, channels], float32.

        Raises:
            ValueError: an image size that is not listed, or a width that the divisors of the blocks do not divide.
        """
        stages = _stages(GENERATOR_STAGES, self.image_size, self.width)
        x = nn.Dense(16 * self.width, kernel_init=glorot, dtype=self.dtype, name="dense")(z)
        x = jnp.moveaxis(x.reshape(*z.shape[:-1], self.width, 4, 4), -3, -1)
        for i, (divisor, resample) in enumerate(stages):
            x = GeneratorBlock(self.width // divisor, resample, self.dtype, name=_block_name(i + 1))(x)
        return _to_image(x, self.channels, self.output_scale, self.dtype)


class HatEncoder(nn.Module):
    """``E(x)``: the retrofit encoder, to codes of half the image's size on a sphere.

    The blocks are the hat's. A code of d numbers is on the sphere of radius ``sqrt(d)``, near which N(0, I) has
    its mass: ``c = sqrt(d) c' / (‖c'‖ + 1e-6)``.

    Attributes:
        width: channels of all blocks (authors: 256).
        project: False does not project the codes onto the sphere.
        dtype: compute dtype; parameters and codes are float32.
    """

    width: int = 256
    project: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., S, S, C] -> [..., S/2, S/2, 1], float32."""
        for i, halve in enumerate((False, True, False, False)):
            x = HatBlock(self.width, halve, i == 0, self.dtype, name=_block_name(i))(x)
        code = _conv(1, self.dtype, "out_conv")(nn.relu(x)).astype(jnp.float32)
        if not self.project:
            return code
        radius = (code.shape[-3] * code.shape[-2] * code.shape[-1]) ** 0.5
        norm = jnp.linalg.norm(code.reshape(*code.shape[:-3], -1), axis=-1)
        return radius * code / (norm + 1e-6)[..., None, None, None]


class HatDecoder(nn.Module):
    """``D(c)``: the retrofit decoder of `HatEncoder`'s codes.

    Attributes:
        width: channels of all blocks (authors: 256).
        channels: of the images.
        output_scale: the image is ``output_scale * tanh``.
        dtype: compute dtype; parameters, statistics and the image are float32.
    """

    width: int = 256
    channels: int = 3
    output_scale: float = 2.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[..., S/2, S/2, 1] -> [..., S, S, channels], float32."""
        x = GeneratorStem(self.width, self.dtype, name=_block_name(0))(z)
        for i, double in enumerate((True, False, False)):
            x = GeneratorBlock(self.width, double, self.dtype, name=_block_name(i + 1))(x)
        return _to_image(x, self.channels, self.output_scale, self.dtype)


def code_shape(image_size: int) -> tuple[int, int, int]:
    """Shape of one code of `HatEncoder`."""
    return (image_size // 2, image_size // 2, 1)


class HatBlock(nn.Module):
    """``pool(conv(relu(conv(relu(x))))) + shortcut``; the stem has no ReLU in front.

    The shortcut is ``conv1(pool(x))`` in the stem and ``pool(conv1(x))`` elsewhere; the identity where neither
    channels nor size change.
    """

    channels: int
    halve: bool
    is_stem: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pool = average_pool if self.halve else _identity
        h = _conv(self.channels, self.dtype, "conv_1")(x if self.is_stem else nn.relu(x))
        conv_2 = _conv(self.channels, self.dtype, "conv_2", PooledConv if self.halve else Conv)
        h = conv_2(nn.relu(h))
        if self.is_stem:
            return h + Shortcut(self.channels, self.dtype, name="shortcut")(pool(x))
        if self.halve or x.shape[-1] != self.channels:
            x = pool(Shortcut(self.channels, self.dtype, name="shortcut")(x))
        return h + x


class GeneratorStem(nn.Module):
    """``conv(relu(bn(conv(x)))) + conv1(x)``."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = _batch_norm(self.dtype, "bn_2", _conv(self.channels, self.dtype, "conv_1")(x))
        h = _conv(self.channels, self.dtype, "conv_2")(nn.relu(h))
        return h + Shortcut(self.channels, self.dtype, name="shortcut")(x)


class GeneratorBlock(nn.Module):
    """``conv(relu(bn(conv(up(relu(bn(x))))))) + conv1(up(x))``, or ``+ x`` where nothing changes."""

    channels: int
    double: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        up = bilinear_upsample if self.double else _identity
        h = up(nn.relu(_batch_norm(self.dtype, "bn_1", x)))
        h = _batch_norm(self.dtype, "bn_2", _conv(self.channels, self.dtype, "conv_1")(h))
        h = _conv(self.channels, self.dtype, "conv_2")(nn.relu(h))
        if self.double or x.shape[-1] != self.channels:
            x = Shortcut(self.channels, self.dtype, name="shortcut")(up(x))
        return h + x


class Shortcut(nn.Module):
    """A 1x1 convolution with bias as a matrix product; kernel [1, 1, in, out]."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel: Any = self.param("kernel", glorot, (1, 1, x.shape[-1], self.channels), jnp.float32)
        bias: Any = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        bias = jax.lax.broadcast_to_rank(bias.astype(self.dtype), x.ndim)
        return x.astype(self.dtype) @ kernel[0, 0].astype(self.dtype) + bias


def bilinear_upsample(x: Array) -> Array:
    """Twice the size by linear interpolation between pixel centres: [..., H, W, C] -> [..., 2H, 2W, C]."""
    *batch, height, width, channels = x.shape
    return jax.image.resize(x, (*batch, 2 * height, 2 * width, channels), "bilinear")


def _to_image(x: Array, channels: int, output_scale: float, dtype: DTypeLike) -> Array:
    x = _conv(channels, dtype, "out_conv")(nn.relu(_batch_norm(dtype, "out_bn", x)))
    return output_scale * jnp.tanh(x.astype(jnp.float32))


def _conv(channels: int, dtype: DTypeLike, name: str, layer: Callable[..., nn.Conv] = Conv) -> nn.Conv:
    return layer(channels, kernel_size=(3, 3), padding=1, kernel_init=glorot, dtype=dtype, name=name)


def _batch_norm(dtype: DTypeLike, name: str, x: Array) -> Array:
    return BatchNorm(epsilon=EPSILON, dtype=dtype, name=name)(x, train=False)


def _identity(x: Array) -> Array:
    return x


def _block_name(i: int) -> str:
    return "stem" if i == 0 else f"block{i + 1}"


def _stages(table: dict[int, tuple[Stage, ...]], image_size: int, width: int) -> tuple[Stage, ...]:
    if image_size not in table:
        raise ValueError(f"image_size must be one of {list(table)}, got {image_size}")
    largest = max(stage.divisor for stage in table[image_size])
    if width < 1 or width % largest:
        raise ValueError(f"width must be a multiple of {largest} at {image_size} px, got {width}")
    return table[image_size]


def _check_shape(name: str, x: Array, size: tuple[int, int]) -> None:
    if x.shape[-3:-1] != size:
        raise ValueError(f"{name} must be [..., {size[0]}, {size[1]}, C] (image_size), got shape {x.shape}")
