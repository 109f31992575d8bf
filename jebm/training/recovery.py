"""Divergence: the rules by which it is seen, and what a run changes before it tries again.

Pure functions over what is logged. A rule looks at one line of metrics and at the healthy lines before it, at most
`WINDOW` of them; medians need at least `ENOUGH` lines. In the order in which they are asked:

* ``not finite``: any metric is NaN or infinite.
* ``update``: one step changed a network by more than ``update_ratio`` of its norm; the only rule of size that needs no
  past, for a run that is wrong from its first step.
* ``energy gap``: |gap - median| > ``gap_deviations`` · max(MAD, 1 % of the median |gap|, 5 % of the largest), MAD the
  median deviation; the largest, since a gap grows by itself while an energy wakes from its first weights.
* ``stuck gap``: the gap kept one sign and grew away from 0 over ``stuck_lines`` lines: the sampler or the data wins.
* ``collapsed``, ``exploded``: a chain displacement or a gradient norm is below median / ``ratio`` or above
  median · ``ratio`` and twice the largest: frozen or runaway chains, an energy gone flat or steep.

Those rules compare a run with its own past, or one step with the network. `senseless` holds the absolute ones, for runs
that are finite and steady but wrong from their first line; each has its bound and the reason for it in a constant:

* ``displacement``, ``saturated``, ``gradient``: one line is enough.
* ``frozen``, ``flat``: so in each of `LASTING` or `ENOUGH` lines; backing off would not mend it, so none is tried.
* ``runaway gap``: over `GROWTH_LINES` lines the gap grows ever further above 0, as with the loss's sign turned round.

`jebm.training.loop` then recovers: the whole state goes back to a healthy checkpoint, takes a fresh
key, and resumes with `backed_off` settings. A value that is not finite is never replaced by a number.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jebm.config import RecoveryConfig
from jebm.errors import ConfigError

__all__ = [
    "ENERGIES", "ENOUGH", "WINDOW", "Event", "Scale", "Senseless", "backed_off", "check_back_off", "diagnose",
    "senseless", "watched",
]  # fmt: skip

WINDOW = 50
ENOUGH = 10

# Bounds of the absolute rules. In brackets, what healthy runs of all families reached (results/scaling.md).
# Images lie in [-1, 1] and latents are of that size: a chain that moves ten half-ranges from its start is near no image
# [1.9].
MOST_DISPLACEMENT = 10.0
# Samples whose every value is beyond black or white; images of black and white alone leave some within [0.43].
MOST_SATURATED = 0.999
# |gradient| per value of an image: losses are sums over the image of errors of about 1, so their gradients grow with it
# [40]. Beyond, one term is so large (a dual variable, a weight) that in float32 the others are lost beside it.
MOST_GRADIENT = 1e4
# |change| of a network over its norm: half of float32's spacing is 6e-8, so less changes next to nothing [7.6e-5].
LEAST_UPDATE = 1e-8
LASTING = 5
# |energy| in units of the temperature, of data and samples both: exp(-E/T) is 1 within this everywhere, so that a chain
# walks as if there were no energy. A network's first energies can be small: `ENOUGH` lines, not one [4e-4].
LEAST_ENERGY = 1e-5
# Medians of the gap in blocks of lines, each above 0 and above the one before by this factor [1.1; flipped: 1.5].
GROWTH_LINES = 25
GROWTH_BLOCKS = 5
GROWTH = 1.2

Line = Mapping[str, float]


class Event(NamedTuple):
    """One recovery, as the metrics' log and the checkpoints hold it.

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


class Scale(NamedTuple):
    """The units in which the absolute rules measure a run.

    Attributes:
        dimension: values of one image.
        temperature: of the energies that are logged (`jebm.methods.base.Method.temperature`).
    """

    dimension: int
    temperature: float


class Senseless(NamedTuple):
    """Finding of an absolute rule.

    Attributes:
        reason: the rule and its figures, in words.
        advice: what to change, a sentence without its full stop.
        lasting: backing off would not mend it.
    """

    reason: str
    advice: str
    lasting: bool = False


def watched(line: Line) -> dict[str, float]:
    """The entries of a line that the rules compare with earlier lines."""
    others = ("energy_gap", *ENERGIES)
    return {n: value for n, value in line.items() if n in others or n.startswith("update_ratio/") or _has_scale(n)}


def diagnose(rules: RecoveryConfig, history: Sequence[Line], line: Line) -> str | None:
    """The fault of ``line`` after the healthy lines ``history`` (`watched` entries, newest last), or None."""
    bad = sorted(name for name, value in line.items() if not math.isfinite(value))
    if bad:
        return f"{', '.join(bad)} is not finite"
    for name, value in line.items():
        if name.startswith("update_ratio/") and value > rules.update_ratio > 0:
            return f"{name} {value:.4g}: one step changes more than {rules.update_ratio:.4g} of the network"
    history = history[-WINDOW:]
    return _gap(rules, [h["energy_gap"] for h in history if "energy_gap" in h], line) or _scale(rules, history, line)


ENERGIES = ("energy_data", "energy_negative")


def senseless(scale: Scale, history: Sequence[Line], line: Line) -> Senseless | None:
    """The absolute fault of ``line`` after ``history`` (`watched` entries, newest last), or None.

    Values that are not finite are `diagnose`'s.
    """
    chain = "Lower the chain's step size or noise scale"
    for name in sorted(line):
        value = line[name]
        if name.endswith("displacement") and value > MOST_DISPLACEMENT:
            return Senseless(
                f"{name} {value:.4g}: a chain moves more than {MOST_DISPLACEMENT:g} times the images' half-range from "
                "its start (rule: displacement)", chain
            )  # fmt: skip
        if name == "saturated_pixels" and value > MOST_SATURATED:
            return Senseless(f"{name} {value:.4g}: every value of the samples is beyond black or white (rule: "
                             "saturated)", chain)  # fmt: skip
        if name.endswith("gradient_norm") and value > MOST_GRADIENT * scale.dimension:
            return Senseless(
                f"{name} {value:.4g}: more than {MOST_GRADIENT:g} for each of an image's {scale.dimension} values, so "
                "that one term drowns the others (rule: gradient)",
                "Lower the weight of that loss's largest term (a dual variable, the KL term) or the chain's step size",
            )
    return _frozen(history, line) or _flat(scale, history, line) or _runaway(history, line)


def _frozen(history: Sequence[Line], line: Line) -> Senseless | None:
    recent = [*history, line][-LASTING:]
    for name in sorted(n for n in line if n.startswith("update_ratio/")):
        if len(recent) == LASTING and all(past.get(name, math.inf) < LEAST_UPDATE for past in recent):
            return Senseless(
                f"{name} {line[name]:.4g} in {LASTING} lines: the network does not train, an update is below the "
                "rounding of float32 (rule: frozen)", "Raise its learning rate", lasting=True
            )  # fmt: skip
    return None


def _flat(scale: Scale, history: Sequence[Line], line: Line) -> Senseless | None:
    recent = [[past[n] for n in ENERGIES if n in past] for past in [*history, line][-ENOUGH:]]
    if len(recent) < ENOUGH or not all(recent):
        return None
    largest = max(abs(value) for values in recent for value in values) / scale.temperature
    if largest >= LEAST_ENERGY:
        return None
    return Senseless(
        f"energies are at most {largest:.4g} of the temperature {scale.temperature:.4g} in {ENOUGH} lines: chains walk "
        "as if there were no energy (rule: flat)", "Lower the temperature", lasting=True
    )  # fmt: skip


def _runaway(history: Sequence[Line], line: Line) -> Senseless | None:
    gaps = [past["energy_gap"] for past in [*history, line] if "energy_gap" in past][-GROWTH_LINES:]
    if "energy_gap" not in line or len(gaps) < GROWTH_LINES:
        return None
    size = GROWTH_LINES // GROWTH_BLOCKS
    medians = [statistics.median(gaps[i : i + size]) for i in range(0, GROWTH_LINES, size)]
    grows = all(later > GROWTH * earlier for earlier, later in zip(medians[:-1], medians[1:], strict=True))
    if medians[0] <= 0 or not grows:
        return None
    return Senseless(
        f"runaway gap: the energy of data minus that of samples grew from {medians[0]:.4g} to {medians[-1]:.4g} in "
        f"{GROWTH_LINES} lines, where training lowers it (rule: runaway gap)",
        "Look for a sign turned round in the loss, or lower the learning rates and the chain's step size",
    )


def _gap(rules: RecoveryConfig, past: list[float], line: Line) -> str | None:
    if "energy_gap" not in line:
        return None
    gap = line["energy_gap"]
    if rules.gap_deviations and len(past) >= ENOUGH:
        median = statistics.median(past)
        deviation = statistics.median(abs(value - median) for value in past)
        sizes = [abs(value) for value in past]
        allowed = rules.gap_deviations * max(deviation, 0.01 * statistics.median(sizes), 0.05 * max(sizes))
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
        # twice the largest: norms, too, grow by themselves while an energy wakes
        highest = max(median * rules.ratio, 2.0 * max(past)) if past else 0.0
        if median > 0 and not median / rules.ratio <= line[name] <= highest:
            word = "exploded" if line[name] > median else "collapsed"
            return f"{name} {word}: {line[name]:.4g}, its median was {median:.4g}"
    return None


def _has_scale(name: str) -> bool:
    return name.endswith(("gradient_norm", "displacement", "drift"))


def check_back_off(method_config: Any, recovery: RecoveryConfig) -> None:
    """Raises ConfigError if the recovery settings scale a field that the method's configuration lacks."""
    for name, kind, neutral in (
        ("step_size_factor", "step_size", 1.0), ("energy_regularization", "energy_regularization", 0.0)
    ):  # fmt: skip
        value = getattr(recovery, name)
        if value != neutral and not _fields(method_config, kind):
            raise ConfigError(f"training.recovery.{name}={value}: {type(method_config).__name__} has no such setting")


def backed_off(method_config: Any, recovery: RecoveryConfig, attempt: int) -> Any:
    """The method's configuration for the ``attempt``-th try; attempt 0 leaves it as it is.

    Which fields change is the family's ``BACK_OFF``: its learning rates (numbers, or rows of rate and first step) and
    the step sizes of its chains in training are multiplied by their factor to the power ``attempt``; ``attempt`` times
    the added term is added to its regularisation of energies.
    """
    if attempt == 0:
        return method_config
    factors = {
        "learning_rate": recovery.learning_rate_factor**attempt, "step_size": recovery.step_size_factor**attempt
    }  # fmt: skip
    for kind, factor in factors.items():
        for path in _fields(method_config, kind):
            method_config = _changed(method_config, path, lambda value: _times(value, factor))  # noqa: B023
    for path in _fields(method_config, "energy_regularization"):
        added = attempt * recovery.energy_regularization
        method_config = _changed(method_config, path, lambda value: value + added)  # noqa: B023
    return method_config


def _fields(method_config: Any, kind: str) -> tuple[str, ...]:
    return tuple(type(method_config).BACK_OFF.get(kind, ()))


def _changed(config: Any, path: str, change: Callable[[Any], Any]) -> Any:
    name, _, rest = path.partition(".")
    value = getattr(config, name)
    return dataclasses.replace(config, **{name: _changed(value, rest, change) if rest else change(value)})


def _times(value: Any, factor: float) -> Any:
    return tuple((v * factor, first) for v, first in value) if isinstance(value, tuple) else value * factor
