"""Grain, which reads ahead while the device computes."""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from jebm.errors import DataError

__all__ = ["prefetched"]

AHEAD = 8  # batches in all, or for each process
DEATHS = 3  # of worker processes, after which reading gives up


def prefetched(batches: Any, workers: int) -> Iterator[np.ndarray]:
    """The batches in their order, read ahead by threads, or by ``workers`` processes that are started for it.

    A worker process that dies (out of memory, a kill) is replaced, `DEATHS` times at most: a batch is a function of its
    number, so the new one reads what the old one would have read.

    Args:
        batches: has ``__len__`` and ``__getitem__``; with workers it can be pickled.
        workers: processes; 0 for threads of this one.

    Raises:
        DataError: what reading raised, or workers that keep dying.
    """
    position, deaths = 0, 0
    while True:
        try:
            for batch in _read(_From(batches, position), workers):
                yield batch
                position += 1
            return
        except DataError:
            raise
        except Exception as error:  # a worker process sends a text in place of what it raised
            text = next((line for line in str(error).splitlines() if "DataError: " in line), None)
            if text is not None:
                raise DataError(text.partition("DataError: ")[2]) from error
            if "terminated unexpectedly" not in str(error):
                raise
            deaths += 1
            if deaths > DEATHS:
                raise DataError(
                    f"{deaths} data workers died (out of memory?): take fewer data.workers; the same command resumes"
                ) from error
            warnings.warn(f"a data worker died; reading resumes from batch {position} with new workers", stacklevel=2)


def _read(batches: Any, workers: int) -> Iterator[np.ndarray]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain asks for its flags' defaults, and absl answers only then
        flags.FLAGS.mark_as_parsed()
    threads = min(AHEAD, 2 * (os.cpu_count() or 1))
    dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(threads, AHEAD))
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=AHEAD))
    return iter(dataset)


@dataclasses.dataclass(frozen=True, eq=False)
class _From:
    """The batches from a position on."""

    batches: Any
    position: int

    def __len__(self) -> int:
        return len(self.batches) - self.position

    def __getitem__(self, index: Any) -> np.ndarray:
        batch: np.ndarray = self.batches[self.position + int(index)]
        return batch
