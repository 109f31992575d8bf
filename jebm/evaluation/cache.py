"""Files that outlive a run: weights that were given once, statistics that take long."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["cache_directory", "write_arrays"]


def cache_directory() -> Path:
    """``$JEBM_CACHE``, else ``$XDG_CACHE_HOME/jebm``, else ``~/.cache/jebm``; it need not exist yet."""
    own = os.environ.get("JEBM_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jebm"


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
