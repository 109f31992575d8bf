"""Initial laws of weights, as the papers' networks have them; kernels are laid out [..., in, out]."""

from jax.nn.initializers import variance_scaling

__all__ = ["normal_fan_in", "uniform_fan_in", "uniform_fan_in_transposed"]

normal_fan_in = variance_scaling(1.0, "fan_in", "normal")
"""``N(0, 1/fan_in)``: Kaiming's normal law with gain 1."""

uniform_fan_in = variance_scaling(1 / 3, "fan_in", "uniform")
"""``U(-b, b)`` with ``b = 1/sqrt(fan_in)``: what PyTorch gives a convolution or a linear layer."""

uniform_fan_in_transposed = variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
"""The same for a transposed convolution, whose fan-in PyTorch counts over its *output* channels.

Spectral norm hides the scale from the forward pass; it still sets how far an optimiser step turns a kernel.
"""
