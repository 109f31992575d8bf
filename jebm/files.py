"""Files that outlive a run: weights that were given once, statistics that take long."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jebm import paths

__all__ = ["cache_directory", "write_arrays"]


def cache_directory() -> Path:
    """``$JEBM_CACHE``, else ``$XDG_CACHE_HOME/jebm``, else ``~/.cache/jebm``; it need not exist yet.

    For a user without a home it is a folder of that user's number where temporary files lie.

    Raises:
        ValueError: ``$JEBM_CACHE`` is no local path.
    """
    own = os.environ.get("JEBM_CACHE")
    if own:
        try:
            return paths.local(own)
        except ValueError as error:
            raise ValueError(f"JEBM_CACHE={error}") from None
    return paths.user_cache() or Path(tempfile.gettempdir()) / f"jebm-{os.getuid()}"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an ``.npz``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    path.chmod(0o644)  # temporary files are private
