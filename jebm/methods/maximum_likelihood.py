"""The loss that an energy learns from, for the families whose energy is ``E = f/T``."""

import jax.numpy as jnp
from jax import Array

__all__ = ["contrastive_loss"]


def contrastive_loss(on_data: Array, on_negatives: Array, temperature: float, regularization: float = 0.0) -> Array:
    """``(mean f⁺ - mean f⁻ + α (mean f⁺² + mean f⁻²))/T``, a scalar.

    Without α its gradient is that of minus the log-likelihood, f⁻ being of samples of ``exp(-f/T)``. α > 0 keeps f near
    0, in the units of f (Du & Mordatch, arXiv 1903.08689): a stabiliser, which biases f but not the chains' kernel.

    Args:
        on_data: f of data [n].
        on_negatives: f of negative samples [m].
        temperature: T.
        regularization: α.
    """
    loss = jnp.mean(on_data) - jnp.mean(on_negatives)
    if regularization:
        loss += regularization * (jnp.mean(jnp.square(on_data)) + jnp.mean(jnp.square(on_negatives)))
    return loss / temperature
