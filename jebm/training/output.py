"""Output that a training outlives: a closed terminal, ``| head``, a full disk under a redirected stream."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["Surviving", "surviving_streams"]

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)  # the reader, or the terminal


class Surviving:
    """A text stream whose writes do not raise OSError: what cannot be written is lost.

    Where the reader has gone, the stream goes to the null device from then on, so that nothing fails at exit either.
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
