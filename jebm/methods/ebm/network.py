"""The energy network: convolutions that halve the image until it is small; of points, dense layers."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jebm.networks.convolution import Conv
from jebm.networks.initializers import normal_fan_in

__all__ = ["ConvolutionalEnergy", "DenseEnergy"]


class ConvolutionalEnergy(nn.Module):
    """``f(x)``: a 3x3 convolution, 4x4 ones of stride 2 that double the channels, a linear map; swish between them.

    The layout of Nijkamp et al. (arXiv 1904.09770) with a smooth nonlinearity, so that scores have derivatives.

    Attributes:
        width: channels after the first convolution.
        num_halvings: of the image's height and width.
        dtype: compute dtype of the convolutions; parameters and f are float32.
    """

    width: int = 64
    num_halvings: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[H, W, C] -> [], float32."""
        x = Conv(self.width, (3, 3), padding=1, kernel_init=normal_fan_in, dtype=self.dtype, name="stem")(x)
        for i in range(self.num_halvings):
            convolution = Conv(
                self.width * 2 ** (i + 1), (4, 4), strides=2, padding=1, kernel_init=normal_fan_in, dtype=self.dtype,
                name=f"halving{i}",
            )  # fmt: skip
            x = convolution(nn.swish(x))
        features = nn.swish(x).astype(jnp.float32).reshape(-1)
        return nn.Dense(1, kernel_init=nn.initializers.normal(0.01), name="head")(features)[0]


class DenseEnergy(nn.Module):
    """``f(x)`` of an image of one pixel, a point: three dense layers, swish after each, and a linear map.

    Attributes:
        width: of the layers.
    """

    width: int = 64

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[1, 1, C] -> [], float32."""
        x = x.reshape(-1)
        for i in range(3):
            x = nn.swish(nn.Dense(self.width, name=f"layer{i}")(x))
        return nn.Dense(1, kernel_init=nn.initializers.normal(0.01), name="head")(x)[0]
