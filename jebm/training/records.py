"""``metrics.jsonl``: one JSON object a logged step."""

import json
import math
import os
import pathlib
from typing import Any

__all__ = ["MetricsFile", "read_metrics"]


class MetricsFile:
    """Appends to ``metrics.jsonl``; opened at a step, it first drops the lines of later steps."""

    def __init__(self, path: pathlib.Path, start_step: int) -> None:
        """Opens ``path`` for the steps after ``start_step``."""
        kept = [line for line in read_metrics(path) if line["step"] <= start_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line and hands it to the system, so that a killed process loses none."""
        # JSON has no NaN: a diverged value is written as null, never as a number
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
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
