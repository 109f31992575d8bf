"""Paths that a user gives, and the folders that a user has."""

import os
import pathlib
import re

__all__ = ["local", "user_cache"]


def local(text: str) -> pathlib.Path:
    """The path in ``text``, a leading ``~`` expanded.

    Raises:
        ValueError: nothing, a remote place such as ``gs://bucket/x``, a user that there is not, a null character.
    """
    if not text:
        raise ValueError("an empty path; give the name of a file or a folder")
    if "\0" in text:
        raise ValueError(f"{text!r}: a path cannot hold a null character")
    if remote := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", text):  # one stroke: what a Path makes of two
        raise ValueError(f"{text!r}: {remote[1]}:// is not supported; give a local path, or mount it as a folder")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise ValueError(f"{text!r}: there is no home folder of {user!r}; give the whole path") from None


def user_cache() -> pathlib.Path | None:
    """``$XDG_CACHE_HOME/jebm``, else ``~/.cache/jebm``; None for a user without a home, as in some containers."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "jebm"
    except RuntimeError:
        return None
