"""Encoder and decoder of the energy-calibrated VAE at 256 pixels, after FastGAN (arXiv 2101.04775).

The authors' repository has these two networks without the VAE around them. The family normalises every
kernel spectrally but those of the linear heads (`jebm.networks.spectral_norm`):
``spectral_norm.init(key, encoder_params, exclude=("mu", "logvar"))``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jebm.methods.ec.vae_networks import InitialBlock, UpBlock, check_latents, conv_sn
from jebm.networks.initializers import uniform_fan_in
from jebm.networks.layers import PointwiseConv, average_pool, average_pool_to, leaky_relu
from jebm.networks.normalization import BatchNorm

__all__ = ["Generator256", "Encoder256", "SkipExcitation"]


class SkipExcitation(nn.Module):
    """Skip-layer excitation: a small map gates the channels of a large one.

    ``large * sigmoid(conv1x1(swish(conv4x4(pool(small)))))``, pooled to 4x4, one number per channel.

    Attributes:
        dtype: compute dtype; parameters are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, small: Array, large: Array) -> Array:
        """[..., h, w, c], [..., H, W, C] -> [..., H, W, C]; h and w are multiples of 4."""
        channels = large.shape[-1]
        gate = conv_sn(channels, 4, self.dtype, "conv_1", padding=0)(average_pool_to(small, 4))
        gate = PointwiseConv(channels, dtype=self.dtype, name="conv_2")(jax.nn.silu(gate))
        return large * jax.nn.sigmoid(gate)


class Generator256(nn.Module):
    """``G(z)`` at 256x256: the ladder of `jebm.methods.ec.vae_networks.Decoder` with skip-layer excitation.

    The release has a second head for an image at 128x128, which no VAE uses; this class leaves it out.

    Attributes:
        width: base width, even; the maps have 16, 8, 4, 2, 2, 1, 1/2 times as many channels (4x4 to 256x256).
        channels: channels of the image.
        latent_size: length of ``z``.
        dtype: compute dtype; parameters, statistics and images are float32.
    """

    width: int = 64
    channels: int = 3
    latent_size: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        """[..., latent_size] -> [..., 256, 256, channels] in (-1, 1), float32.

        Raises:
            ValueError: latents of another length, or an odd width.
        """
        check_latents(z, self.latent_size)
        if self.width % 2:
            raise ValueError(f"width must be even, got {self.width}")

        def up(x: Array, size: int, channels: int, num_convs: int) -> Array:
            return UpBlock(channels, num_convs, self.dtype, name=f"feat_{size}")(x, train)

        width = self.width
        x4 = InitialBlock(16 * width, self.dtype, name="init")(z, train)
        x8 = up(x4, 8, 8 * width, 2)
        x16 = up(x8, 16, 4 * width, 1)
        x64 = up(up(x16, 32, 2 * width, 2), 64, 2 * width, 1)
        x64 = SkipExcitation(self.dtype, name="se_64")(x4, x64)
        x128 = SkipExcitation(self.dtype, name="se_128")(x8, up(x64, 128, width, 2))
        x256 = SkipExcitation(self.dtype, name="se_256")(x16, up(x128, 256, width // 2, 1))
        return jnp.tanh(conv_sn(self.channels, 3, self.dtype, "to_big")(x256).astype(jnp.float32))


class Encoder256(nn.Module):
    """``q(z|x) = N(μ(x), diag exp(logvar(x)))`` at 256x256; other images are resized (nearest) first.

    Attributes:
        width: base width, a multiple of 4; the maps have ``width/4`` (256x256) to ``8 width`` (8x8) channels.
        latent_size: length of ``μ`` and ``logvar``, even.
        dtype: compute dtype; parameters, statistics and the heads are float32.
    """

    width: int = 64
    latent_size: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """[..., H, W, C] -> ``(mu, logvar)``, each [..., latent_size], float32; no tanh.

        Raises:
            ValueError: a width that 4 does not divide, or an odd latent size.
        """
        if self.width % 4 or self.latent_size % 2:
            raise ValueError(
                f"width must be a multiple of 4 and latent_size even, got {self.width} and {self.latent_size}"
            )

        def down(x: Array, name: int) -> Array:
            return DownBlock(2 * x.shape[-1], self.dtype, name=f"down_{name}")(x, train)

        x256 = Stem(self.width // 4, self.dtype, name="down_from_big")(_nearest_resize(x, 256))
        x128 = down(x256, 4)
        x64 = down(x128, 8)
        x32 = SkipExcitation(self.dtype, name="se_2_16")(x256, down(x64, 16))
        x16 = SkipExcitation(self.dtype, name="se_4_32")(x128, down(x32, 32))
        x8 = SkipExcitation(self.dtype, name="se_8_64")(x64, down(x16, 64))
        features = Tail(16 * self.width, self.latent_size // 2, self.dtype, name="rf_big")(x8, train)
        features = features.reshape(*features.shape[:-3], -1).astype(jnp.float32)
        mu = nn.Dense(self.latent_size, kernel_init=uniform_fan_in, name="mu")(features)
        return mu, nn.Dense(self.latent_size, kernel_init=uniform_fan_in, name="logvar")(features)


def _nearest_resize(x: Array, size: int) -> Array:
    rows, columns = (jnp.arange(size) * x.shape[axis] // size for axis in (-3, -2))
    return x if x.shape[-3:-1] == (size, size) else x[..., rows[:, None], columns, :]


class Stem(nn.Module):
    """3x3 convolution, LeakyReLU."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return leaky_relu(conv_sn(self.channels, 3, self.dtype, "conv_1")(x))


class DownBlock(nn.Module):
    """Halves the map: the mean of a path of two convolutions and a path of pooling and a 1x1 convolution."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        main = MainPath(self.channels, self.dtype, name="main")(x, train)
        return (main + DirectPath(self.channels, self.dtype, name="direct")(x, train)) / 2


class MainPath(nn.Module):
    """4x4 convolution of stride 2, BN, LeakyReLU, 3x3 convolution, BN, LeakyReLU."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = conv_sn(self.channels, 4, self.dtype, "conv_1", stride=2)(x)
        x = leaky_relu(BatchNorm(dtype=self.dtype, name="bn_1")(x, train=train))
        x = conv_sn(self.channels, 3, self.dtype, "conv_2")(x)
        return leaky_relu(BatchNorm(dtype=self.dtype, name="bn_2")(x, train=train))


class DirectPath(nn.Module):
    """2x2 pooling, 1x1 convolution, BN, LeakyReLU."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = PointwiseConv(self.channels, dtype=self.dtype, name="conv_1")(average_pool(x))
        return leaky_relu(BatchNorm(dtype=self.dtype, name="bn_1")(x, train=train))


class Tail(nn.Module):
    """1x1 convolution, BN, LeakyReLU, 4x4 convolution without padding: 8x8 -> 5x5."""

    hidden: int
    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = PointwiseConv(self.hidden, dtype=self.dtype, name="conv_1")(x)
        x = leaky_relu(BatchNorm(dtype=self.dtype, name="bn_1")(x, train=train))
        return conv_sn(self.channels, 4, self.dtype, "conv_2", padding=0)(x)
