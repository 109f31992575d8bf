"""Errors that a user can mend, and the checks that raise them: one line, what was given and what is allowed."""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["ConfigError", "DataError", "JebmError", "check", "nearest"]


class JebmError(ValueError):
    """An error that a user can mend; the message is one line, which the command line prints without a traceback."""


class ConfigError(JebmError):
    """A wrong configuration or option; the message names it, the value and what is allowed."""


class DataError(JebmError):
    """Data that cannot be used: files, or what a model made; the message names the file and the array, if any."""


def check(config: Any, **rules: str) -> None:
    """Checks numeric fields against rules such as ``">=0"``, ``">0"``, ``"in (0, 1)"``, ``"in [0, 1)"``.

    Raises:
        ConfigError: a field outside its range. None passes (its value will be chosen by a rule).
    """
    for name, rule in rules.items():
        value = getattr(config, name)
        # a whole number is finite, however large; `math.isfinite` would turn it into a float
        if value is not None and not ((isinstance(value, int) or math.isfinite(value)) and _RULES[rule](value)):
            raise ConfigError(f"{name}={shown(value)} is out of range: it must be {rule}")


_RULES: dict[str, Callable[[Any], bool]] = {
    ">0": lambda v: v > 0,
    ">=0": lambda v: v >= 0,
    ">=1": lambda v: v >= 1,
    ">=2": lambda v: v >= 2,
    "in [0, 1)": lambda v: 0 <= v < 1,
    "in (0, 1]": lambda v: 0 < v <= 1,
    "in [0, 2**63)": lambda v: 0 <= v < 2**63,
}


def shown(value: Any) -> str:
    """``repr(value)``, shortened to a line or two."""
    try:
        return shorter(repr(value))
    except (ValueError, RecursionError):  # Python writes no number of thousands of digits, nor lists as deep
        return f"({type(value).__name__})"


def shorter(text: str) -> str:
    """The text, shortened to a line or two."""
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text):,} characters)"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest of the allowed names, or nothing.

    Examples:
        >>> from jebm.errors import nearest
        >>> nearest("num_stps", ["num_steps", "seed"])
        " (did you mean 'num_steps'?)"
    """
    if len(name) > 200:  # no slip of the keyboard, and the comparison takes time
        return ""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
