"""Errors that a user can mend, and the checks that raise them: one line, what was given and what is allowed."""

import difflib
import functools
import math
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

__all__ = ["ConfigError", "DataError", "JebmError", "check", "nearest", "short_traceback"]

P = ParamSpec("P")
R = TypeVar("R")


class JebmError(ValueError):
    """An error that a user can mend; the message is one line, which the command line prints without a traceback."""


class ConfigError(JebmError):
    """A wrong configuration or option; the message names it, the value and what is allowed."""


class DataError(JebmError):
    """Data that cannot be used: files, or what a model made; the message names the file and the array, if any."""


def check(config: Any, **rules: str) -> None:
    """Checks numeric fields against rules such as ``">=0"``, ``">0"``, ``"in (0, 1)"``, ``"in [0, 1]"``.

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
    "in [0, 1]": lambda v: 0 <= v <= 1,
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


def short_traceback(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` whose errors show no frames of jebm and JAX in a notebook, but the last.

    They are hidden, not removed: IPython says how many. ``JAX_TRACEBACK_FILTERING=off`` shows them, as it does JAX's.
    Outside IPython nothing is hidden.
    """

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except Exception as error:
            ipython, jax = sys.modules.get("IPython"), sys.modules.get("jax")
            if ipython is None or ipython.get_ipython() is None:
                raise
            if jax is None or jax.config.jax_traceback_filtering != "off":
                folders = [pathlib.Path(str(module.__file__)).parent for module in (sys.modules["jebm"], jax) if module]
                for frame, _ in traceback.walk_tb(error.__traceback__):
                    if any(folder in pathlib.Path(frame.f_code.co_filename).parents for folder in folders):
                        frame.f_locals["__tracebackhide__"] = True
            raise

    return call
