"""Files written whole or not at all, and the folder of those that outlive a run."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jebm import paths
from jebm.errors import ConfigError

__all__ = ["cache_directory", "whole", "write_arrays"]


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends; the block writes and closes that file.

    The content is on disk before it gets the name. After an error ``path`` is as before and the temporary file is
    gone; only a killed process leaves one, ``<name>.<random>.tmp``. Missing folders are made.

    Raises:
        OSError: of the block or the system; it names ``path`` rather than the temporary file or no file.
    """
    path = Path(path)
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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an ``.npz``, whole or not at all."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


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
