"""``starts.json``: when, by which command, with which programs and on what a run was trained, a row a start."""

import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import jax

from jebm import files, paths
from jebm.errors import ConfigError

__all__ = ["Start", "add", "duration", "now", "read"]

PACKAGES = ("jebm", "jax", "jaxlib", "flax", "optax")


class Start(NamedTuple):
    """A start of a training.

    Attributes:
        time: seconds since 1970.
        command: that started it.
        device: in words.
        versions: of Python and packages, in words.
        commit: of the checkout of jebm, with a ``+`` where its files are changed; empty outside one.
    """

    time: float
    command: str
    device: str
    versions: str
    commit: str


def now(command: str) -> Start:
    """This start, on the devices of all processes."""
    first, count = jax.devices()[0], jax.device_count()
    kind = f"CPU, {os.cpu_count()} cores" if first.platform == "cpu" else first.device_kind
    device = kind if count == 1 else f"{count} × {kind}"
    versions = [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in PACKAGES)]
    return Start(
        round(time.time(), 3), command, device, ", ".join(versions), _commit(pathlib.Path(__file__).parents[2])
    )


def add(path: paths.Path, start: Start) -> None:
    """Adds a row, the file whole or not at all.

    Raises:
        ConfigError: a file that cannot be read.
    """
    rows = [row._asdict() for row in [*read(path), start]]
    with files.whole(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")


def read(path: paths.Path) -> Sequence[Start]:
    """The rows; none without a file.

    Raises:
        ConfigError: a file that cannot be read.
    """
    if not path.is_file():
        return []
    try:
        starts = [Start(**row) for row in json.loads(path.read_text())]
        if not all(isinstance(s.time, float | int) and all(isinstance(text, str) for text in s[1:]) for s in starts):
            raise ValueError("a time is no number, or a text is none")
        return starts
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; move it away") from None


def duration(seconds: float) -> str:
    """A time in words, such as ``3 min 12 s``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _commit(root: pathlib.Path) -> str:
    """Twelve digits, where ``root`` is a checkout and git is there."""
    if not (root / ".git").exists():
        return ""
    try:
        say = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = say("status", "--porcelain", "--untracked-files=no")
        return say("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        return ""
