"""The report of a training while it goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from jebm.data import Source
from jebm.report import page
from jebm.runs import starts
from jebm.runs.directory import RunDirectory

__all__ = ["during"]

SHARE = 0.02  # of a training's time that its report may take, at most


@contextlib.contextmanager
def during(directory: RunDirectory, command: str, log: Callable[[str], Any]) -> Iterator[Callable[[Source], None]]:
    """``on_grid`` of `jebm.training.train`: the first call keeps the start, each writes a report that renews itself.

    A page is not written where that would take more than `SHARE` of the time. If the training ends early, by a signal
    or an error, the last page stays, and renews itself no more; after its end the caller writes the whole one.

    Args:
        directory: the run.
        command: that started it.
        log: called with a line for the user that says where the report is.
    """
    started, next_at = False, 0.0

    def write(source: Source) -> None:
        nonlocal started, next_at
        if not started:
            starts.add(directory.starts, starts.now(command))
            log(f"report: {directory.report} shows this training while it goes on")
            started = True
        begun = time.monotonic()
        if begun >= next_at:
            page.write(directory, source, live=True)
            took = time.monotonic() - begun
            next_at = begun + took / SHARE

    try:
        yield write
    except BaseException:
        if started:
            with contextlib.suppress(Exception):
                page.still(directory)
        raise
