"""Batches in an order that is a function of (seed, step) alone.

Nothing is remembered between batches: a run that stops and goes on needs only its step number.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import Array

__all__ = ["Loader", "batch_indices", "permutation", "steps_per_epoch"]


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """A random order of ``range(num_examples)``, int64 and read-only, the same on every machine.

    It sorts the raw Philox words under the key ``(seed, epoch)``: numpy keeps these words for ever, which it
    does not promise of `numpy.random.Generator.permutation`.

    Raises:
        ValueError: a seed or an epoch outside [0, 2**64).
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**64:
            raise ValueError(f"the {name} of a data order is {value}; it must lie in [0, 2**64)")
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False  # the cache hands the same array to everybody
    return order


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches in one pass; the examples left over wait for another epoch's order.

    Raises:
        ValueError: a batch size below 1 or above the number of examples.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"a batch of {batch_size} from {num_examples} examples; batch_size must lie in 1..{num_examples}"
        )
    return num_examples // batch_size


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of batch ``step``: int64 [batch_size], distinct; within an epoch no example comes twice.

    Raises:
        ValueError: a step below 0, or what `permutation` and `steps_per_epoch` refuse.
    """
    if step < 0:
        raise ValueError(f"batch number {step} was asked for; steps count from 0")
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size))
    return permutation(seed, epoch, num_examples)[position * batch_size : (position + 1) * batch_size]


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Shuffled batches of an array in memory.

    Attributes:
        images: uint8 [N, H, W, C], or any array with the examples on its first axis.
        batch_size: examples per batch; the incomplete batch at the end of an epoch is dropped.
        seed: with the step number it says what a batch holds.

    Raises:
        ValueError: a batch size below 1 or above N.
    """

    images: np.ndarray
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        steps_per_epoch(len(self.images), self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Batch number ``step`` on the host, [batch_size, H, W, C], in the dtype of ``images``."""
        return self.images[batch_indices(self.seed, step, len(self.images), self.batch_size)]

    def batches(
        self, start_step: int, num_steps: int, place: Callable[[np.ndarray], Array] = jax.device_put
    ) -> Iterator[Array]:
        """The ``num_steps`` batches from ``start_step`` on, on the device, each sent a step ahead of its use.

        ``place`` sends a host array to where it is wanted (for a mesh: `jebm.sharding.shard_batch`).
        """
        ahead = None
        for step in range(start_step, start_step + num_steps):
            current, ahead = ahead, place(self.batch(step))  # transfers run behind the device's work
            if current is not None:
                yield current
        if ahead is not None:
            yield ahead
