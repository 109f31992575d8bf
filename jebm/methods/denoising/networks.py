"""Networks of Denoising-EBM (arXiv 2303.03887): a noise-conditional U-Net, a compact autoencoder, semantic heads.

The paper's architectures were not available: all here are ours, with sizes of neighbouring methods (the U-Net's widths
as in Gao et al., arXiv 2012.08125; the vector head as in CLEL). Images are [..., H, W, C] in about [0, 1], with or
without batch axes; noise levels are [...], one per image. Normalisation is over single images (groups of channels),
so an image's output depends on that image alone.
"""

import math
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jebm.networks.convolution import Conv
from jebm.networks.initializers import normal_fan_in
from jebm.networks.layers import PointwiseConv, Projection, average_pool, nearest_upsample, rematerialized

__all__ = [
    "CompactDecoder", "CompactEncoder", "DenoisingUNet", "LatentHead", "PooledHead", "QuadraticHead", "on_sphere",
]  # fmt: skip

small_normal = nn.initializers.normal(0.01)


class DenoisingUNet(nn.Module):
    """``u(x̃, σ)``, of the shape of x̃: the denoiser is ``D(x̃, σ) = x̃ + σ u(x̃, σ)``, so u estimates minus the noise.

    Attributes:
        width: channels at full resolution.
        multipliers: of the width, per resolution; the image is halved ``len(multipliers) - 1`` times.
        num_blocks: residual blocks per resolution, on the way down and again on the way up.
        dtype: compute dtype; parameters, normalisation statistics and the output are float32.
        rematerialize: gradients compute each residual block again instead of keeping its inside.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False

    def setup(self) -> None:
        shape = (self.width, self.multipliers, self.num_blocks, self.dtype, self.rematerialize)
        self.encoder = DownPath(*shape)
        self.decoder = UpPath(*shape)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """[..., H, W, C] and [...] -> [..., H, W, C], float32.

        Raises:
            ValueError: images too small to be halved so often.
        """
        *skips, bottleneck = self.encoder(x, sigma)
        return cast(Array, self.decoder(bottleneck, skips, sigma, x.shape[-1]))

    def features(self, x: Array, sigma: Array) -> Array:
        """The bottleneck f(x̃, σ), [..., h, w, channels], float32; it costs half of the network."""
        return cast(Array, self.encoder(x, sigma)[-1]).astype(jnp.float32)


class CompactEncoder(nn.Module):
    """``z = f(x̃, σ)``, [..., latent_size] float32, on the sphere of radius √latent_size.

    On that sphere the reference N(0, I) has nearly all of its mass, and the scale of z, which an autoencoder leaves
    open, is fixed.
    """

    latent_size: int = 32
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 1
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x: Array, sigma: Array) -> Array:
        """[..., H, W, C] and [...] -> [..., latent_size]."""
        shape = (self.width, self.multipliers, self.num_blocks, self.dtype, self.rematerialize)
        down = DownPath(*shape, name="encoder")
        bottleneck = nn.silu(_norm("norm", self.dtype)(down(x, sigma)[-1]))
        flat = bottleneck.reshape(*bottleneck.shape[:-3], -1)
        return on_sphere(nn.Dense(self.latent_size, dtype=self.dtype, name="latent")(flat).astype(jnp.float32))


class CompactDecoder(nn.Module):
    """``g(z)``: latents to images in (0, 1), without skips and without a noise level; z is put `on_sphere` first.

    Attributes:
        channels: of the images.
        width: channels of the last stage.
        multipliers: of the width, per resolution from the finest, as those of the encoder.
        num_blocks: residual blocks per resolution.
        start_size: height and width of the first map; each further resolution doubles it.
        dtype: compute dtype.
    """

    channels: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 1
    start_size: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[..., latent_size] -> [..., H, W, C], float32."""
        widest = self.width * self.multipliers[-1]
        y = Projection(widest, self.start_size, normal_fan_in, self.dtype, name="projection")(on_sphere(z))
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            for j in range(self.num_blocks):
                y = ResidualBlock(self.width * multiplier, self.dtype, name=f"stage{i}_block{j}")(y, None)
            y = nearest_upsample(y) if i > 0 else y
        return nn.sigmoid(LastConv(self.channels, self.dtype, name="out")(y))


class PooledHead(nn.Module):
    """``h(f)`` of a bottleneck: nonlinearity, mean over pixels, a hidden layer; [..., h, w, c] -> [..., outputs].

    The last layer starts small, so that a half squared norm starts near 0.
    """

    outputs: int = 128
    hidden: int = 2048

    @nn.compact
    def __call__(self, features: Array) -> Array:
        pooled = nn.silu(_norm("norm", jnp.float32)(features)).mean((-3, -2))
        return _last_dense(self.outputs)(nn.silu(nn.Dense(self.hidden, name="fc_1")(pooled)))


class LatentHead(nn.Module):
    """``h(z, σ)`` of a compact latent, put `on_sphere`: two hidden layers; [..., d] and [...] -> [..., outputs]."""

    outputs: int = 128
    hidden: int = 2048

    @nn.compact
    def __call__(self, z: Array, sigma: Array) -> Array:
        level = nn.Dense(self.hidden, name="level")(noise_features(sigma))
        y = nn.silu(nn.Dense(self.hidden, name="fc_1")(on_sphere(z)) + level)
        return _last_dense(self.outputs)(nn.silu(nn.Dense(self.hidden, name="fc_2")(y)))


class QuadraticHead(nn.Module):
    """``(aᵀo)(bᵀo) + cᵀo²``, each with its bias, of a vector or flattened map o: [...]; as in MDSM."""

    feature_axes: int = 3

    @nn.compact
    def __call__(self, features: Array) -> Array:
        o = features.reshape(*features.shape[: features.ndim - self.feature_axes], -1)
        a, b, c = (nn.Dense(1, kernel_init=small_normal, name=name) for name in "abc")
        return (a(o) * b(o) + c(jnp.square(o)))[..., 0]


def on_sphere(z: Array) -> Array:
    """``√d z/‖z‖`` along the last axis, of length d."""
    squared = jnp.sum(jnp.square(z), -1, keepdims=True)
    return z * jax.lax.rsqrt(squared / z.shape[-1] + 1e-12)


def noise_features(sigma: Array, num_frequencies: int = 16) -> Array:
    """Sines and cosines of log σ, with periods from 0.5 to 32: [...] -> [..., 2 num_frequencies], float32."""
    periods = jnp.exp(jnp.linspace(math.log(0.5), math.log(32.0), num_frequencies))
    log_sigma = jnp.log(jnp.asarray(sigma, jnp.float32))[..., None]
    angles = 2.0 * jnp.pi * log_sigma / jax.lax.broadcast_to_rank(periods, log_sigma.ndim)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class DownPath(nn.Module):
    """Feature maps of each resolution, the finest first; the last is the bottleneck."""

    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    dtype: DTypeLike
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x: Array, sigma: Array) -> list[Array]:
        level = NoiseEmbedding(4 * self.width, self.dtype, name="level")(sigma)
        # noise above 1 would drown what the layers can hold: such images come in at the scale of σ = 1
        scale = jnp.maximum(jnp.asarray(sigma, x.dtype), 1.0)[..., None, None, None]
        y = _conv(self.width * self.multipliers[0], self.dtype, "stem")((2.0 * x - 1.0) / scale)
        block = rematerialized(ResidualBlock, self.rematerialize)
        maps = []
        for i, multiplier in enumerate(self.multipliers):
            y = average_pool(y) if i > 0 else y
            for j in range(self.num_blocks):
                y = block(self.width * multiplier, self.dtype, name=f"stage{i}_block{j}")(y, level)
            maps.append(y)
        return maps


class UpPath(nn.Module):
    """From the bottleneck to u, joining the maps of the way down."""

    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    dtype: DTypeLike
    rematerialize: bool = False

    @nn.compact
    def __call__(self, y: Array, skips: list[Array], sigma: Array, channels: int) -> Array:
        level = NoiseEmbedding(4 * self.width, self.dtype, name="level")(sigma)
        block = rematerialized(ResidualBlock, self.rematerialize)
        for i, multiplier in reversed(list(enumerate(self.multipliers))):
            if i < len(skips):
                y = jnp.concatenate([nearest_upsample(y), skips[i]], -1)
            for j in range(self.num_blocks):
                y = block(self.width * multiplier, self.dtype, name=f"stage{i}_block{j}")(y, level)
        return cast(Array, LastConv(channels, self.dtype, name="out")(y))


class NoiseEmbedding(nn.Module):
    """A vector for a noise level: [...] -> [..., size]."""

    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, sigma: Array) -> Array:
        y = nn.Dense(self.size, dtype=self.dtype, name="fc_1")(noise_features(sigma))
        return nn.silu(nn.Dense(self.size, dtype=self.dtype, name="fc_2")(nn.silu(y)))


class ResidualBlock(nn.Module):
    """Normalise, SiLU, 3x3, twice; the noise level scales and shifts what the second convolution sees."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, level: Array | None) -> Array:
        y = _conv(self.channels, self.dtype, "conv_1")(nn.silu(_norm("norm_1", self.dtype)(x)))
        y = _norm("norm_2", self.dtype)(y)
        if level is not None:
            film = nn.Dense(2 * self.channels, dtype=self.dtype, kernel_init=small_normal, name="film")(level)
            scale, shift = jnp.split(film[..., None, None, :], 2, -1)
            y = y * (1.0 + scale) + shift
        y = _conv(self.channels, self.dtype, "conv_2")(nn.silu(y))
        if x.shape[-1] != self.channels:
            x = PointwiseConv(self.channels, 1, normal_fan_in, self.dtype, name="shortcut")(x)
        return x + y


class GroupNorm(nn.Module):
    """Normalises at most 32 groups of channels (a multiple of 4) over an image's pixels; statistics in float32."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        groups = math.gcd(32, x.shape[-1] // 4)  # of at least 4 channels
        layer = nn.GroupNorm(num_groups=groups, reduction_axes=(-3, -2, -1), dtype=self.dtype, name="group")
        return cast(Array, layer(x))


def _norm(name: str, dtype: DTypeLike) -> GroupNorm:
    return GroupNorm(dtype, name=name)


def _conv(channels: int, dtype: DTypeLike, name: str) -> nn.Conv:
    return Conv(channels, (3, 3), padding=1, kernel_init=normal_fan_in, dtype=dtype, name=name)


class LastConv(nn.Module):
    """Normalise, SiLU and a small 3x3 convolution, its output float32."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, y: Array) -> Array:
        y = nn.silu(_norm("norm", self.dtype)(y))
        last = Conv(self.channels, (3, 3), padding=1, kernel_init=small_normal, dtype=self.dtype, name="conv")
        return cast(Array, last(y)).astype(jnp.float32)


def _last_dense(outputs: int) -> nn.Dense:
    return nn.Dense(outputs, kernel_init=small_normal, name="out")
