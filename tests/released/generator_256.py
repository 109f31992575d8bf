"""The 256 px generator with the second head of the release (arXiv 2311.04071), an image at 128x128."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jebm.methods.ec.vae_networks_256 import Generator256
from jebm.networks.layers import PointwiseConv


class TwoHeadedGenerator256(Generator256):
    """`Generator256`, and ``tanh(to_128(x))`` of its map x at 128x128."""

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> tuple[Array, Array]:
        """[..., latent_size] -> images at 256x256 and at 128x128."""
        maps = {}

        def keep(call: Any, arguments: Any, options: Any, context: Any) -> Any:
            maps[context.module.name] = call(*arguments, **options)
            return maps[context.module.name]

        with nn.intercept_methods(keep):
            image = super().__call__(z, train)
        return image, jnp.tanh(PointwiseConv(self.channels, name="to_128")(maps["se_128"]))
