"""A model family as a bundle of pure functions over one pytree state, as an optax transformation is."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jax import Array

from jebm.energy import Energy, Generator

State = Any
Metrics = dict[str, Array]
Weights = Literal["raw", "ema"]
Better = Literal["lower", "higher"] | None

__all__ = ["Better", "Chain", "Method", "Metrics", "Score", "State", "Summary", "Weights"]


class Score(NamedTuple):
    """A score for a reader.

    Attributes:
        meaning: a sentence.
        better: which is the better direction; None where neither is.
    """

    meaning: str
    better: Better = None


class Summary(NamedTuple):
    """A family in words: ``SUMMARY`` of its configuration, which progress bars and reports read.

    Attributes:
        name: of the family.
        paper: where it is from; empty where it is nobody's in particular.
        progress: three metrics of `Method.update` for the progress bar.
        curves: four to six metrics that show whether a training goes well, with a sentence each.
        scores: what `Method.scores` returns.
        headlines: names of records; the first of them that was measured leads a report.
    """

    name: str
    paper: str
    progress: tuple[str, ...]
    curves: Mapping[str, str]
    scores: Mapping[str, Score] = {}
    headlines: tuple[str, ...] = ("fid", "frechet_distance")


class Chain(NamedTuple):
    """The Langevin chain on images that a family trains with, in the family's own units.

    On ``T * energy`` at temperature T its step is ``x - η ∇(T E(x)) + sqrt(2 η T) ξ``: on ``Method.energy`` itself, at
    temperature 1, the step size is ``η T``, with ``T = Method.temperature``.

    Attributes:
        num_steps: K.
        step_size: η.
        max_drift: bound on a step's drift, or None.
    """

    num_steps: int
    step_size: float
    max_drift: float | None = None


class Method(NamedTuple):
    """A model family: all that the trainer, checkpoints, evaluation, restoration and the command line know of it.

    Images are float32 NHWC in [-1, 1]; a batch is one such array. All functions are pure and may be jitted.

    Attributes:
        image_shape: (H, W, C).
        init: ``(key, batch) -> state``: a fresh state (parameters, optimisers, averages, dual variables, ...), one
            pytree of arrays. ``batch`` gives shapes; it may be abstract under `jax.eval_shape`.
        update: ``(key, state, batch) -> (state, metrics)``: one training iteration; metrics are float32 scalars,
            among them ``energy_data`` and ``energy_negative``: means of ``T * energy``. Unless ``whole_batch`` says
            why not it has an argument ``microbatches``, which divides the batch and bounds the memory: the result is
            the same up to rounding (`jebm.methods.accumulation`).
        generate: ``(key, state, n) -> images`` [n, H, W, C]; ``n`` is static, and image i does not depend on it.
        energy: ``state -> energy`` of one image [H, W, C], float32: the density is ``exp(-energy)``, up to its
            normaliser. A `jax.tree_util.Partial`; a batch is `jax.vmap`.
        scores: ``(key, state, batch) -> dict`` of the family's own held-out scores, float32 scalars that average
            over batches (reconstruction error, calibration gap, ...).
        networks: ``state -> {name: network}``, for counting and for the monitors: a `jebm.methods.shared.Trained` for
            a network that learns, a plain tree of parameters for one that does not.
        reconstruct: ``(key, state, images) -> images``; None without an encoder.
        generator: ``state -> generator`` of one latent of law N(0, I), a `jax.tree_util.Partial`; None without one.
        latent_shape: of the latent that ``generator`` takes; None without one.
        temperature: T, in the units of the family's paper; ``T * energy`` is its f, H or F.
        chain: what long runs and the report walk; None where the chains of training are annealed or on latents.
        chain_starts: ``(key, state, n) -> images`` where chains of training start, and long runs; None where that is
            what ``generate`` returns.
        bank: ``state -> images`` [N, H, W, C] of persistent chains on images, or None of a state without; None where
            there are none.
        evaluations_per_image: network evaluations that one generated image costs (a gradient counts as one).
        weights: which weights generate and score unless others are asked for (`jebm.methods.shared.with_weights`).
        whole_batch: why ``update`` takes no microbatches, a clause for an error message; None where it does.
    """

    image_shape: tuple[int, int, int]
    init: Callable[[Array, Array], State]
    update: Callable[..., tuple[State, Metrics]]
    generate: Callable[[Array, State, int], Array]
    energy: Callable[[State], Energy]
    scores: Callable[[Array, State, Array], Metrics]
    networks: Callable[[State], dict[str, Any]]
    reconstruct: Callable[[Array, State, Array], Array] | None = None
    generator: Callable[[State], Generator] | None = None
    latent_shape: tuple[int, ...] | None = None
    temperature: float = 1.0
    chain: Chain | None = None
    chain_starts: Callable[[Array, State, int], Array] | None = None
    bank: Callable[[State], Array | None] | None = None
    evaluations_per_image: int = 1
    weights: Weights = "ema"
    whole_batch: str | None = "whose update is written for a whole batch"
