"""Potentials: residual blocks of convolutions, halved until the map is small, or of dense layers; a scalar head."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jebm.networks.convolution import Conv
from jebm.networks.initializers import normal_fan_in

__all__ = ["DensePotential", "Potential"]

small_normal = nn.initializers.normal(0.01)


class Potential(nn.Module):
    """``V(x)``, a smooth scalar of order D for images of D numbers, as is the squared distance from noise to data.

    The paper's network is a U-Net with a transformer and a scalar head, of 50 million parameters; this one, without
    normalisation and attention, is ours, and small enough for a CPU.

    Attributes:
        width: channels at full resolution; they double where the map is halved.
        num_halvings: of the image's height and width.
        num_blocks: residual blocks of each resolution.
        head_width: of the dense layer before the scalar.
        dtype: compute dtype of the convolutions; parameters, the head and V are float32.
    """

    width: int = 32
    num_halvings: int = 2
    num_blocks: int = 1
    head_width: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[H, W, C] -> [], float32."""
        y = Conv(self.width, (3, 3), padding=1, kernel_init=normal_fan_in, dtype=self.dtype, name="stem")(x)
        for i in range(self.num_halvings + 1):
            channels = self.width * 2**i
            if i > 0:
                halve = Conv(
                    channels, (4, 4), strides=2, padding=1, kernel_init=normal_fan_in, dtype=self.dtype,
                    name=f"halving{i}",
                )  # fmt: skip
                y = halve(nn.silu(y))
            for j in range(self.num_blocks):
                y = y + _Residual(channels, self.dtype, name=f"stage{i}_block{j}")(y)
        features = nn.silu(y).astype(jnp.float32).reshape(-1)
        hidden = nn.silu(nn.Dense(self.head_width, name="hidden")(features))
        return x.size * nn.Dense(1, kernel_init=small_normal, name="head")(hidden)[0]


class DensePotential(nn.Module):
    """``V(x)`` by residual blocks of dense layers over all numbers of x: for points, and for the smallest images.

    Attributes:
        width: of the layers.
        num_blocks: residual blocks of two layers.
    """

    width: int = 256
    num_blocks: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[H, W, C] -> [], float32."""
        y = nn.Dense(self.width, name="stem")(x.reshape(-1))
        for j in range(self.num_blocks):
            inside = nn.silu(nn.Dense(self.width, name=f"block{j}_1")(nn.silu(y)))
            y = y + nn.Dense(self.width, kernel_init=small_normal, name=f"block{j}_2")(inside)
        return x.size * nn.Dense(1, kernel_init=small_normal, name="head")(nn.silu(y))[0]


class _Residual(nn.Module):
    """SiLU and 3x3, twice; the second convolution starts small, so that the block starts near the identity."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, y: Array) -> Array:
        for name, law in (("conv_1", normal_fan_in), ("conv_2", small_normal)):
            y = Conv(self.channels, (3, 3), padding=1, kernel_init=law, dtype=self.dtype, name=name)(nn.silu(y))
        return y
