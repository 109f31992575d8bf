"""One measured number with all that is needed to measure it again, as a JSON file."""

import dataclasses
import datetime
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal

import jax
import numpy as np

from jebm import files, paths
from jebm.data import Source
from jebm.errors import DataError

__all__ = ["Record", "cost", "file_stem", "read_all", "read_record", "run_protocol", "write_record"]

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Record:
    """A measurement.

    Attributes:
        metric: its name, of letters, digits, ``_`` and ``-``; it becomes part of a file name.
        value: the number.
        n: how many images it was measured on.
        protocol: how it was measured, see `run_protocol`; JSON values, numpy scalars allowed.

    Raises:
        ValueError: a value that is NaN or infinite, n below 1, or a metric that cannot name a file.
    """

    metric: str
    value: float
    n: int
    protocol: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.metric or not all(c.isascii() and (c.isalnum() or c in "_-") for c in self.metric):
            raise ValueError(f"metric '{self.metric}' cannot name a file; use letters, digits, '_' and '-'")
        if not math.isfinite(self.value):
            raise DataError(f"{self.metric} came out as {self.value}; only finite numbers are recorded")
        if self.n < 1:
            raise ValueError(f"{self.metric} was measured on n = {self.n} images; a record needs at least one")


def run_protocol(
    source: Source, *, seed: int, step: int, weights: Literal["ema", "raw"], config_hash: str | None
) -> dict[str, Any]:
    """The part of a protocol that all measurements of one evaluation share.

    Args:
        source: the images, as preprocessed.
        seed: of the evaluation's key.
        step: training step of the weights.
        weights: whether they are the running average or the last iterate.
        config_hash: digest of the resolved configuration; None for a model that has none.
    """
    device = jax.local_devices()[0]
    return {
        "source": source.name,
        "source_fingerprint": source.fingerprint,
        "source_steps": list(source.steps),
        "image_shape": list(source.image_shape),
        "seed": seed,
        "step": step,
        "weights": weights,
        "config_hash": config_hash,
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.local_device_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jebm", "jax", "jaxlib", "flax", "numpy")},
        },
        "measured_at_time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def cost(function: str | None, images: int, seconds: float, evaluations_per_image: int | None = None) -> dict[str, Any]:
    """Cost of a measurement: function of the method, images, network evaluations, wall time."""
    return {
        "method_function": function,
        "images_through_method": images,
        "network_evaluations_per_image": evaluations_per_image,
        "wall_time_seconds": seconds,
    }


def file_stem(name: str, protocol: Mapping[str, Any]) -> str:
    """``<name>[-<weights>][-step<step>][-seed<seed>]``, as a record and its arrays are called; seed 0 is left out."""
    parts = [name]
    if "weights" in protocol:
        parts.append(str(protocol["weights"]))
    if "step" in protocol:
        parts.append(f"step{int(protocol['step']):08d}")
    if protocol.get("seed"):
        parts.append(f"seed{int(protocol['seed'])}")
    return "-".join(parts)


def write_record(directory: str | os.PathLike, record: Record) -> paths.Path:
    """Writes ``<file_stem>[-train|-validation]-n<n>.json``, whole or not at all; an older one is replaced.

    Raises:
        ValueError: a protocol that holds NaN, an infinity, or what JSON cannot hold.
    """
    content = {"format": FORMAT, **dataclasses.asdict(record)}
    try:
        text = json.dumps(content, indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the protocol of {record.metric} cannot be recorded: {error}") from error
    split = f"-{of}" if (of := record.protocol.get("split")) in ("train", "validation") else ""
    path = paths.of(directory) / f"{file_stem(record.metric, record.protocol)}{split}-n{record.n}.json"
    with files.whole(path) as temporary:
        temporary.write_text(text + "\n")
    return path


def read_record(path: str | os.PathLike) -> Record:
    """The record in a file that `write_record` wrote.

    Raises:
        ValueError: a file that is not such a record, or holds a number that is not finite.
    """
    try:
        content = json.loads(paths.of(path).read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        return Record(str(content["metric"]), float(content["value"]), int(content["n"]), dict(content["protocol"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not a record of jebm ({type(error).__name__}: {error})") from error


def read_all(directory: str | os.PathLike) -> list[Record]:
    """Every record of a directory, by file name; none where there is no such directory."""
    return [read_record(path) for path in sorted(paths.of(directory).glob("*.json"))]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}")
