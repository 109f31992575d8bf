"""Residual energy networks without normalisation layers, single- and multi-scale (EC-VAE, arXiv 2311.04071).

Both return the raw head ``f(x)``, float32: the energy of the paper is ``E(x) = f(x)/τ``, and the
sampler applies the temperature. The paper's spectral norm is a transform of parameters: `jebm.networks.spectral_norm`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jebm.networks.convolution import Conv
from jebm.networks.initializers import normal_fan_in
from jebm.networks.layers import PointwiseConv, average_pool, leaky_relu, rematerialized
from jebm.networks.resampled import PooledConv

Layers = tuple[tuple[int, int], ...]
Activation = Callable[[Array], Array]

LAYERS_32: Layers = ((128, 2), (256, 2), (256, 2), (256, 2))
"""(channels, residual blocks) of each stage, for images of 32x32."""

LAYERS_64: Layers = ((64, 2), (128, 2), (128, 2), (256, 2), (256, 2))
"""The same for images of 64x64."""

__all__ = ["LAYERS_32", "LAYERS_64", "MSResNet", "ResNet"]


class ResNet(nn.Module):
    """``f(x)``: a convolution, stages of residual blocks with 2x2 pooling between them, mean, two linears.

    Attributes:
        layers: (channels, number of blocks) per stage; the image is halved ``len(layers) - 1`` times.
        head_width: units of the hidden layer of the head.
        activation: the nonlinearity everywhere.
        dtype: compute dtype of the trunk; parameters, the mean over pixels and the head are float32.
        rematerialize: recompute each residual block in gradients instead of storing its activations.
    """

    layers: Layers = LAYERS_32
    head_width: int = 2048
    activation: Activation = leaky_relu
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., H, W, C] -> [...], float32.

        Raises:
            ValueError: images too small to be halved so often.
        """
        features = _trunk(self.layers, self.activation, self.dtype, self.rematerialize, x)
        return Head(self.head_width, self.activation, name="head")(features)


class MSResNet(nn.Module):
    """``f(x)`` from three separate trunks on ``x`` at full, half and quarter size; one head.

    Attributes:
        layers: as in `ResNet`, for each trunk; the image is halved ``len(layers) + 1`` times in all.
        head_width: units of the hidden layer of the head.
        dtype: compute dtype of the trunks; parameters, the mean over pixels and the head are float32.
        rematerialize: recompute each residual block in gradients instead of storing its activations.
    """

    layers: Layers = LAYERS_32
    head_width: int = 2048
    dtype: DTypeLike = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., H, W, C] -> [...], float32.

        Raises:
            ValueError: images too small to be halved so often.
        """
        features = []
        for scale in (1, 2, 3):
            trunk = Trunk(self.layers, leaky_relu, self.dtype, self.rematerialize, name=f"scale{scale}")
            features.append(trunk(x))
            x = average_pool(x) if scale < 3 else x
        return Head(self.head_width, leaky_relu, name="head")(jnp.concatenate(features, axis=-1))


class Trunk(nn.Module):
    """Stem, stages, nonlinearity and the mean over pixels: [..., H, W, C] -> [..., channels], float32."""

    layers: Layers
    activation: Activation
    dtype: DTypeLike
    rematerialize: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _trunk(self.layers, self.activation, self.dtype, self.rematerialize, x)


def _trunk(layers: Layers, activation: Activation, dtype: DTypeLike, rematerialize: bool, x: Array) -> Array:
    x = _conv(layers[0][0], dtype, "stem")(x)
    for i, (channels, num_blocks) in enumerate(layers):
        halve = i < len(layers) - 1
        x = Stage(channels, num_blocks, halve, activation, dtype, rematerialize, name=f"stage{i}")(x)
    return activation(x).astype(jnp.float32).mean((-3, -2))


class Stage(nn.Module):
    """Residual blocks of one width, and pooling inside of the last one where the image is halved."""

    channels: int
    num_blocks: int
    halve: bool
    activation: Activation
    dtype: DTypeLike
    rematerialize: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block = rematerialized(ResidualBlock, self.rematerialize)
        for j in range(self.num_blocks):
            halve = self.halve and j == self.num_blocks - 1
            x = block(self.channels, halve, self.activation, self.dtype, name=f"block{j}")(x)
        return x


class ResidualBlock(nn.Module):
    """Pre-activation: ``x + conv(act(conv(act(x))))``, ``x`` through a 1x1 convolution if channels change.

    With ``halve`` its mean over 2x2 blocks, summand by summand.
    """

    channels: int
    halve: bool
    activation: Activation
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = _conv(self.channels, self.dtype, "conv_1")(self.activation(x))
        y = _conv(self.channels, self.dtype, "conv_2", PooledConv if self.halve else Conv)(self.activation(y))
        x = average_pool(x) if self.halve else x
        if x.shape[-1] != self.channels:
            x = PointwiseConv(self.channels, 1, normal_fan_in, self.dtype, name="shortcut")(x)
        return x + y


class Head(nn.Module):
    """Two linear layers, float32: [..., features] -> [...]."""

    width: int
    activation: Activation

    @nn.compact
    def __call__(self, features: Array) -> Array:
        normal = nn.initializers.normal(0.01)
        hidden = self.activation(nn.Dense(self.width, kernel_init=normal, name="fc_1")(features))
        return nn.Dense(1, kernel_init=normal, name="fc_2")(hidden)[..., 0]


def _conv(channels: int, dtype: DTypeLike, name: str, layer: Callable[..., nn.Conv] = Conv) -> nn.Conv:
    return layer(channels, kernel_size=(3, 3), padding=1, kernel_init=normal_fan_in, dtype=dtype, name=name)
