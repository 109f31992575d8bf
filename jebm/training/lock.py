"""One training at a time in a run directory."""

import contextlib
import errno
import os
import pathlib
import socket
import warnings
from collections.abc import Iterator

from jebm.errors import ConfigError

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock on the file ``path``, created if missing, which names the holder.

    The system releases it when the process ends, also when it is killed; the file stays. On a file system without locks
    there is a warning, and no lock.

    Raises:
        ConfigError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: pathlib.Path) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EACCES):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            raise ConfigError(
                f"{path.parent}: another training is running in it ({holder}): wait for it, or take another --workdir"
            ) from None
        warnings.warn(f"{path} cannot be locked ({error}): start one training at a time in {path.parent}", stacklevel=4)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
