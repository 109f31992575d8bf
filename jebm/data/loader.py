"""Batches in an order that is a function of (seed, step) alone.

Nothing is kept between batches: a resumed run needs only its step number.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array

from jebm.data.image_set import ImageSet

__all__ = ["Loader", "batch_indices", "crop_words", "permutation", "steps_per_epoch"]


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """A random order of ``range(num_examples)``, int64 and read-only, the same on every machine.

    It sorts the raw Philox words under the key ``(seed, epoch)``: numpy keeps these words for ever, which it
    does not promise of `numpy.random.Generator.permutation`.

    Raises:
        ValueError: a seed or an epoch outside [0, 2**64).

    Examples:
        >>> jebm.data.permutation(seed=0, epoch=0, num_examples=5)
        array([0, 2, 1, 4, 3])
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

    Examples:
        >>> jebm.data.steps_per_epoch(1_500, 64)
        23
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

    Examples:
        >>> jebm.data.batch_indices(seed=0, step=3, num_examples=8, batch_size=2)
        array([6, 7])
    """
    if step < 0:
        raise ValueError(f"batch number {step} was asked for; steps count from 0")
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size))
    return permutation(seed, epoch, num_examples)[position * batch_size : (position + 1) * batch_size]


def crop_words(seed: int, step: int, batch_size: int) -> np.ndarray:
    """The draws that place the random crops of batch ``step``: uint32 [batch_size, 2], a function of (seed, step)."""
    # the upper half of the counter: apart from the words of `permutation`, whose counters start at 0
    generator = np.random.Philox(key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, 1], np.uint64))
    return (generator.random_raw(2 * batch_size) >> np.uint64(32)).astype(np.uint32).reshape(batch_size, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Shuffled batches of an array, or of a large set of files.

    What a batch holds is a function of ``seed`` and its number alone: neither the workers nor the hosts change it.

    Attributes:
        images: uint8 [N, H, W, C], or any array with the examples on its first axis, or a `jebm.data.ImageSet`, which
            is read and decoded ahead of its use, through Grain.
        batch_size: examples per batch, over all hosts; the incomplete batch at the end of an epoch is dropped.
        seed: with the step number it says what a batch holds.
        workers: processes that decode an `ImageSet`; 0 for threads of this process.
        rows: the rows of every batch that this host reads (`jebm.sharding.local_rows`), the others stay 0; None for
            all.

    Raises:
        ValueError: a batch size below 1 or above N, or workers below 0.
    """

    images: np.ndarray
    batch_size: int
    seed: int = 0
    workers: int = 0
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        steps_per_epoch(len(self.images), self.batch_size)
        if self.workers < 0:
            raise ValueError(f"{self.workers} workers; it must be 0 (threads) or more")

    def batch(self, step: int) -> np.ndarray:
        """Batch number ``step`` on the host, [batch_size, H, W, C], in the dtype of ``images``; 0 but for ``rows``."""
        chosen = batch_indices(self.seed, step, len(self.images), self.batch_size)
        if not isinstance(self.images, ImageSet) and self.rows is None:
            return self.images[chosen]
        batch = np.zeros((self.batch_size, *self.images.shape[1:]), self.images.dtype)
        rows = np.arange(self.batch_size) if self.rows is None else self.rows
        if not isinstance(self.images, ImageSet):
            batch[rows] = self.images[chosen[rows]]
            return batch
        words = crop_words(self.seed, step, self.batch_size) if self.images.geometry.random else None
        place = lambda row: None if words is None else (int(words[row, 0]), int(words[row, 1]))  # noqa: E731
        for row in rows:
            batch[row] = self.images.read(int(chosen[row]), place(row))
        return batch

    def batches(
        self, start_step: int, num_steps: int, place: Callable[[np.ndarray], Array] = jax.device_put
    ) -> Iterator[Array]:
        """The ``num_steps`` batches from ``start_step`` on, on the device, each sent a step ahead of its use.

        ``place`` sends a host array to where it is wanted (for a mesh: `jebm.sharding.shard_batch`).
        """
        ahead = None
        for batch in self._read(start_step, num_steps):
            current, ahead = ahead, place(batch)  # transfers run behind the device's work
            if current is not None:
                yield current
        if ahead is not None:
            yield ahead

    def _read(self, start_step: int, num_steps: int) -> Iterator[np.ndarray]:
        if isinstance(self.images, ImageSet):
            from jebm.data.prefetch import prefetched

            return prefetched(_Batches(self, start_step, num_steps), self.workers)
        return (self.batch(step) for step in range(start_step, start_step + num_steps))


@dataclasses.dataclass(frozen=True, eq=False)
class _Batches:
    """A run of batches by number: what Grain calls a random-access source."""

    loader: Loader
    start_step: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.loader.batch(self.start_step + int(index))
