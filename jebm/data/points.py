"""``points:NAME``: a two-dimensional set of `jebm.problems` as images of one pixel and two channels."""

import functools

import jax
import numpy as np

from jebm import problems
from jebm.data.preprocessing import to_uint8
from jebm.data.source import Source, of_arrays
from jebm.errors import DataError

__all__ = ["PLANE", "SHAPE", "points", "problem_of", "to_plane", "unrounded"]

PLANE = (
    "banana", "checkerboard", "eight_gaussians", "gaussian_mixture", "rings", "spiral", "two_moons"
)  # fmt: skip
"""The problems in two dimensions that have an exact sampler."""

SHAPE = (1, 1, 2)
NUM_TRAIN, NUM_TEST = 20_000, 4_000


def points(name: str) -> Source:
    """20,000 and 4,000 exact draws of the problem ``name``, always the same.

    They go the way of images, so on 256 levels a coordinate: the square of side ``2 extent`` about the problem's mean
    is [-1, 1]², and the few points outside, about one in 10,000, are put on its border.

    Raises:
        DataError: no such set.
    """
    train, test = (np.asarray(to_uint8(x)) for x in _drawn(name))
    return of_arrays(name, train, test, None, None)


def unrounded(name: str) -> np.ndarray:
    """The test points of a set before they are brought to 256 levels, float32 [4000, 1, 1, 2]; some leave [-1, 1]."""
    return _drawn(name)[1]


def to_plane(name: str, images: np.ndarray) -> np.ndarray:
    """Images [N, 1, 1, 2], of which [-1, 1] is the square, in the coordinates of the problem: [N, 2]."""
    problem = problem_of(name)
    return problem.mean + problem.extent * np.asarray(images, np.float64).reshape(-1, 2)


@functools.cache
def problem_of(name: str) -> problems.Problem:
    """The problem that a set is of.

    Raises:
        DataError: no such set.
    """
    if name not in PLANE:
        raise DataError(f"no set of points {name!r}; there are {', '.join(PLANE)}")
    return problems.PROBLEMS[name]()


@functools.cache
def _drawn(name: str) -> tuple[np.ndarray, np.ndarray]:
    problem = problem_of(name)
    drawn = np.asarray(problem.sample(jax.random.key(0), NUM_TRAIN + NUM_TEST), np.float64)
    images = ((drawn - problem.mean) / problem.extent).astype(np.float32).reshape(-1, *SHAPE)
    return images[:NUM_TRAIN], images[NUM_TRAIN:]
