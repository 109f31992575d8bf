"""Scores that a family defines for held-out images."""

import time
from collections.abc import Mapping

import jax
import numpy as np
from jax import Array

from jebm.data import permutation, to_float
from jebm.evaluation.records import Record, cost
from jebm.evaluation.subject import Subject
from jebm.methods.base import State

__all__ = ["evaluate_scores"]


def evaluate_scores(key: Array, subject: Subject) -> list[Record]:
    """The family's own ``method.scores``, averaged over test batches: a record ``score_<name>`` each.

    A score is of a whole batch, so batches are of equal size, at most ``batch_size``, in a random order drawn once,
    and the few images that remain (fewer than there are batches) are left out.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    start = time.perf_counter()
    test = subject.held_out
    num_batches = -(-len(test) // subject.batch_size)
    size = len(test) // num_batches
    # by a permutation: in the order of a file a batch may be of one class
    rows = permutation(0, 0, len(test))[: num_batches * size].reshape(num_batches, size)

    @jax.jit
    def scores(key: Array, i: int, state: State, images: Array) -> Mapping[str, Array]:
        return subject.method.scores(jax.random.fold_in(key, i), state, to_float(images))

    values = [jax.device_get(scores(key, i, subject.state, test[chosen])) for i, chosen in enumerate(rows)]
    n = num_batches * size
    shared = {
        **subject.protocol,
        "split": subject.split,
        "batch_size": size,
        **cost("scores", n, time.perf_counter() - start),
    }
    return [
        Record(f"score_{name}", float(np.mean([v[name] for v in values], dtype=np.float64)), n, shared)
        for name in sorted(values[0])
    ]
