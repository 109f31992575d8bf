"""The branch "normalised" of the released chain (arXiv 2311.04071): steepest descent in steps of one length."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array


def normalized_descent(head: Callable[[Array], Array], start: Array, num_steps: int, step_size: float) -> Array:
    """``x ← x - s ∇f/‖∇f‖``, ``num_steps`` times; neither noise nor condition.

    Args:
        head: f, or f/τ, one example in, a scalar out.
        start: one example.
        num_steps: K.
        step_size: s, the length of a step.
    """

    def body(x: Array, _: None) -> tuple[Array, None]:
        gradient = jax.grad(head)(x)
        return x - step_size * gradient / (optax.tree.norm(gradient) + 1e-10), None

    return jax.lax.scan(body, jnp.asarray(start), None, num_steps)[0]
