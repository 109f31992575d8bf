"""Long-run chains: energy, gradient norm and drift at 1, 10, 100 and 1000 times the steps of training.

A model of the data keeps images images; a model that was only ever walked for K steps often does not (Nijkamp et al.,
arXiv 1903.12370).
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import mcmc
from jebm.data import permutation, to_uint8
from jebm.errors import ConfigError, DataError
from jebm.evaluation.records import Record, cost, file_stem
from jebm.evaluation.subject import Subject
from jebm.files import write_arrays
from jebm.mcmc import LangevinKernel
from jebm.methods.shared import chain_kernel
from jebm.metrics.features import Features

__all__ = ["MULTIPLES", "LongRun", "evaluate_long_run", "long_chains"]

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
    key: Array, kernel: LangevinKernel, positions: Array, num_steps: int, multiples: tuple[int, ...] = MULTIPLES
) -> LongRun:
    """Langevin chains from images [n, H, W, C], in pieces of ``num_steps``.

    Piece i has the key ``fold_in(key, i)``: the program compiles once, and a longer run begins with the shorter one.
    """
    energies, norms, kept = [], [], []
    trace = ("energy", "gradient_norm")
    # compiled here, so that chains that leave the finite numbers are named by the records, not at each piece
    walk = jax.jit(lambda key, kernel, x: mcmc.sample_chains(key, kernel, x, num_steps, trace=trace))
    for i in range(multiples[-1]):
        last, info = walk(jax.random.fold_in(key, i), kernel, positions)
        positions = last.position
        energies.append(info["energy"][:, -1].mean())
        norms.append(info["gradient_norm"][:, -1].mean())
        if i + 1 in multiples:
            kept.append(np.asarray(positions))
    return LongRun(np.asarray(jnp.stack(energies)), np.asarray(jnp.stack(norms)), np.stack(kept))


def evaluate_long_run(key: Array, subject: Subject, *, multiples: tuple[int, ...] = MULTIPLES) -> list[Record]:
    """Records ``long_run_energy_<m>x``, ``long_run_gradient_norm_<m>x``, ``long_run_feature_drift_<m>x``.

    The chains start at generated images. The drift is the root mean square distance between an image's features and
    those of its start, in units of that between two test images, of up to 500 random pairs: 0 is the same image, 1 an
    unrelated one. Images are clipped to [-1, 1] for the features, not for the chains. In the subject's directory the
    chains are written as ``long_run-*.npz``, see `LongRun`.

    Raises:
        ConfigError: a family whose chains of training are not on images.
        ValueError: chains whose energy, gradient or image is no longer finite.
    """
    method, chain, features = subject.method, subject.method.chain, subject.feature_space()
    if chain is None:
        raise ConfigError("long_run: this family has no chain on images in training; leave the metric out")
    start = time.perf_counter()
    first_key, chain_key = jax.random.split(key)
    first = jax.jit(lambda key, state: method.generate(key, state, NUM_CHAINS))(first_key, subject.state)
    run = long_chains(chain_key, chain_kernel(method, subject.state), first, chain.num_steps, multiples)
    at_start = features.function(np.asarray(to_uint8(first)))
    unit = _distance_between(subject.source.test, features)
    n = len(first)
    seconds = time.perf_counter() - start
    records = []
    for m, images in zip(multiples, run.positions, strict=True):
        if not np.isfinite(images).all():
            raise DataError(f"after {m * chain.num_steps:,} steps the chains hold NaN or an infinity")
        moved = features.function(np.asarray(to_uint8(images))).astype(np.float64) - at_start
        about = {
            **subject.protocol,
            "chain": {**chain._asdict(), "temperature": method.temperature},
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
    if subject.directory is not None:
        write_arrays(subject.directory / f"{file_stem('long_run', subject.protocol)}.npz", run._asdict())
    return records


def _distance_between(images: np.ndarray, features: Features) -> float:
    """The root mean square distance of two images' features, over disjoint random pairs."""
    n = min(len(images) // 2, MOST_PAIRS)
    pairs = features.function(images[permutation(0, 0, len(images))[: 2 * n]]).astype(np.float64)
    return float(np.sqrt(np.square(pairs[:n] - pairs[n:]).sum(1).mean()))
