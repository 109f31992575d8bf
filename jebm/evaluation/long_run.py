"""What chains do long after training's: energy, gradient norm and drift at 1, 10, 100 and 1000 times its steps.

A model of the data keeps images images; a model that was only ever walked for K steps often does not (Nijkamp et al.,
arXiv 1903.12370).
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import mcmc
from jebm.data import Source, permutation, to_uint8
from jebm.energy import bind
from jebm.evaluation.records import Record, cost
from jebm.methods.base import Chain, Method, State
from jebm.metrics.features import Features

__all__ = ["MULTIPLES", "LongRun", "energy_of", "evaluate_long_run", "long_chains"]

MULTIPLES = (1, 10, 100, 1000)
NUM_CHAINS = 32
MOST_PAIRS = 500  # of test images, for the unit of the drift


class LongRun(NamedTuple):
    """Chains at K times each multiple.

    Attributes:
        energies: mean energy after each K steps, float32 [last multiple].
        gradient_norms: mean norm of the energy's gradient in the last step of each K, likewise.
        positions: images [multiples, chains, H, W, C] at the multiples.
    """

    energies: np.ndarray
    gradient_norms: np.ndarray
    positions: np.ndarray


def long_chains(
    method: Method,
    state: State,
    key: Array,
    chain: Chain,
    positions: Array,
    multiples: tuple[int, ...] = MULTIPLES,
) -> LongRun:
    """Langevin chains on ``method.energy`` from images [n, H, W, C], in pieces of ``chain.num_steps``.

    Piece i has the key ``fold_in(key, i)``: the program compiles once, and a longer run begins with the shorter one.
    """
    kernel = mcmc.langevin(
        bind(energy_of(method), state), chain.step_size, chain.temperature, max_drift=chain.max_drift
    )
    energies, norms, kept = [], [], []
    trace = ("energy", "gradient_norm")
    # compiled here, so that chains that leave the finite numbers are named by the records, not at each piece
    walk = jax.jit(lambda key, kernel, x: mcmc.sample_chains(key, kernel, x, chain.num_steps, trace=trace))
    for i in range(multiples[-1]):
        last, info = walk(jax.random.fold_in(key, i), kernel, positions)
        positions = last.position
        energies.append(info["energy"][:, -1].mean())
        norms.append(info["gradient_norm"][:, -1].mean())
        if i + 1 in multiples:
            kept.append(np.asarray(positions))
    return LongRun(np.asarray(jnp.stack(energies)), np.asarray(jnp.stack(norms)), np.stack(kept))


def evaluate_long_run(
    method: Method,
    state: State,
    source: Source,
    key: Array,
    *,
    chain: Chain,
    features: Features,
    protocol: Mapping[str, Any],
    multiples: tuple[int, ...] = MULTIPLES,
) -> tuple[list[Record], LongRun]:
    """Records ``long_run_energy_<m>x``, ``long_run_gradient_norm_<m>x``, ``long_run_feature_drift_<m>x``; the chains.

    The chains start at generated images. The drift is the root mean square distance between an image's features and
    those of its start, in units of that between two test images, of up to 500 random pairs: 0 is the same image, 1 an
    unrelated one. Images are clipped to [-1, 1] for the features, not for the chains.

    Raises:
        ValueError: chains whose energy, gradient or image is no longer finite.
    """
    start = time.perf_counter()
    first_key, chain_key = jax.random.split(key)
    first = jax.jit(lambda key, state: method.generate(key, state, NUM_CHAINS))(first_key, state)
    run = long_chains(method, state, chain_key, chain, first, multiples)
    at_start = features.function(np.asarray(to_uint8(first)))
    unit = _distance_between(source.test, features)
    n = len(first)
    seconds = time.perf_counter() - start
    records = []
    for m, images in zip(multiples, run.positions, strict=True):
        if not np.isfinite(images).all():
            raise ValueError(f"after {m * chain.num_steps:,} steps the chains hold NaN or an infinity")
        moved = features.function(np.asarray(to_uint8(images))).astype(np.float64) - at_start
        about = {
            **protocol,
            "chain": chain._asdict(),
            "chain_steps": m * chain.num_steps,
            "started_at": "generated images",
            "features": features.declaration,
            **cost("energy", n, seconds, multiples[-1] * (chain.num_steps + 1)),
        }
        drift = float(np.sqrt(np.square(moved).sum(1).mean()) / unit)
        values = {
            "energy": float(run.energies[m - 1]),
            "gradient_norm": float(run.gradient_norms[m - 1]),
            "feature_drift": drift,
        }
        records += [Record(f"long_run_{name}_{m}x", value, n, about) for name, value in values.items()]
    return records, run


def _distance_between(images: np.ndarray, features: Features) -> float:
    """The root mean square distance of two images' features, over disjoint random pairs."""
    n = min(len(images) // 2, MOST_PAIRS)
    pairs = features.function(images[permutation(0, 0, len(images))[: 2 * n]]).astype(np.float64)
    return float(np.sqrt(np.square(pairs[:n] - pairs[n:]).sum(1).mean()))


def energy_of(method: Method) -> Any:
    """``(state, x) -> energy`` of one image, to be bound to a state."""

    def energy(state: State, x: Array) -> Array:
        return method.energy(state, x[None])[0]

    return energy
