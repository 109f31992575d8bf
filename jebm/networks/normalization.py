"""Batch normalisation with PyTorch's bookkeeping."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import broadcast_to_rank
from jax.typing import DTypeLike

__all__ = ["BatchNorm", "batch_statistics", "standing_statistics"]


class BatchNorm(nn.Module):
    """``scale * (x - mean) / sqrt(var + epsilon) + bias``, per channel (the last axis), over all other axes.

    In train mode ``mean`` and ``var`` are those of the batch, ``var`` biased, and the running statistics, the
    collection ``batch_stats``, move by ``new = decay * old + (1 - decay) * batch``, with the *unbiased* batch
    variance, as in PyTorch; `flax.linen.BatchNorm` takes the biased one. Else the running statistics
    normalise. Statistics are float32 for every compute dtype.

    Under `jit` over a sharded batch the statistics are those of the global batch.

    Attributes:
        decay: weight of the old running statistics.
        epsilon: added to the variance.
        dtype: dtype of the output.
    """

    decay: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[..., C] -> [..., C].

        Raises:
            ValueError: train mode with a single value per channel, which has no variance.
        """
        channels = x.shape[-1:]
        scale: Any = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias: Any = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.square(x - broadcast_to_rank(mean, x.ndim)).mean(axes)
            if not self.is_initializing():
                self._track(running_mean, running_var, mean, var, x.size // x.shape[-1])
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        mean, factor, bias = (broadcast_to_rank(a, x.ndim) for a in (mean, factor, bias))
        return ((x - mean) * factor + bias).astype(self.dtype)

    def _track(self, running_mean: Any, running_var: Any, mean: Array, var: Array, count: int) -> None:
        if count < 2:
            raise ValueError(
                "batch normalisation in train mode needs at least 2 values per channel, got 1: "
                "use a larger batch, or train=False"
            )
        unbiased = var * (count / (count - 1))
        running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
        running_var.value = self.decay * running_var.value + (1 - self.decay) * unbiased


def batch_statistics(before: Any, after: Any) -> Any:
    """The statistics of one batch, from the running ones ``before`` and ``after`` a training pass over it."""
    return jax.tree.map(lambda old, new: (new - BatchNorm.decay * old) / (1.0 - BatchNorm.decay), before, after)


def standing_statistics(module: nn.Module, params: Any, running: Any, inputs: Array) -> Any:
    """``batch_stats`` re-estimated on one batch, as "standing statistics" (Brock et al., arXiv 1809.11096).

    Args:
        module: called as ``module(inputs, train=True)``; its normalisation layers are `BatchNorm` of the default decay.
        params: its parameters.
        running: its running statistics, for their shapes alone; they may be abstract.
        inputs: a batch for the module.
    """
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), running)
    variables = {"params": params, "batch_stats": empty}
    _, updated = cast(Any, module.apply(variables, inputs, train=True, mutable=["batch_stats"]))
    return batch_statistics(empty, updated["batch_stats"])
