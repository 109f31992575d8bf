"""Files written whole or not at all, also those from elsewhere, and the folder of those that outlive a run."""

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

import numpy as np

from jebm import paths
from jebm.errors import ConfigError, DataError

__all__ = [
    "below", "cache_directory", "download", "lexists", "move", "sha256", "size", "whole", "write_arrays",
]  # fmt: skip


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends; the block writes and closes that file.

    The content is on disk before it gets the name. After an error ``path`` is as before and the temporary file is
    gone; only a killed process leaves one, ``<name>.<random>.tmp``. Missing folders are made. For an object store the
    temporary file is in this machine's folder of such files, and is sent when the block ends.

    Raises:
        OSError: of the block or the system; it names ``path`` rather than the temporary file or no file.
    """
    place = path if isinstance(path, PurePath) else paths.of(path)
    if paths.is_remote(place):
        with tempfile.TemporaryDirectory(prefix="jebm-") as folder:
            yield (temporary := Path(folder) / place.name)
            _send(temporary, place)
        return
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # it would hide the error
            temporary.unlink(missing_ok=True)


def _send(source: Path, target: paths.Path) -> None:
    """Copies a file to or within an object store, which has it whole or not at all."""
    from etils import epath

    try:
        epath.Path(source).copy(target, overwrite=True)
    except Exception as error:  # of the store's package, in many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(errno.EIO, f"it could not be written ({reason})", str(target)) from error


def move(source: paths.Path, target: paths.Path) -> None:
    """Gives a folder another name, in one file system.

    In an object store, which has no such operation, every file is copied and then all are deleted; ``target`` is whole
    before ``source`` is touched.
    """
    if not paths.is_remote(source):
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
        return
    for path in below(source):
        _send(path, target / path.relative_to(source).as_posix())
    source.rmtree()  # type: ignore[union-attr]


def below(folder: paths.Path) -> list[paths.Path]:
    """All files below a folder, in no order."""
    if not paths.is_remote(folder):
        return [path for path in folder.rglob("*") if path.is_file()]
    found: list[paths.Path] = []
    for path in folder.iterdir():
        found += below(path) if path.is_dir() else [path]
    return found


def size(path: paths.Path) -> int:
    """Bytes of a file."""
    about = path.stat()
    return int(about.length if paths.is_remote(path) else about.st_size)  # type: ignore[union-attr]


def lexists(path: paths.Path) -> bool:
    """Whether something has this name, if only a link to nothing."""
    return path.exists() if paths.is_remote(path) else os.path.lexists(path)


def write_arrays(path: paths.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an ``.npz``, whole or not at all."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, target: Path, expected: str) -> None:
    """Downloads a file, whole and of the right hash, or not at all.

    Args:
        url: where it is.
        target: what it is called here.
        expected: its SHA-256, 64 hexadecimal digits.

    Raises:
        DataError: no connection, one that broke off, or another content than expected.
    """
    try:
        with whole(target) as temporary:
            with temporary.open("wb") as file, urllib.request.urlopen(url, timeout=60) as response:
                length = response.headers.get("Content-Length", "")
                while block := response.read(1 << 20):
                    file.write(block)
                read = file.tell()
            if length.isdecimal() and read < int(length):
                raise DataError(
                    f"{url}: it broke off after {read:,} of {int(length):,} bytes; nothing is kept, try again"
                )
            if (found := sha256(temporary)) != expected:
                raise DataError(f"{url}: its SHA-256 is {found[:16]}..., expected {expected[:16]}...; nothing is kept")
    except DataError:
        raise
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(f"{url}: cannot be downloaded ({reason}); bring it by hand to {target}") from error


def cache_directory() -> Path:
    """``$JEBM_CACHE``, else ``$XDG_CACHE_HOME/jebm``, else ``~/.cache/jebm``; it need not exist yet.

    For a user without a home: a folder named after the user's number in the system's folder of temporary files.

    Raises:
        ConfigError: ``$JEBM_CACHE`` is no local path.
    """
    own = os.environ.get("JEBM_CACHE")
    if own:
        try:
            return paths.local(own)
        except ValueError as error:
            raise ConfigError(f"JEBM_CACHE={error}") from None
    return paths.user_cache() or Path(tempfile.gettempdir()) / f"jebm-{os.getuid()}"
