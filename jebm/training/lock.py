"""One training at a time in a run directory."""

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator

from jebm import paths
from jebm.errors import ConfigError

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: paths.Path) -> Iterator[None]:
    """Holds a lock on the file ``path``, created if missing, which names the holder.

    The system releases it when the process ends, also when it is killed; the file stays. On a file system without locks
    there is a warning, and no lock; an object store is such a one.

    Raises:
        ConfigError: another process holds it.
    """
    if paths.is_remote(path):
        _warn(path, "object stores have no locks")
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: paths.Path) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EACCES):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            raise ConfigError(
                f"{path.parent}: another training is running in it ({holder}): wait for it, or take another --workdir"
            ) from None
        _warn(path, error)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _warn(path: paths.Path, reason: object) -> None:
    warnings.warn(f"{path} cannot be locked ({reason}): start one training at a time in {path.parent}", stacklevel=5)
