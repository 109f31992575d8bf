"""Divergence: the rules by which it is seen, and what a run changes before it tries again.

Pure functions over what is logged. A rule looks at one line of metrics and at the healthy lines before it, at most
`WINDOW` of them; medians need at least `ENOUGH` lines. In the order in which they are asked:

* ``not finite``: any metric is NaN or infinite.
* ``update``: one step changed a network by more than ``update_ratio`` of its norm; the only rule of size that needs no
  past, for a run that is wrong from its first step.
* ``energy gap``: |gap - median| > ``gap_deviations`` · max(MAD, 1 % of the median |gap|), MAD the median deviation.
* ``stuck gap``: the gap kept one sign and grew away from 0 over ``stuck_lines`` lines: the sampler or the data wins.
* ``collapsed``, ``exploded``: a chain displacement or a gradient norm is below median / ``ratio`` or above
  median · ``ratio``: frozen or runaway chains, an energy gone flat or steep.

What a recovery then does is in `jebm.training.loop`: the whole state goes back to a healthy checkpoint, takes a fresh
key, and goes on with `backed_off` settings. A value that is not finite is never replaced by a number.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jebm.config import ConfigError, RecoveryConfig

__all__ = ["ENOUGH", "WINDOW", "Event", "backed_off", "check_back_off", "diagnose", "watched"]

WINDOW = 50
ENOUGH = 10

Line = Mapping[str, float]


class Event(NamedTuple):
    """One recovery, as it stands in the metrics' log and in the checkpoints.

    Attributes:
        attempt: 1 for the first.
        detected: the step whose metrics were not healthy.
        restored: the step of the checkpoint that the run went back to; 0 for a fresh start.
        reason: the rule and its figures, in words.
    """

    attempt: int
    detected: int
    restored: int
    reason: str


def watched(line: Line) -> dict[str, float]:
    """The entries of a line that the rules compare with earlier lines."""
    return {name: value for name, value in line.items() if name == "energy_gap" or _has_scale(name)}


def diagnose(rules: RecoveryConfig, history: Sequence[Line], line: Line) -> str | None:
    """What is wrong with ``line`` after the healthy lines ``history`` (`watched` entries, newest last), or None."""
    bad = sorted(name for name, value in line.items() if not math.isfinite(value))
    if bad:
        return f"{', '.join(bad)} is not finite"
    for name, value in line.items():
        if name.startswith("update_ratio/") and value > rules.update_ratio > 0:
            return f"{name} {value:.4g}: one step changes more than {rules.update_ratio:.4g} of the network"
    history = history[-WINDOW:]
    return _gap(rules, [h["energy_gap"] for h in history if "energy_gap" in h], line) or _scale(rules, history, line)


def _gap(rules: RecoveryConfig, past: list[float], line: Line) -> str | None:
    if "energy_gap" not in line:
        return None
    gap = line["energy_gap"]
    if rules.gap_deviations and len(past) >= ENOUGH:
        median = statistics.median(past)
        deviation = statistics.median(abs(value - median) for value in past)
        allowed = rules.gap_deviations * max(deviation, 0.01 * statistics.median(map(abs, past)))
        if abs(gap - median) > allowed > 0:
            return f"energy gap {gap:.4g} is {abs(gap - median):.4g} from its median, more than {allowed:.4g}"
    recent = [*past, gap][-rules.stuck_lines - 1 :]
    if rules.stuck_lines and len(recent) == rules.stuck_lines + 1:
        pairs = list(zip(recent[:-1], recent[1:], strict=True))
        if all(a * b > 0 and abs(b) > abs(a) for a, b in pairs):
            return f"stuck gap: from {recent[0]:.4g} to {gap:.4g} in {rules.stuck_lines} lines without a break"
    return None


def _scale(rules: RecoveryConfig, history: Sequence[Line], line: Line) -> str | None:
    for name in sorted(filter(_has_scale, line)) if rules.ratio else ():
        past = [h[name] for h in history if name in h]
        median = statistics.median(past) if len(past) >= ENOUGH else 0.0
        if median > 0 and not median / rules.ratio <= line[name] <= median * rules.ratio:
            word = "exploded" if line[name] > median else "collapsed"
            return f"{name} {word}: {line[name]:.4g}, its median was {median:.4g}"
    return None


def _has_scale(name: str) -> bool:
    return name.endswith(("gradient_norm", "displacement", "drift"))


def check_back_off(method_config: Any, recovery: RecoveryConfig) -> None:
    """Raises `ConfigError` where a recovery is to change what the method has not."""
    names = _numbers(method_config)
    for name, neutral, ending in (("step_size_factor", 1.0, "step_size"), ("energy_regularization", 0.0, None)):
        value = getattr(recovery, name)
        if value != neutral and not any(n.endswith(ending or name) for n in names):
            raise ConfigError(f"training.recovery.{name}={value}: {type(method_config).__name__} has no such setting")


def backed_off(method_config: Any, recovery: RecoveryConfig, attempt: int) -> Any:
    """The method's configuration for the ``attempt``-th try; 0 gives it back as it is.

    Every number named ``...learning_rate`` (or rows of rate and first step) or ``...step_size``, in nested groups too,
    is multiplied by its factor to the power ``attempt``; ``attempt`` times the added term goes onto
    ``energy_regularization``.
    """
    if attempt == 0:
        return method_config
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(method_config):
        value = getattr(method_config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = backed_off(value, recovery, attempt)
        elif field.name.endswith("learning_rate"):
            factor = recovery.learning_rate_factor**attempt
            rows = isinstance(value, tuple)
            changes[field.name] = tuple((v * factor, first) for v, first in value) if rows else value * factor
        elif not isinstance(value, float):
            continue
        elif field.name.endswith("step_size"):
            changes[field.name] = value * recovery.step_size_factor**attempt
        elif field.name == "energy_regularization":
            changes[field.name] = value + attempt * recovery.energy_regularization
    return dataclasses.replace(method_config, **changes)


def _numbers(config: Any) -> list[str]:
    """Names of all floating fields, those of nested groups too."""
    out: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            out += _numbers(value)
        elif isinstance(value, float):
            out.append(field.name)
    return out
