"""RealNVP on vectors with the layout of the EC-VAE release (arXiv 2311.04071); its demo does not use it."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.methods.ec.flow_networks import bounded
from jebm.networks.normalization import BatchNorm


class LatentFlow(nn.Module):
    """``num_blocks`` x (two-sided affine coupling, fixed permutation) on vectors.

    Attributes:
        size: length n of the vectors.
        num_blocks: couplings; the release gives no number.
        width: hidden units of the subnets; 256 in the release.
        activation: ``"relu"``, or ``"swish"`` with a learnable β.
        clamp: bound of the log-scales.
    """

    size: int
    num_blocks: int = 4
    width: int = 256
    activation: Literal["relu", "swish"] = "relu"
    clamp: float = 2.0

    def setup(self) -> None:
        self.couplings = [
            LatentCoupling(self.size, self.width, self.activation, self.clamp, name=f"coupling{k}")
            for k in range(self.num_blocks)
        ]
        # the release draws permutation k from numpy's generator seeded with k
        self.permutations = [np.random.RandomState(k).permutation(self.size) for k in range(self.num_blocks)]  # noqa: NPY002

    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """[B, n] -> ``F(x)`` [B, n] and ``log |det ∂F/∂x|`` [B]."""
        total = jnp.zeros(x.shape[:-1])
        for coupling, permutation in zip(self.couplings, self.permutations, strict=True):
            x, log_determinant = coupling(x, train)
            x, total = x[..., permutation], total + log_determinant
        return x, total

    def inverse(self, z: Array, train: bool = False) -> tuple[Array, Array]:
        """[B, n] -> ``F⁻¹(z)`` [B, n] and ``log |det ∂F⁻¹/∂z|`` [B]."""
        total = jnp.zeros(z.shape[:-1])
        for coupling, permutation in zip(reversed(self.couplings), reversed(self.permutations), strict=True):
            z, log_determinant = coupling.inverse(z[..., np.argsort(permutation)], train)
            total += log_determinant
        return z, total


class LatentCoupling(nn.Module):
    """``y_1 = exp(s_2(x_2)) x_1 + t_2(x_2)``, then ``y_2 = exp(s_1(y_1)) x_2 + t_1(y_1)``: four subnets."""

    size: int
    width: int
    activation: str
    clamp: float

    def setup(self) -> None:
        self.half = round(self.size / 2)  # half to even, as the release
        subnet = lambda size, name: Subnet(self.width, size, self.activation, name=name)  # noqa: E731
        self.s1, self.t1 = subnet(self.size - self.half, "s1"), subnet(self.size - self.half, "t1")
        self.s2, self.t2 = subnet(self.half, "s2"), subnet(self.half, "t2")

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        x1, x2 = x[..., : self.half], x[..., self.half :]
        s2 = bounded(self.s2(x2, train), self.clamp)
        y1 = jnp.exp(s2) * x1 + self.t2(x2, train)
        s1 = bounded(self.s1(y1, train), self.clamp)
        y2 = jnp.exp(s1) * x2 + self.t1(y1, train)
        return jnp.concatenate([y1, y2], -1), s1.sum(-1) + s2.sum(-1)

    def inverse(self, y: Array, train: bool) -> tuple[Array, Array]:
        y1, y2 = y[..., : self.half], y[..., self.half :]
        s1 = bounded(self.s1(y1, train), self.clamp)
        x2 = (y2 - self.t1(y1, train)) * jnp.exp(-s1)
        s2 = bounded(self.s2(x2, train), self.clamp)
        x1 = (y1 - self.t2(x2, train)) * jnp.exp(-s2)
        return jnp.concatenate([x1, x2], -1), -s1.sum(-1) - s2.sum(-1)


class Subnet(nn.Module):
    """Linear, BN, activation, twice; linear."""

    width: int
    size: int
    activation: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in (1, 2):
            x = BatchNorm(name=f"bn_{i}")(nn.Dense(self.width, name=f"fc_{i}")(x), train=train)
            x = nn.relu(x) if self.activation == "relu" else Swish(name=f"swish_{i}")(x)
        return nn.Dense(self.size, name="fc_3")(x)


class Swish(nn.Module):
    """``x sigmoid(softplus(β) x) / 1.1``."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        beta: Any = self.param("beta", nn.initializers.constant(0.5), (1,), jnp.float32)
        return x * jax.nn.sigmoid(jax.lax.broadcast_to_rank(jax.nn.softplus(beta), x.ndim) * x) / 1.1
