"""Output that a training survives: a closed terminal, ``| head``, a full disk under a redirected stream."""

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jebm import paths

__all__ = ["Surviving", "naming", "progress", "surviving_log", "surviving_streams", "ticking"]

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)  # the reader, or the terminal


class Surviving:
    """A text stream whose writes do not raise OSError: output that cannot be written is lost.

    Once its reader has gone the stream writes to the null device, so that flushing at exit does not fail either.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a text stream's."""
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a text stream's."""
        with self._surviving():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in GONE:
                with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, self._stream.fileno())
                    os.close(null)
        except ValueError:
            if not self._stream.closed:
                raise


@contextlib.contextmanager
def surviving_streams() -> Iterator[None]:
    """`sys.stdout` and `sys.stderr` are `Surviving` within."""
    old = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:  # a process may be started without them
        sys.stdout, sys.stderr = Surviving(sys.stdout or null), Surviving(sys.stderr or null)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = old


def surviving_log(log: Callable[[str], None]) -> Callable[[str], None]:
    """``log`` without OSError: a line that nobody reads ends no training."""

    def surviving(line: str) -> None:
        with contextlib.suppress(OSError):
            log(line)

    return surviving


@contextlib.contextmanager
def naming(path: paths.Path) -> Iterator[None]:
    """Adds ``path`` to an OSError that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def progress(num_steps: int, start: int, shown: bool) -> Iterator[Any]:
    """A progress bar of training on `sys.stderr`, from step ``start``."""
    from tqdm import tqdm

    stream = Surviving(sys.stderr)
    with tqdm(
        file=stream, total=num_steps, initial=start, desc="train", unit="step", dynamic_ncols=True,
        mininterval=0.2 if stream.isatty() else 15.0, disable=not shown,
    ) as bar:  # fmt: skip
        yield bar


@contextlib.contextmanager
def ticking(bar: Any, title: str) -> Iterator[None]:
    """A `tqdm.tqdm` bar whose title is ``title`` and the seconds since, within: for work that moves no bar."""
    if bar.disable:
        yield
        return
    over, begun, before = threading.Event(), time.monotonic(), bar.desc.removesuffix(": ")
    pause = max(1.0, bar.mininterval)  # in a file each look is a line

    def tick() -> None:
        while True:
            bar.set_description(f"{title}, {time.monotonic() - begun:.0f} s")
            if over.wait(pause):
                return

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        bar.set_description(before)
