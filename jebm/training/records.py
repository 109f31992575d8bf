"""``metrics.jsonl``: one JSON object a logged step."""

import json
import math
import os
import pathlib
from typing import Any

__all__ = ["MetricsFile", "read_metrics"]


class MetricsFile:
    """Appends to ``metrics.jsonl``: lines of metrics, and of recoveries (``"event": "recovery"``)."""

    def __init__(self, path: pathlib.Path, start_step: int, recoveries: int = 0, writes: bool = True) -> None:
        """Opens ``path`` for the steps after ``start_step``, as `rewind`; where not ``writes``, it does nothing."""
        self._path, self._file = path, None if not writes else path.open("a")
        self.rewind(start_step, recoveries)

    def rewind(self, step: int, recoveries: int) -> None:
        """Drops the lines of later steps, and of recoveries after the first ``recoveries``."""
        if self._file is None:
            return
        self._file.close()
        lines = read_metrics(self._path)
        kept = [line for line in lines if line["step"] <= step and line.get("attempt", 0) <= recoveries]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self._path)
        self._file = self._path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line and hands it to the system, so that a killed process loses none."""
        if self._file is None:
            return
        # JSON has no NaN: a diverged value is written as null, never as a number
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
