"""Encoder and decoder of the energy-calibrated VAE at 8 to 64 pixels (arXiv 2311.04071, official demo).

The demo normalises every kernel of the decoder spectrally and none of the encoder; this is a transform of the
parameters, see `jebm.networks.spectral_norm`. Images are [..., H, W, C] in [-1, 1]. In train mode batch
normalisation takes the statistics of the batch and updates ``batch_stats``, which must then be mutable.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jebm.energy import Generator, bind
from jebm.networks.convolution import Conv
from jebm.networks.initializers import uniform_fan_in
from jebm.networks.layers import PointwiseConv, Projection, gated_linear_unit
from jebm.networks.normalization import BatchNorm, standing_statistics
from jebm.networks.resampled import UpsampledConv

__all__ = ["STANDING_LATENTS", "Decoder", "Encoder", "standing_generator"]

STANDING_LATENTS = 256  # prior latents that re-estimate a decoder's batch statistics


class Encoder(nn.Module):
    """``q(z|x) = N(μ(x), diag exp(logvar(x)))``: a ResNet-18 with two linear heads; ``μ`` in (-1, 1) by tanh.

    The map has ``image_size / stem_stride`` pixels a side in the first stage, half as many in each later one.
    The defaults are the demo's for 32x32 (16, 8, 4, 2); 8x8: ``num_stages=3, stem_stride=1`` (8, 4, 2).

    Attributes:
        width: channels of the first stage, doubled in each later one.
        latent_size: length of ``μ`` and ``logvar``.
        num_stages: stages of two residual blocks.
        stem_stride: stride of the first convolution.
        dtype: compute dtype; parameters, statistics and the heads are float32.
    """

    width: int = 128
    latent_size: int = 128
    num_stages: int = 4
    stem_stride: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """[..., H, W, C] -> ``(mu, logvar)``, each [..., latent_size], float32."""
        x = _conv3(self.width, self.stem_stride, self.dtype, "conv_1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn_1")(x, train=train))
        for i in range(self.num_stages):
            stage = EncoderStage(self.width << i, 1 if i == 0 else 2, self.dtype, name=f"layer{i + 1}")
            x = stage(x, train)
        x = x.astype(jnp.float32).mean((-3, -2))
        normal = nn.initializers.normal(0.02)
        mu = jnp.tanh(nn.Dense(self.latent_size, kernel_init=normal, name="mu")(x))
        return mu, nn.Dense(self.latent_size, kernel_init=normal, name="logvar")(x)


class EncoderStage(nn.Module):
    """Two basic blocks, the first with the stride."""

    channels: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = BasicBlock(self.channels, self.stride, self.dtype, name="block0")(x, train)
        return BasicBlock(self.channels, 1, self.dtype, name="block1")(x, train)


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + BN(conv(relu(BN(conv(x))))))``; a strided shortcut is a 1x1 convolution and BN."""

    channels: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = _conv3(self.channels, self.stride, self.dtype, "conv_1")(x)
        y = nn.relu(BatchNorm(dtype=self.dtype, name="bn_1")(y, train=train))
        y = _conv3(self.channels, 1, self.dtype, "conv_2")(y)
        y = BatchNorm(dtype=self.dtype, name="bn_2")(y, train=train)
        if self.stride != 1:
            x = Shortcut(self.channels, self.stride, self.dtype, name="shortcut")(x, train)
        return nn.relu(x + y)


class Shortcut(nn.Module):
    """Strided 1x1 convolution and BN."""

    channels: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        normal = nn.initializers.normal(0.02)
        x = PointwiseConv(self.channels, self.stride, kernel_init=normal, dtype=self.dtype, name="conv")(x)
        return BatchNorm(dtype=self.dtype, name="bn")(x, train=train)


def _conv3(channels: int, stride: int, dtype: DTypeLike, name: str) -> nn.Conv:
    normal = nn.initializers.normal(0.02)
    strides = (stride, stride)
    return Conv(channels, (3, 3), strides, 1, use_bias=False, kernel_init=normal, dtype=dtype, name=name)


DECODER_BLOCKS = ((8, 8, 2), (16, 8, 1), (32, 8, 2), (64, 2, 1))
"""(size, channels over ``width``, convolutions) of the decoder's blocks. The demo stops at 32; 64 is ours."""


class Decoder(nn.Module):
    """``G(z)``: a 4x4 map, then blocks that each double its size, then a 1x1 convolution and tanh.

    Attributes:
        width: base width; the maps have 16 (4x4), 8 (8 to 32) and 2 (64) times as many channels.
        image_size: 8, 16, 32 or 64; the ladder stops there.
        channels: channels of the image.
        latent_size: length of ``z``.
        dtype: compute dtype; parameters and statistics, and the image, are float32.
    """

    width: int = 64
    image_size: int = 32
    channels: int = 3
    latent_size: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        """[..., latent_size] -> [..., image_size, image_size, channels] in (-1, 1), float32.

        Raises:
            ValueError: an image size that the ladder does not reach, or latents of another length.
        """
        sizes = [size for size, _, _ in DECODER_BLOCKS]
        if self.image_size not in sizes:
            raise ValueError(f"image_size must be one of {sizes}, got {self.image_size}")
        check_latents(z, self.latent_size)
        x = InitialBlock(16 * self.width, self.dtype, name="init")(z, train)
        for size, multiple, num_convs in DECODER_BLOCKS[: sizes.index(self.image_size) + 1]:
            x = UpBlock(multiple * self.width, num_convs, self.dtype, name=f"feat_{size}")(x, train)
        x = PointwiseConv(self.channels, dtype=self.dtype, name=f"to_{self.image_size}")(x)
        return jnp.tanh(x.astype(jnp.float32))


def standing_generator(decoder: nn.Module, params: Any, running: Any, latent_size: int) -> Generator:
    """The decoder that generates: its batch statistics are those of a fixed set of prior latents [ours].

    Args:
        decoder: from latents to images, with `BatchNorm` layers.
        params: its parameters, spectrally normalised.
        running: its running statistics, for their shapes alone.
        latent_size: length of a latent.

    Returns:
        A function from latents [..., latent_size] to images [..., H, W, C] in (-1, 1); its weights are pytree leaves.
    """
    z = jax.random.normal(jax.random.key(0), (STANDING_LATENTS, latent_size))  # a constant of the generator
    stats = standing_statistics(decoder, params, running, z)
    return bind(decoder.apply, {"params": params, "batch_stats": stats})


def check_latents(z: Array, latent_size: int) -> None:
    """Raises ValueError unless ``z`` is [..., latent_size]."""
    if z.shape[-1:] != (latent_size,):
        raise ValueError(f"latents must be [..., {latent_size}] (latent_size), got shape {z.shape}")


class InitialBlock(nn.Module):
    """Latents to a 4x4 map, BN, GLU."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, z: Array, train: bool) -> Array:
        x = Projection(2 * self.channels, dtype=self.dtype, name="conv_1")(z)
        return gated_linear_unit(BatchNorm(dtype=self.dtype, name="bn_1")(x, train=train))


class UpBlock(nn.Module):
    """Nearest doubling, then ``num_convs`` times 3x3 convolution, BN, GLU."""

    channels: int
    num_convs: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(1, self.num_convs + 1):
            x = conv_sn(2 * self.channels, 3, self.dtype, f"conv_{i}", layer=UpsampledConv if i == 1 else Conv)(x)
            x = gated_linear_unit(BatchNorm(dtype=self.dtype, name=f"bn_{i}")(x, train=train))
        return x


def conv_sn(
    channels: int, size: int, dtype: DTypeLike, name: str, stride: int = 1, padding: int = 1,
    layer: Callable[..., nn.Conv] = Conv,
) -> nn.Conv:  # fmt: skip
    """A convolution without bias whose kernel the family normalises spectrally."""
    return layer(
        channels, kernel_size=(size, size), strides=(stride, stride), padding=padding, use_bias=False,
        kernel_init=uniform_fan_in, dtype=dtype, name=name,
    )  # fmt: skip
