"""``metrics.jsonl``: one JSON object a logged step."""

import contextlib
import json
import math
import pathlib
import warnings
from typing import Any

from jebm import files

__all__ = ["MetricsFile", "read_metrics"]


class MetricsFile:
    """Appends to ``metrics.jsonl``: lines of metrics, and of recoveries (``"event": "recovery"``)."""

    def __init__(self, path: pathlib.Path, start_step: int, recoveries: int = 0, writes: bool = True) -> None:
        """Opens ``path`` for the steps after ``start_step``, as `rewind`; where not ``writes``, it does nothing."""
        self._path, self._file = path, None if not writes else path.open("a")
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
            with self._path.with_name(f"{self._path.stem}_damaged.jsonl").open("ab") as aside:
                aside.writelines(text + b"\n" for text in damaged.values())
        kept = [line for line in lines if line["step"] <= step and line.get("attempt", 0) <= recoveries]
        with files.whole(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line and hands it to the system, so that a killed process loses none."""
        if self._file is None:
            return
        # JSON has no NaN: a diverged value is written as null, never as a number
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the failed write has raised already
                self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``: each has a whole ``step``, and numbers or null beside it (texts in events).

    A line that is damaged is left out with a warning; a last line cut short by a crash without one.
    """
    lines, damaged = _lines(path)
    if damaged:
        _warn(path, damaged)
    return lines


def _warn(path: pathlib.Path, damaged: dict[int, bytes]) -> None:
    first, *more = damaged
    where = f"line {first} is" if not more else f"lines {first} and {len(more)} more are"
    warnings.warn(f"{path}: {where} damaged and left out; the others are kept", stacklevel=3)


def _lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
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
