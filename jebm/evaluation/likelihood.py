"""Likelihood brackets by annealed importance sampling."""

import time

import jax
import numpy as np
from jax import Array

from jebm.evaluation.records import Record, cost
from jebm.evaluation.subject import Subject, energies
from jebm.metrics import annealed_importance as ais

__all__ = ["evaluate_likelihood"]


def evaluate_likelihood(
    key: Array, subject: Subject, *, num_levels: int = 1000, num_chains: int = 64, equilibration_steps: int = 1000
) -> list[Record]:
    """Bounds on ``log Z`` and on the bits per dimension of test images, for ``p(x) = exp(-E(x))/Z`` on [-1, 1]^D.

    Outside the box the density is taken to be 0: without that a network's energy need not have a Z. Records
    ``log_partition_lower`` and ``log_partition_upper`` (see `annealed_importance`), and ``bits_per_dimension_lower``
    and ``bits_per_dimension_upper`` with each: ``(mean E + log Z) / (D log 2) + log2 127.5``, of the 256 levels.

    The reverse chains start where the forward ones end, after more MALA steps: not at exact samples. The upper bound
    holds as far as these chains have reached the law; a narrow bracket is necessary, not sufficient. Where none of
    them is as low in energy as the mean test image they have not, and there is no record of an upper bound.

    Raises:
        ValueError: weights or energies that are NaN or infinite.
    """
    start = time.perf_counter()
    source = subject.source
    energy = subject.method.energy(subject.state)
    base = ais.Base(source.image_shape, "uniform")
    tune_key, forward_key, more_key, reverse_key = jax.random.split(key, 4)
    steps = ais.tune_steps(tune_key, energy, base, num_levels=num_levels)
    forward = ais.forward_weights(forward_key, energy, base, steps, num_chains=num_chains)
    samples = ais.equilibrate(more_key, energy, base, steps[-1], forward.positions, equilibration_steps)
    reverse = ais.reverse_weights(reverse_key, energy, base, steps, samples)
    found = ais.bracket(forward.log_weights, reverse.log_weights)
    reached = float(jax.jit(jax.vmap(energy))(samples).min())
    on_test = energies(subject)(source.test).astype(np.float64)
    dimension = int(np.prod(source.image_shape))
    about = {
        **subject.protocol,
        "density": "exp(-E(x))/Z on the box [-1, 1]^D, 0 outside",
        "base": "uniform on the box",
        "num_levels": num_levels,
        "transition": "one MALA step a level, step sizes tuned beforehand",
        "reverse_start": f"ends of the forward chains after {equilibration_steps} more steps, not exact samples",
        "lowest_reverse_start_energy": reached,
        "acceptance": [forward.acceptance, reverse.acceptance],
        **found._asdict(),
        **cost("energy", num_chains, time.perf_counter() - start, 2 * num_levels + equilibration_steps),
    }
    bits = lambda log_z: (on_test.mean() + log_z) / (dimension * np.log(2)) + np.log2(127.5)  # noqa: E731
    mean_energy = {**about, "split": "test", "mean_energy": float(on_test.mean()), "n_chains": num_chains}
    records = [
        Record("log_partition_lower", found.lower, num_chains, about),
        Record("bits_per_dimension_lower", float(bits(found.lower)), len(on_test), mean_energy),
    ]
    if reached <= on_test.mean():
        records += [
            Record("log_partition_upper", found.upper, num_chains, about),
            Record("bits_per_dimension_upper", float(bits(found.upper)), len(on_test), mean_energy),
        ]
    return records
