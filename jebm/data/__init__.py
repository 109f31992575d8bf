"""Image data: sources by name, preprocessing, and a loader whose order is a function of (seed, step)."""

from jebm.data.geometry import Geometry, resize
from jebm.data.image_set import ImageSet
from jebm.data.loader import Loader, batch_indices, permutation, steps_per_epoch
from jebm.data.named import check_name, load
from jebm.data.preprocessing import preprocess, resize_source, to_float, to_uint8
from jebm.data.source import Source
from jebm.errors import DataError

__all__ = [
    "DataError", "Geometry", "ImageSet", "Loader", "Source", "batch_indices", "check_name", "load", "permutation",
    "preprocess", "resize", "resize_source", "steps_per_epoch", "to_float", "to_uint8",
]  # fmt: skip
