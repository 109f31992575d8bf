"""Paths that a user gives, on this machine or in an object store, and the folders that a user has."""

import importlib.util
import os
import pathlib
import re
from typing import TYPE_CHECKING, TypeAlias

__all__ = ["Path", "check", "is_remote", "local", "of", "place", "require_checkpoints", "user_cache"]

if TYPE_CHECKING:  # a path on this machine, or one of etils.epath in an object store, which has the same methods
    from etils import epath

    Path: TypeAlias = pathlib.Path | epath.Path
else:
    Path = pathlib.PurePath

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")  # one stroke: what a Path makes of two


def check(text: str) -> str:
    """``text``, if it is a path of this machine or ``gs://BUCKET/...``, ``s3://BUCKET/...``; nothing is looked at.

    Raises:
        ValueError: as `local`; another scheme, or no bucket.
    """
    remote = SCHEME.match(text)
    if not remote or "\0" in text:
        return str(local(text))
    if remote[1] not in PACKAGES:
        raise ValueError(f"{text!r}: {remote[1]}:// is not supported; give a local path, gs:// or s3://")
    if not re.match(r"\w+://[^/]", text):
        raise ValueError(f"{text!r}: there is no bucket in it; write {remote[1]}://BUCKET/NAME")
    return text.rstrip("/")


def place(text: str) -> Path:
    """The path in ``text``, see `check`; an object store is asked whether it can be reached.

    Raises:
        ValueError: as `check`; a scheme whose package is not installed; a bucket that cannot be reached.
    """
    scheme, strokes, _ = (text := check(text)).partition("://")
    if not strokes:
        return pathlib.Path(text)
    import fsspec

    if not ({scheme, "gcs" if scheme == "gs" else scheme} & set(fsspec.registry) or _installed(PACKAGES[scheme])):
        package = PACKAGES[scheme]
        raise ValueError(f"{text!r}: {scheme}:// needs {package}, which is not installed: pip install {package}")
    from etils import epath

    path = epath.Path(text)
    try:
        path.exists()
    except Exception as error:  # of the package, in many kinds: no network, no right, no such bucket
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{text!r} cannot be reached ({reason})") from None
    return path


def of(path: "str | os.PathLike[str]") -> Path:
    """``path`` as an object: a text as `place` reads it, one in an object store as it is.

    Raises:
        ValueError: as `place`.
    """
    if isinstance(path, pathlib.PurePath) and is_remote(path):
        return path
    return place(os.fspath(path))


def _installed(package: str) -> bool:
    """Whether epath can use a scheme: by its package, or by TensorFlow, which it prefers."""
    return any(importlib.util.find_spec(name) for name in (package, "tensorflow"))


def local(text: str) -> pathlib.Path:
    """The path in ``text``, a leading ``~`` expanded.

    Raises:
        ValueError: nothing, a remote place such as ``gs://bucket/x``, a user that there is not, a null character.
    """
    if not text:
        raise ValueError("an empty path; give the name of a file or a folder")
    if "\0" in text:
        raise ValueError(f"{text!r}: a path cannot hold a null character")
    if remote := SCHEME.match(text):
        raise ValueError(f"{text!r}: {remote[1]}:// is not supported here; give a local path, or mount it as a folder")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise ValueError(f"{text!r}: there is no home folder of {user!r}; give the whole path") from None


def is_remote(path: pathlib.PurePath) -> bool:
    """Whether ``path`` is in an object store: objects are written whole, not appended to, renamed or locked."""
    return not isinstance(path, pathlib.Path)


def require_checkpoints(path: Path) -> Path:
    """``path``, a run directory, if orbax writes checkpoints there.

    Raises:
        ValueError: an object store that it does not write to.
    """
    if is_remote(path) and not str(path).startswith("gs://"):
        raise ValueError(f"'{path}': checkpoints go to local folders and gs:// alone; give one of these")
    return path


def user_cache() -> pathlib.Path | None:
    """``$XDG_CACHE_HOME/jebm``, else ``~/.cache/jebm``; None for a user without a home, as in some containers."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "jebm"
    except RuntimeError:
        return None
