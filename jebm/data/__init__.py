"""Image data: sources by name, preprocessing, and a loader whose order is a function of (seed, step)."""

from jebm.data.loader import Loader, batch_indices, permutation, steps_per_epoch
from jebm.data.preprocessing import preprocess, resize, resize_source, to_float, to_uint8
from jebm.data.sources import DataError, Source, load

__all__ = [
    "DataError", "Loader", "Source", "batch_indices", "load", "permutation", "preprocess", "resize",
    "resize_source", "steps_per_epoch", "to_float", "to_uint8",
]  # fmt: skip
