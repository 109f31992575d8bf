"""``metrics.jsonl``: one JSON object a logged step."""

import contextlib
import json
import math
import time
import warnings
from typing import IO, Any

from jebm import files, paths

__all__ = ["MetricsFile", "read_metrics"]


INTERVAL = 30.0  # seconds between writings of a whole file, to a store that takes one a second at most


class _Kept:
    """A text file in an object store, which cannot be appended to: kept in memory, and written whole now and then."""

    def __init__(self, path: paths.Path, text: str) -> None:
        self._path, self._lines, self._written, self._time = path, [text], 1, time.monotonic()

    def write(self, text: str) -> None:
        self._lines.append(text)

    def flush(self) -> None:
        """Writes what is new, if the last time is long ago."""
        if time.monotonic() - self._time >= INTERVAL:
            self.sync()

    def sync(self) -> None:
        """Writes what is new."""
        if self._written < len(self._lines):
            self._written, self._time = len(self._lines), time.monotonic()
            with files.whole(self._path) as temporary:
                temporary.write_text("".join(self._lines))

    close = sync


class MetricsFile:
    """Appends to ``metrics.jsonl``: lines of metrics, and of recoveries (``"event": "recovery"``).

    In an object store lines are sent every half a minute, by `sync`, and at the end.
    """

    def __init__(self, path: paths.Path, start_step: int, recoveries: int = 0, writes: bool = True) -> None:
        """Opens ``path`` for the steps after ``start_step``, as `rewind`; where not ``writes``, it does nothing."""
        self._path, self._file = path, None if not writes else _opened(path)
        self.rewind(start_step, recoveries)

    def rewind(self, step: int, recoveries: int) -> None:
        """Drops the lines of later steps, and of recoveries after the first ``recoveries``.

        Damaged lines go into ``metrics_damaged.jsonl`` beside it, as they are.
        """
        if self._file is None:
            return
        self._file.close()
        lines, damaged = _lines(self._path)
        if damaged:
            _warn(self._path, damaged)
            aside = self._path.with_name(f"{self._path.stem}_damaged.jsonl")
            added = b"".join(text + b"\n" for text in damaged.values())
            if paths.is_remote(aside):
                aside.write_bytes((aside.read_bytes() if aside.exists() else b"") + added)
            else:
                with aside.open("ab") as stream:
                    stream.write(added)
        kept = [line for line in lines if line["step"] <= step and line.get("attempt", 0) <= recoveries]
        with files.whole(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = _opened(self._path)

    def write(self, line: dict[str, Any]) -> dict[str, Any]:
        """Writes one line and hands it to the system, so that a killed process loses none; returns what it wrote."""
        # JSON has no NaN: a diverged value is written as null, never as a number
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        if self._file is None:
            return clean
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        return clean

    def sync(self) -> None:
        """To be called before a checkpoint of the last line's step is saved: a resume from there finds all lines."""
        if isinstance(self._file, _Kept):
            self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the failed write has raised already
                self._file.close()


def _opened(path: paths.Path) -> "IO[str] | _Kept":
    """For appending."""
    if paths.is_remote(path):
        return _Kept(path, path.read_text() if path.exists() else "")
    return path.open("a")


def read_metrics(path: paths.Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``: each has a whole ``step``, and numbers or null beside it (texts in events).

    A line that is damaged is left out with a warning; a last line cut short by a crash without one.
    """
    lines, damaged = _lines(path)
    if damaged:
        _warn(path, damaged)
    return lines


def _warn(path: paths.Path, damaged: dict[int, bytes]) -> None:
    first, *more = damaged
    where = f"line {first} is" if not more else f"lines {first} and {len(more)} more are"
    warnings.warn(f"{path}: {where} damaged and left out; the others are kept", stacklevel=3)


def _lines(path: paths.Path) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    """The good lines, and the damaged ones by their numbers, from 1."""
    if not path.exists():
        return [], {}
    *texts, last = path.read_bytes().split(b"\n")
    lines: list[dict[str, Any]] = []
    damaged: dict[int, bytes] = {}
    for number, text in enumerate([*texts, last], 1):
        line = _parsed(text)
        if line is not None:
            lines.append(line)
        elif text.strip() and number <= len(texts):  # without its end of line the last one was cut short
            damaged[number] = text
    return lines, damaged


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not _whole(line.get("step")) or not _whole(line.get("attempt", 0)):
        return None
    numbers = line if "event" not in line else {}
    return line if all(value is None or _number(value) for value in numbers.values()) else None


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
