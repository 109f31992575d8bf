"""Adam as Keras has it, clipping of single tensors, and learning rates in steps, as optax transformations."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.errors import ConfigError

__all__ = ["adam", "check_steps", "clip_each_tensor", "learning_rate_steps", "scale_by_adam"]


def adam(
    learning_rate: Sequence[tuple[float, int]], b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Keras's Adam with learning rates in steps, see `learning_rate_steps`."""
    return optax.chain(scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate_steps(learning_rate)))


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """``sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + eps)``: optax adds eps to the *bias-corrected* ``sqrt(v)`` instead.

    The two differ for gradients as small as eps.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        count = optax.safe_increment(state.count)
        t = count.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def clip_each_tensor(max_norm: float) -> optax.GradientTransformation:
    """Rescales each tensor of the gradient whose Euclidean norm exceeds ``max_norm`` to that norm."""

    def clip(gradient: Array) -> Array:
        return gradient * jnp.minimum(1.0, max_norm / jnp.linalg.norm(gradient))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def learning_rate_steps(steps: Sequence[tuple[float, int]]) -> optax.Schedule:
    """The piecewise constant schedule of rows (learning rate, first update that has it), updates counted from 0."""
    rates, starts = (jnp.asarray(column) for column in zip(*steps, strict=True))
    return lambda count: rates[jnp.searchsorted(starts, count, side="right") - 1]


def check_steps(name: str, steps: Sequence[tuple[float, int]]) -> None:
    """Raises ConfigError unless rates are positive and first updates increase from 0."""
    starts = [start for _, start in steps]
    if not steps or starts != sorted(set(starts)) or starts[0] != 0 or min(rate for rate, _ in steps) <= 0:
        raise ConfigError(
            f"{name}={steps!r}: rows of (learning rate above 0, first update), the first updates increasing from 0"
        )
