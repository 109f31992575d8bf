"""Long-run chains: distance, energy, gradient norm and drift at 1, 10, 100 and 1000 times the steps of training.

A model of the data keeps images images; a model that was only ever walked for K steps often does not (Nijkamp et al.,
arXiv 1903.12370).
"""

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import mcmc
from jebm.data import permutation, to_uint8
from jebm.errors import ConfigError, DataError
from jebm.evaluation.records import Record, cost, file_stem
from jebm.evaluation.space import space_quality
from jebm.evaluation.subject import Subject
from jebm.files import write_arrays
from jebm.mcmc import LangevinKernel
from jebm.methods.shared import chain_kernel
from jebm.metrics.feature_statistics import FeatureSet, feature_set
from jebm.metrics.features import Features
from jebm.metrics.frechet import frechet_distance, statistics
from jebm.metrics.kernel import kernel_distance

__all__ = ["LIMITS", "MULTIPLES", "LongRun", "evaluate_long_run", "long_chains", "nature"]

MULTIPLES = (1, 10, 100, 1000)
LIMITS = {100: 1.25, 1000: 1.5}
"""Of a density: the largest distance at these multiples, in units of that at 1."""

NUM_CHAINS = 200  # for a distance; as many in every long run, since it depends on the number
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


def evaluate_long_run(key: Array, subject: Subject, *, multiples: tuple[int, ...] | None = None) -> list[Record]:
    """Records ``long_run_<what>_<m>x`` of ``distance``, ``energy``, ``gradient_norm`` and ``feature_drift``.

    200 chains start where those of training do (``Method.chain_starts``), at generated images where these are the
    start; and where the state has persistent chains (``Method.bank``) as many go on from these, as
    ``long_run_bank_<what>_<m>x``. The distance is that of the chains' images from held-out ones: Fréchet, or in
    Inception's space, whose features are more than the chains, the kernel distance. `nature` says what follows.

    The drift is the root mean square distance between an image's features and those of its start, in units of that
    between two test images, of up to 500 random pairs: 0 is the same image, 1 an unrelated one. Images are clipped to
    [-1, 1] for the features, not for the chains. In the subject's directory the chains are written as
    ``long_run-*.npz`` and ``long_run_bank-*.npz``, see `LongRun`.

    Args:
        key: a typed key.
        subject: see `Subject`.
        multiples: ascending; None: those of `MULTIPLES` up to ``subject.longest``.

    Raises:
        ConfigError: a family whose chains of training are not on images.
        ValueError: chains whose energy, gradient or image is no longer finite.
    """
    method, chain, features = subject.method, subject.method.chain, subject.feature_space()
    if chain is None:
        raise ConfigError("long_run: this family has no chain on images in training; leave the metric out")
    multiples = tuple(m for m in MULTIPLES if m <= subject.longest) if multiples is None else multiples
    first_key, chain_key, bank_key = jax.random.split(key, 3)
    fresh = method.generate if method.chain_starts is None else method.chain_starts
    where = "generated images" if method.chain_starts is None else "starts of training's chains"
    first = jax.jit(lambda key, state: fresh(key, state, NUM_CHAINS))(first_key, subject.state)
    starts = {"long_run": (chain_key, first, where)}
    bank = None if method.bank is None else method.bank(subject.state)
    if bank is not None:
        rows = np.sort(permutation(0, 0, len(bank))[:NUM_CHAINS])
        starts["long_run_bank"] = (bank_key, bank[rows], "persistent chains")
    inception = features.declaration["feature_space"] == "Inception"
    real = feature_set(subject.held_out, features, cache=inception)
    unit = _distance_between(subject.held_out, features)
    shared = {
        **subject.protocol,
        "chain": {**chain._asdict(), "temperature": method.temperature},
        "features": features.declaration,
        "space": space_quality(subject.source, features),
        "split": subject.split,
        "n_reference": real.statistics.n,
        "distance": "kernel" if inception else "Fréchet",
    }
    records = []
    for name, (own_key, begin, at) in starts.items():
        start = time.perf_counter()
        run = long_chains(own_key, chain_kernel(method, subject.state), begin, chain.num_steps, multiples)
        at_start = features.function(np.asarray(to_uint8(begin)))
        n = len(begin)
        spent = cost("energy", n, time.perf_counter() - start, multiples[-1] * (chain.num_steps + 1))
        for m, images in zip(multiples, run.positions, strict=True):
            if not np.isfinite(images).all():
                raise DataError(f"after {m * chain.num_steps:,} steps the chains hold NaN or an infinity")
            seen = features.function(np.asarray(to_uint8(images))).astype(np.float64)
            values = {
                "distance": _distance(seen, real, inception),
                "energy": float(run.energies[m - 1]),
                "gradient_norm": float(run.gradient_norms[m - 1]),
                "feature_drift": float(np.sqrt(np.square(seen - at_start).sum(1).mean()) / unit),
            }
            about = {**shared, "chain_steps": m * chain.num_steps, "started_at": at, **spent}
            records += [Record(f"{name}_{what}_{m}x", value, n, about) for what, value in values.items()]
        if subject.directory is not None:
            write_arrays(subject.directory / f"{file_stem(name, subject.protocol)}.npz", run._asdict())
    return records


def nature(records: Sequence[Record]) -> Literal["density", "short-run sampler", "unknown"]:
    """What a run is by its long chains: images at a hundred and a thousand times training's length, or not.

    A density: the distance is at most 1.25 times that at training's length after 100 times it, and 1.5 times after
    1,000, from fresh starts and, where there is one, from the bank. A short-run sampler: one of these is known not to
    hold. Else it is unknown: of a density both have to be measured, in a space that is not weak.
    """
    held: dict[tuple[str, int], bool] = {}
    for name in ("long_run", "long_run_bank"):
        of: dict[int, Any] = {
            m: next((r for r in records if r.metric == f"{name}_distance_{m}x"), None) for m in MULTIPLES
        }
        base = of[1]
        if base is None or base.value <= 0 or base.protocol.get("space", {}).get("weak"):
            continue
        held |= {(name, m): of[m].value <= most * base.value for m, most in LIMITS.items() if of[m] is not None}
    if not all(held.values()):
        return "short-run sampler"
    return "density" if all(("long_run", m) in held for m in LIMITS) else "unknown"


def _distance(seen: np.ndarray, real: FeatureSet, kernel: bool) -> float:
    return kernel_distance(seen, real.kept).value if kernel else frechet_distance(statistics(seen), real.statistics)


def _distance_between(images: np.ndarray, features: Features) -> float:
    """The root mean square distance of two images' features, over disjoint random pairs."""
    n = min(len(images) // 2, MOST_PAIRS)
    pairs = features.function(images[permutation(0, 0, len(images))[: 2 * n]]).astype(np.float64)
    return float(np.sqrt(np.square(pairs[:n] - pairs[n:]).sum(1).mean()))
