"""Grain, which reads ahead while the device computes."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jebm.data.errors import DataError

__all__ = ["prefetched"]

AHEAD = 8  # batches in all, or for each process


def prefetched(batches: Any, workers: int) -> Iterator[np.ndarray]:
    """The batches in their order, read ahead by threads, or by ``workers`` processes that are started for it.

    Args:
        batches: has ``__len__`` and ``__getitem__``; with workers it can be pickled.
        workers: processes; 0 for threads of this one.

    Raises:
        DataError: what reading raised.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain asks for its flags' defaults, and absl answers only then
        flags.FLAGS.mark_as_parsed()
    threads = min(AHEAD, 2 * (os.cpu_count() or 1))
    dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(threads, AHEAD))
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=AHEAD))
    iterator = iter(dataset)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except DataError:
            raise
        except Exception as error:  # a worker process sends a text in place of what it raised
            text = next((line for line in str(error).splitlines() if "DataError: " in line), None)
            if text is None:
                raise
            raise DataError(text.partition("DataError: ")[2]) from error
        yield batch
