"""`Subject`: what is measured, on which data, and how."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array

from jebm import paths
from jebm.data import Source, to_float
from jebm.errors import ConfigError
from jebm.methods.base import Method, State
from jebm.metrics.batches import map_batches
from jebm.metrics.features import Features, source_features
from jebm.runs.drawing import Draw

__all__ = ["Samples", "Subject", "energies"]


class Samples(NamedTuple):
    """Generated images, uint8 [n, H, W, C], and the seconds that they took."""

    images: np.ndarray
    seconds: float


class Subject(NamedTuple):
    """A model under evaluation, its data, and what all measurements share.

    Attributes:
        method: the family's functions.
        state: the model's state, with the weights that are to be measured.
        source: the data.
        protocol: what all records of this evaluation hold, see `jebm.evaluation.run_protocol`.
        features: the feature space; None: that of `jebm.metrics.features.source_features`.
        num_samples: how many images are generated.
        samples: images generated before; None: they are generated when they are needed.
        batch_size: images at once.
        reference: the split that generated images are compared with; published FIDs often take ``"train"``. With
            ``"validation"`` the validation images stand for the test images in all measurements.
        others: names and uint8 images [N, H, W, C] of any size: outliers beside those that are made.
        num_resamples: bootstrap resamples of an interval.
        longest: of a long run, times the steps of training: of `jebm.evaluation.long_run.MULTIPLES`.
        draw: how batches of images are generated; None: by the devices of this process.
        directory: where generated images, raw scores and chains are kept beside the records; None: nowhere.
    """

    method: Method
    state: State
    source: Source
    protocol: Mapping[str, Any] = {}
    features: Features | None = None
    num_samples: int = 1000
    samples: Samples | None = None
    batch_size: int = 256
    reference: Literal["test", "train", "validation"] = "test"
    others: Mapping[str, np.ndarray] = {}
    num_resamples: int = 500
    longest: int = 100
    draw: Draw | None = None
    directory: paths.Path | None = None

    @property
    def split(self) -> Literal["test", "validation"]:
        """The held-out images that are looked at."""
        return "validation" if self.reference == "validation" else "test"

    @property
    def held_out(self) -> np.ndarray:
        """Test images, or validation images where these are the reference: uint8 [M, H, W, C].

        Raises:
            ConfigError: validation images of data that have none.
        """
        if self.split == "test":
            return self.source.test
        if self.source.validation is None:
            raise ConfigError(
                "--reference validation: this run has no validation images; train one with --set data.validation=0.1"
            )
        return self.source.validation

    def feature_space(self) -> Features:
        """The feature space, made from the data where none is given."""
        return source_features(self.source) if self.features is None else self.features


def energies(subject: Subject) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 images [N, H, W, C] to their energies, float32 [N]; one compiled program."""
    method = subject.method

    @jax.jit
    def of_batch(state: State, images: Array) -> Array:
        return jax.vmap(method.energy(state))(to_float(images))

    return lambda images: map_batches(lambda _, batch: of_batch(subject.state, batch), images, subject.batch_size)
