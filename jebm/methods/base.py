"""What a model family is: a bundle of pure functions over one pytree state, as an optax transformation is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

State = Any
Metrics = dict[str, Array]

__all__ = ["Method", "TrainingChain", "requiring_images"]


class TrainingChain(NamedTuple):
    """The Langevin chain on images that a family trains with, in this library's units.

    Attributes:
        num_steps: K.
        step_size: η, on ``Method.energy``.
        temperature: T; the model's density is ``exp(-energy/T)``.
        max_displacement: bound on a step's drift, or None.
    """

    num_steps: int
    step_size: float
    temperature: float
    max_displacement: float | None = None


class Method(NamedTuple):
    """A model family. The trainer, checkpoints, evaluation and command line know nothing else of it.

    Images are float32 NHWC in [-1, 1]; a batch is one such array. All functions are pure and may be jitted.

    Attributes:
        init: ``(key, batch) -> state``: a fresh state (parameters, optimisers, averages, dual variables, ...), one
            pytree of arrays. ``batch`` gives shapes; it may be abstract under `jax.eval_shape`.
        update: ``(key, state, batch) -> (state, metrics)``: one training iteration; metrics are float32 scalars.
        generate: ``(key, state, n) -> images`` [n, H, W, C]; ``n`` is static.
        energy: ``(state, images) -> energies`` [n], float32; lower is more like the data.
        reconstruct: ``(key, state, images) -> images``, or None where the family has no encoder.
        scores: ``(key, state, batch) -> dict`` of the family's own held-out scores, float32 scalars that average
            over batches (reconstruction error, calibration gap, ...).
        evaluations_per_image: network evaluations that one generated image costs (a gradient counts as one).
        parameters: ``state -> {network name: parameter tree}``, for counting and looking.
        training_chain: what long runs and the report walk; None where training's chains are annealed or on latents.
    """

    init: Callable[[Array, Array], State]
    update: Callable[[Array, State, Array], tuple[State, Metrics]]
    generate: Callable[[Array, State, int], Array]
    energy: Callable[[State, Array], Array]
    reconstruct: Callable[[Array, State, Array], Array] | None
    scores: Callable[[Array, State, Array], Metrics]
    parameters: Callable[[State], dict[str, Any]]
    evaluations_per_image: int = 1
    training_chain: TrainingChain | None = None


def requiring_images(method: Method, image_size: int, channels: int) -> Method:
    """The method with an energy and a reconstruction that refuse what are no images of its own.

    Networks of convolutions would score images of any size, and integers of [0, 255], without a word.
    """

    def require(images: Array) -> None:
        shape, dtype = jnp.shape(images), jnp.result_type(images)
        if len(shape) != 4 or shape[1:] != (image_size, image_size, channels):
            expected = f"[n, {image_size}, {image_size}, {channels}]"
            raise ValueError(f"images of this model have shape {expected}, got {list(shape)}: resize or reshape them")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"images must be floating in [-1, 1], got {dtype}: use jebm.data.to_float for uint8")

    def energy(state: State, images: Array) -> Array:
        require(images)
        return method.energy(state, images)

    def reconstruct(key: Array, state: State, images: Array) -> Array:
        require(images)
        return method.reconstruct(key, state, images)  # type: ignore[misc]

    return method._replace(energy=energy, reconstruct=None if method.reconstruct is None else reconstruct)
