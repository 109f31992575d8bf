"""Likelihood: brackets by annealed importance sampling; exact for points of the plane."""

import time

import jax
import numpy as np
import scipy.special
from jax import Array

from jebm.data import points
from jebm.evaluation.records import Record, cost
from jebm.evaluation.subject import Subject, energies
from jebm.metrics import annealed_importance as ais
from jebm.metrics.batches import map_batches

__all__ = ["evaluate_likelihood", "evaluate_points"]


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

    Of points of the plane it is known by quadrature instead: `evaluate_points`.

    Raises:
        ValueError: weights or energies that are NaN or infinite.
    """
    if subject.source.image_shape == points.SHAPE:
        return evaluate_points(subject)
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
    on_test = energies(subject)(subject.held_out).astype(np.float64)
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
    mean_energy = {**about, "split": subject.split, "mean_energy": float(on_test.mean()), "n_chains": num_chains}
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


def evaluate_points(subject: Subject, *, resolution: int = 512) -> list[Record]:
    """The likelihood of a ``points:NAME`` model, exact: ``log Z`` by the midpoint rule on the square [-1, 1]².

    Records ``log_partition``; ``negative_log_likelihood``, nats of a test point in the coordinates of the problem,
    before it was rounded; and ``negative_log_likelihood_real``, by the problem's own density of the same points:
    the difference estimates the Kullback-Leibler divergence of the model from the data. Points outside the square are
    left out.

    Raises:
        ValueError: energies that are NaN or infinite.
    """
    start = time.perf_counter()
    name = subject.source.name
    problem = points.problem_of(name)
    energy = jax.jit(lambda state, x: jax.vmap(subject.method.energy(state))(x))
    on = lambda x: map_batches(lambda _, batch: energy(subject.state, batch), x, 4096).astype(np.float64)  # noqa: E731
    middles = ((np.arange(resolution) + 0.5) * (2 / resolution) - 1).astype(np.float32)
    square = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, *points.SHAPE)
    log_z = float(scipy.special.logsumexp(-on(square))) + 2 * np.log(2 / resolution)
    test = points.unrounded(name)
    test = test[np.abs(test).max((1, 2, 3)) < 1.0]
    exact = jax.jit(jax.vmap(problem.energy))(points.to_plane(name, test).astype(np.float32)) + problem.log_normalizer
    about = {
        **subject.protocol, "density": "exp(-E(x))/Z on the square, 0 outside", "resolution": resolution,
        **cost("energy", len(square) + len(test), time.perf_counter() - start, 1),
    }  # fmt: skip
    of_test = {**about, "split": "test", "unit": "nats, in the coordinates of the problem", "rounding": "none"}
    value = float(on(test).mean()) + log_z + 2 * np.log(problem.extent)
    return [
        Record("log_partition", log_z, len(square), about),
        Record("negative_log_likelihood", value, len(test), of_test),
        Record("negative_log_likelihood_real", float(np.mean(np.asarray(exact, np.float64))), len(test), of_test),
    ]
