"""A multi-scale coupling flow of images; ours [inferred], since the paper (arXiv 2311.04071) only names such flows.

A flow is an invertible map to a standard normal law with the logarithm of its Jacobian's determinant, so that
``log p(x) = log N(F(x); 0, I) + log |det ∂F/∂x|``.

The scale of a coupling is bounded, ``s = 2/π · clamp · atan(raw)`` in (-clamp, clamp), and with it the Lipschitz
constants of the map and of its inverse in the coupled variables, ``exp(clamp)`` for the scale's part;
`local_lipschitz` measures them with the shifts.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import broadcast_to_rank

from jebm.networks.convolution import Conv

__all__ = ["ImageFlow", "bounded", "local_lipschitz", "log_standard_normal"]

ATAN_SCALE = 0.636  # 2/π as the release rounds it


def log_standard_normal(z: Array) -> Array:
    """``log N(z; 0, I)`` of each vector [..., D], in nats."""
    return -0.5 * (jnp.sum(jnp.square(z), -1) + z.shape[-1] * jnp.log(2.0 * jnp.pi))


def local_lipschitz(function: Callable[[Array], Array], x: Array, num_iterations: int = 50) -> Array:
    """The largest singular value of ``∂function/∂x`` at one point, by power iterations on ``JᵀJ``.

    The error falls with the squared ratio of the two largest singular values to the power of the iterations; the
    result never exceeds the true value.
    """
    _, pullback = jax.vjp(function, x)
    zero = jnp.zeros(jax.eval_shape(function, x).shape)
    forward = jax.vjp(lambda u: pullback(u)[0], zero)[1]  # the transpose of u -> Jᵀu

    def body(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        v, _norm = carry
        u = forward(v)[0]
        w = pullback(u)[0]
        return w / (jnp.linalg.norm(w) + 1e-30), jnp.linalg.norm(u)

    v = jax.random.normal(jax.random.key(0), x.shape)
    return jax.lax.fori_loop(0, num_iterations, body, (v / jnp.linalg.norm(v), jnp.zeros(())))[1]


def bounded(raw: Array, clamp: float) -> Array:
    """The log-scale of a coupling: ``2/π clamp atan(raw)``, in (-clamp, clamp)."""
    return clamp * ATAN_SCALE * jnp.arctan(raw)


class ImageFlow(nn.Module):
    """A multi-scale coupling flow: each scale squeezes 2x2 and makes ``num_steps`` steps.

    Half the channels of a scale are latents, the others go to the next scale; of the last scale all are latents.
    A step: ``a ⊙ x + b`` per channel, a fixed random rotation of the channels, and an affine coupling of their halves
    by a three-layer convolution that starts at 0, so that the whole flow starts as a rotation.

    Attributes:
        shape: (H, W, C) of the images; H and W are multiples of ``2**num_scales``.
        num_scales: scales.
        num_steps: steps per scale.
        width: channels inside the couplings.
        clamp: bound of the couplings' log-scales.
    """

    shape: tuple[int, int, int]
    num_scales: int = 3
    num_steps: int = 8
    width: int = 64
    clamp: float = 1.0

    def setup(self) -> None:
        height, width, channels = self.shape
        if height % 2**self.num_scales or width % 2**self.num_scales:
            raise ValueError(f"images of {height}x{width} cannot be squeezed {self.num_scales} times")
        scales = []
        for i in range(self.num_scales):
            channels *= 4
            scales.append([
                Step(channels, self.width, self.clamp, 100 * i + j, name=f"scale{i}_step{j}")
                for j in range(self.num_steps)
            ])  # fmt: skip
            channels //= 2
        self.scales = scales

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """[B, H, W, C] -> latents [B, H W C] and ``log |det ∂F/∂x|`` [B]."""
        total, latents = jnp.zeros(x.shape[0]), []
        for i, steps in enumerate(self.scales):
            x = _squeeze(x)
            for step in steps:
                x, log_determinant = step(x)
                total += log_determinant
            if i < self.num_scales - 1:
                out, x = jnp.split(x, 2, -1)
                latents.append(out.reshape(x.shape[0], -1))
        return jnp.concatenate([*latents, x.reshape(x.shape[0], -1)], -1), total

    def inverse(self, z: Array) -> tuple[Array, Array]:
        """Latents [B, H W C] -> images [B, H, W, C] and ``log |det ∂F⁻¹/∂z|`` [B]."""
        height, width, channels = self.shape
        shapes, parts, start = [], [], 0
        for i in range(self.num_scales):
            height, width, channels = height // 2, width // 2, channels * 4 // (2 if i < self.num_scales - 1 else 1)
            shapes.append((height, width, channels))
        for shape in shapes:
            size = int(np.prod(shape))
            parts.append(z[:, start : start + size].reshape(-1, *shape))
            start += size
        x, total = parts[-1], jnp.zeros(z.shape[0])
        for i in reversed(range(self.num_scales)):
            if i < self.num_scales - 1:
                x = jnp.concatenate([parts[i], x], -1)
            for step in reversed(self.scales[i]):
                x, log_determinant = step.inverse(x)
                total += log_determinant
            x = _unsqueeze(x)
        return x, total


class Step(nn.Module):
    """Scale and shift per channel, rotation, coupling."""

    channels: int
    width: int
    clamp: float
    seed: int

    def setup(self) -> None:
        self.log_scale: Any = self.param("log_scale", nn.initializers.zeros, (self.channels,), jnp.float32)
        self.shift: Any = self.param("shift", nn.initializers.zeros, (self.channels,), jnp.float32)
        normal = np.random.default_rng(self.seed).standard_normal((self.channels, self.channels))
        self.rotation = np.linalg.qr(normal)[0].astype(np.float32)
        zeros = nn.initializers.zeros
        self.conv_1, self.conv_2 = Conv(self.width, (3, 3), name="conv_1"), Conv(self.width, (1, 1), name="conv_2")
        self.conv_3 = Conv(self.channels, (3, 3), kernel_init=zeros, name="conv_3")

    def __call__(self, x: Array) -> tuple[Array, Array]:
        scale, shift = (broadcast_to_rank(a, x.ndim) for a in (jnp.exp(self.log_scale), self.shift))
        x = scale * x + shift
        x = jnp.matmul(x, self.rotation, precision="highest")
        kept, moved = jnp.split(x, 2, -1)
        s, t = self._coupling(kept)
        moved = jnp.exp(s) * moved + t
        return jnp.concatenate([kept, moved], -1), self._log_determinant(s)

    def inverse(self, y: Array) -> tuple[Array, Array]:
        kept, moved = jnp.split(y, 2, -1)
        s, t = self._coupling(kept)
        x = jnp.concatenate([kept, (moved - t) * jnp.exp(-s)], -1)
        x = jnp.matmul(x, self.rotation.T, precision="highest")
        scale, shift = (broadcast_to_rank(a, x.ndim) for a in (jnp.exp(-self.log_scale), self.shift))
        return (x - shift) * scale, -self._log_determinant(s)

    def _coupling(self, kept: Array) -> tuple[Array, Array]:
        hidden = nn.relu(self.conv_2(nn.relu(self.conv_1(kept))))
        raw, t = jnp.split(self.conv_3(hidden), 2, -1)
        return bounded(raw, self.clamp), t

    def _log_determinant(self, s: Array) -> Array:
        return s.sum((-3, -2, -1)) + s.shape[-3] * s.shape[-2] * self.log_scale.sum()


def _squeeze(x: Array) -> Array:
    """2x2 pixels become channels: [B, H, W, C] -> [B, H/2, W/2, 4C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def _unsqueeze(x: Array) -> Array:
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)
