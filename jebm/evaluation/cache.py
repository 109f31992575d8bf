"""Measurements that are a function of the data alone, kept in the cache directory: the second evaluation reads them."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

from jebm import files

__all__ = ["kept"]


def kept(folder: str, key: Any, measure: Callable[[], Any]) -> Any:
    """``measure()``, JSON values, or what it gave before under the same key.

    Args:
        folder: of `jebm.files.cache_directory`.
        key: JSON values that say all that the result depends on.
        measure: called where there is no such file or a damaged one.
    """
    text = json.dumps(key, sort_keys=True)
    path = files.cache_directory() / folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads(path.read_text())["result"]
    result = measure()
    content = json.dumps({"key": key, "result": result}, indent=1, allow_nan=False)
    with contextlib.suppress(OSError), files.whole(path) as temporary:  # a cache that cannot be written is none
        temporary.write_text(content)
    return result
