"""Files of a run directory as a report finds them; one that is damaged is named."""

import math
import re
from typing import Any

import numpy as np

from jebm import paths
from jebm.errors import JebmError
from jebm.evaluation import Record, read_record
from jebm.report import scores
from jebm.runs.metrics_log import read_metrics

__all__ = ["DamagedFile", "Found", "all_finite", "is_number", "lines_of", "newest", "pixels", "record_of"]

Found = tuple[paths.Path, str, dict[str, Any]]
"""A file, in words of which step and weights it is, and its arrays."""


class DamagedFile(JebmError):
    """A file of the run directory that is not as it was written; the message names it."""


def lines_of(path: paths.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are of a step."""
    try:
        lines = read_metrics(path)
    except (ValueError, RecursionError) as error:  # not UTF-8, numbers or brackets that Python does not read
        raise DamagedFile(f"{path} cannot be read: {error}") from None
    return [line for line in lines if isinstance(line, dict) and type(line.get("step")) is int]


def record_of(path: paths.Path) -> Record:
    """A record whose protocol has the types that the page shows."""
    try:
        record = read_record(path)
    except ValueError as error:
        raise DamagedFile(str(error)) from None
    interval, protocol = record.protocol.get("bootstrap_interval_95"), record.protocol
    measure = record.metric.partition("_")[0]
    numbers = {
        name: protocol.get(name) for name in ("standard_error", *(f"{measure}_of_{key}" for key in scores.NULLS))
    }
    wrong = [name for name, value in numbers.items() if value is not None and not is_number(value)]
    wrong += ["step"] * (type(protocol.get("step", 0)) is not int)
    wrong += ["features"] * (not isinstance(protocol.get("features", {}), dict))
    good = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
    wrong += ["bootstrap_interval_95"] * (interval is not None and not good)
    if wrong:
        raise DamagedFile(f"{path}: {', '.join(wrong)} of its protocol is not as jebm writes it")
    return record


def is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def all_finite(numbers: np.ndarray) -> bool:
    return bool(np.issubdtype(numbers.dtype, np.number) and np.isfinite(numbers).all())


def pixels(path: paths.Path, arrays: dict[str, np.ndarray], axes: int, name: str = "x") -> np.ndarray:
    """Uint8 images with so many axes."""
    x = arrays.get(name, np.zeros(0))
    if x.dtype != np.uint8 or x.ndim != axes or not x.size or x.shape[-1] not in (1, 2, 3):
        raise DamagedFile(f"{path}: '{name}' is {x.dtype} {x.shape}, not uint8 images of {axes} axes")
    return x


def newest(folder: paths.Path, kind: str) -> Found | None:
    """The latest step's ``<kind>-<weights>-step<step>*.npz``, in words which that is, and its arrays."""
    named = re.compile(rf"{kind}-(raw|ema)-step(\d+)(-.*)?\.npz")
    found = [(path, match) for path in folder.glob(f"{kind}-*.npz") if (match := named.fullmatch(path.name))]
    if not found:
        return None
    path, match = max(found, key=lambda found: (int(found[1][2]), _written(found[0])))
    with path.open("rb") as stream:  # numpy leaves damaged archives open
        try:
            file = np.load(stream, allow_pickle=False)
            arrays = {} if isinstance(file, np.ndarray) else dict(file)
        except Exception as error:  # damaged archives fail in many ways: lengths, versions, headers, codecs
            raise DamagedFile(f"{path} cannot be read ({type(error).__name__}): remove it, or evaluate again") from None
    return path, f"step {int(match[2]):,}, {match[1]} weights", arrays


def _written(path: paths.Path) -> float:
    """When, in seconds."""
    about = path.stat()
    return float(about.mtime if paths.is_remote(path) else about.st_mtime)  # type: ignore[union-attr]
