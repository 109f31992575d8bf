"""Typed, validated configuration.

A configuration is a tree of frozen dataclasses. Each ``configs/**.py`` has one function ``get_config() -> Config``;
``--set key.path=value`` replaces one field, parsed by the field's type; all of them are put in at once, and every check
runs again on the result. The resolved tree goes as JSON into the run directory, and comes back from it.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

__all__ = [
    "Config", "ConfigError", "DataConfig", "EvaluationConfig", "RecoveryConfig", "TrainingConfig", "check",
    "from_dict", "load_file", "nearest", "override", "to_dict",
]  # fmt: skip


class ConfigError(ValueError):
    """A wrong configuration; the message is one line naming the key, the value and what is allowed."""


def check(config: Any, **rules: str) -> None:
    """Checks numeric fields against rules such as ``">=0"``, ``">0"``, ``"in (0, 1)"``, ``"in [0, 1)"``.

    Raises:
        ConfigError: a field outside its range. None passes (a field whose value a rule will choose).
    """
    for name, rule in rules.items():
        value = getattr(config, name)
        # a whole number is finite, however large; `math.isfinite` would turn it into a float
        if value is not None and not ((isinstance(value, int) or math.isfinite(value)) and _RULES[rule](value)):
            raise ConfigError(f"{name}={_shown(value)} is out of range: it must be {rule}")


_RULES: dict[str, Callable[[Any], bool]] = {
    ">0": lambda v: v > 0,
    ">=0": lambda v: v >= 0,
    ">=1": lambda v: v >= 1,
    ">=2": lambda v: v >= 2,
    "in [0, 1)": lambda v: 0 <= v < 1,
    "in (0, 1]": lambda v: 0 < v <= 1,
    "in [0, 2**63)": lambda v: 0 <= v < 2**63,
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and what is done to them.

    Attributes:
        source: ``"digits"`` (bundled), ``"npz:PATH"``, ``"folder:PATH"`` or ``"tfds:NAME[:SPLIT]"``.
        crop: which square of an image is kept before it is brought to the method's size (`jebm.data.geometry`);
            ``"auto"`` is the set's own for ``tfds:``, and the whole image for the others.
        batch_size: images per training step, over all devices.
        workers: processes that decode images which do not fit in memory; 0 for threads. It changes no batch.
        flip: mirror left-right with probability one half.
        dequantize: add uniform noise of one grey level.
    """

    source: str = "digits"
    crop: str = "auto"
    batch_size: int = 128
    workers: int = 0
    flip: bool = False
    dequantize: bool = False

    def __post_init__(self) -> None:
        from jebm.data import DataError, Geometry, check_name

        check(self, batch_size=">=1", workers=">=0")
        for key, parse in (("source", check_name), ("crop", lambda crop: crop == "auto" or Geometry(crop, 1))):
            try:
                parse(getattr(self, key))
            except DataError as error:
                raise ConfigError(f"data.{key}={getattr(self, key)}: {error}") from None


@dataclasses.dataclass(frozen=True)
class RecoveryConfig:
    """What a run does when it diverges (`jebm.training.recovery` states the rules).

    Attributes:
        max_attempts: recoveries before the run stops; 0 stops at the first divergence.
        learning_rate_factor: each recovery multiplies every learning rate of the method by it.
        step_size_factor: each recovery multiplies every Langevin step size of the method by it.
        energy_regularization: each recovery adds it to the method's ``energy_regularization``, where there is one.
        gap_deviations: the energy gap may lie this many median deviations from its median; 0 turns the rule off.
        ratio: chain displacements and gradient norms may leave their median by this factor, up or down; 0 for off.
        stuck_lines: logged lines in which the gap grows away from 0 without a break; 0 turns the rule off.
        update_ratio: one step may change a network by this share of its norm; 0 turns the rule off.
        absolute: the rules that need no past (`jebm.training.recovery.senseless`).
    """

    max_attempts: int = 8
    learning_rate_factor: float = 0.5
    step_size_factor: float = 1.0
    energy_regularization: float = 0.0
    gap_deviations: float = 50.0
    ratio: float = 50.0
    stuck_lines: int = 30
    update_ratio: float = 0.3
    absolute: bool = True

    def __post_init__(self) -> None:
        check(
            self, max_attempts=">=0", learning_rate_factor="in (0, 1]", step_size_factor="in (0, 1]",
            energy_regularization=">=0", gap_deviations=">=0", ratio=">=0", stuck_lines=">=0",
            update_ratio=">=0",
        )  # fmt: skip
        if 0 < self.ratio <= 1:
            raise ConfigError(f"ratio={self.ratio} is out of range: it must be 0, for off, or above 1")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The loop.

    Attributes:
        num_steps: training iterations.
        log_every: steps between lines of ``metrics.jsonl``.
        sample_every: steps between sample grids; 0 for none.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep_checkpoints: how many of the newest stay.
        num_samples: images in a grid.
        evaluate_at_end: score the model when training ends (`jebm evaluate`).
        fsdp: devices over which large parameters are split; a batch is spread over all devices whatever it is.
        seed: of initialisation, data order and every draw.
        recovery: what happens when the run diverges.
    """

    num_steps: int = 1000
    log_every: int = 50
    sample_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    num_samples: int = 64
    evaluate_at_end: bool = False
    fsdp: int = 1
    seed: int = 0
    recovery: RecoveryConfig = dataclasses.field(default_factory=RecoveryConfig)

    def __post_init__(self) -> None:
        check(
            self, num_steps=">=1", log_every=">=1", sample_every=">=0", checkpoint_every=">=1",
            keep_checkpoints=">=1", num_samples=">=1", fsdp=">=1", seed="in [0, 2**63)",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What `jebm evaluate` scores.

    Attributes:
        num_samples: generated images per score.
        batch_size: images per call.
        seed: of the draws.
    """

    num_samples: int = 10_000
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        check(self, num_samples=">=2", batch_size=">=1", seed="in [0, 2**63)")


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: a method's own configuration, and what every experiment has.

    Attributes:
        method: the model family's configuration; its class names the family (`jebm.methods.FAMILIES`).
        data: `DataConfig`.
        training: `TrainingConfig`.
        evaluation: `EvaluationConfig`.
    """

    method: Any
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


def load_file(path: str | pathlib.Path) -> Config:
    """The configuration of a Python file with a function ``get_config()``, its values typed as their fields are.

    Raises:
        ConfigError: no such file, a file that does not run (or ends the program), or one without
            ``get_config() -> Config``.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        candidates = [str(p) for p in pathlib.Path("configs").rglob("*.py")]
        raise ConfigError(f"no configuration file {str(path)!r}{nearest(str(path), candidates)}; see 'jebm configs'")
    namespace: dict[str, Any] = {"__name__": "jebm_config", "__file__": str(path)}
    try:
        exec(compile(path.read_text(), str(path), "exec"), namespace)  # noqa: S102
        if not callable(namespace.get("get_config")):
            raise ConfigError("it has no function get_config(), so it is no configuration file")
        config = namespace["get_config"]()
    except ConfigError as error:
        raise ConfigError(f"{path}{_line_of(error, path)}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the code of a user raises
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise ConfigError(f"{path} does not run{_line_of(error, path)}: {reason}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, not a jebm.config.Config")
    try:
        return from_dict(to_dict(config))  # dataclasses check no types
    except (TypeError, ValueError) as error:  # TypeError: what JSON cannot hold
        raise ConfigError(f"{path}: {_one_line(error)}") from None


def _line_of(error: BaseException, path: pathlib.Path) -> str:
    """``", line 7"``: the last line of the file that an error passed, where there is one."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def override(config: Config, assignments: Iterable[str]) -> Config:
    """``config`` with ``key.path=value`` assignments, each parsed by the type of its field.

    All of them are put in at once and checked together: their order does not matter, but that the last one wins where a
    key is given twice, and no configuration between the given one and the result need be valid.

    Raises:
        ConfigError: a key that is not there, a value of another type, or one out of range.
    """
    given: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {_shown(assignment)}: write key.path=value")
        given[key] = text
    values = {key: _parsed(config, key.split("."), text, key) for key, text in given.items()}
    return _replaced(config, given, values, "") if values else config


def _replaced(node: Any, given: Mapping[str, str], values: Mapping[str, Any], prefix: str) -> Any:
    """``node``, whose keys begin with ``prefix``, with its ``values``: its groups first, then itself, once each."""
    mine = {key: value for key, value in values.items() if key.startswith(prefix)}
    if not mine:
        return node
    changes = {}
    for name in dict.fromkeys(key[len(prefix) :].partition(".")[0] for key in mine):
        child = getattr(node, name)
        group = dataclasses.is_dataclass(child)
        changes[name] = _replaced(child, given, values, f"{prefix}{name}.") if group else mine[prefix + name]
    try:
        return dataclasses.replace(node, **changes)
    except ValueError as error:  # a ConfigError, or what a method's own checks raise
        message = _one_line(error)
    if any(key in message for key in mine):
        raise ConfigError(message)
    raise ConfigError(f"{' '.join(f'{key}={_shorter(given[key])}' for key in mine)}: {message}")


def _parsed(node: Any, path: list[str], text: str, key: str) -> Any:
    """The value of ``key`` below ``node``, where it is ``path``, typed as the field."""
    hints = typing.get_type_hints(type(node))
    names = [field.name for field in dataclasses.fields(node)]
    head, *rest = path
    if head not in names:
        where = key[: len(key) - len(".".join(path))].rstrip(".")
        prefix = where + "." if where else ""
        everything = [prefix + leaf for leaf in _leaves(node)]
        raise ConfigError(
            f"unknown key {_shown(key)}{nearest(key, everything)}; {where or 'a configuration'} has: {', '.join(names)}"
        )
    child = getattr(node, head)
    if dataclasses.is_dataclass(child):
        if not rest:
            raise ConfigError(f"{key!r} is a group of keys: {', '.join(_leaves(child))}")
        return _parsed(child, rest, text, key)
    if rest:
        raise ConfigError(f"unknown key {_shown(key)}: {'.'.join(key.split('.')[: -len(rest)])!r} has no parts")
    return _parse(text, hints[head], key)


def _leaves(node: Any) -> list[str]:
    out = []
    for field in dataclasses.fields(node):
        child = getattr(node, field.name)
        out += [f"{field.name}.{leaf}" for leaf in _leaves(child)] if dataclasses.is_dataclass(child) else [field.name]
    return out


def _parse(text: str, kind: Any, key: str) -> Any:
    if kind is str:
        return text
    raw: Any
    if text.strip().lower() in ("true", "false", "none", "null"):
        raw = {"true": True, "false": False}.get(text.strip().lower())
    else:
        try:
            raw = json.loads(text.replace("(", "[").replace(")", "]"))
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or brackets as deep
            raw = text
    return _coerce(raw, kind, key)


def _coerce(raw: Any, kind: Any, key: str) -> Any:
    """``raw`` (from JSON) as a value of type ``kind``, or a ConfigError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    wrong = ConfigError(f"{key}={_shown(raw)}: expected {_describe(kind)}")
    if origin in (typing.Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        for option in arguments:
            if option is not type(None):
                try:
                    return _coerce(raw, option, key)
                except ConfigError:
                    continue
        raise wrong
    if origin is Literal:
        if (type(raw), raw) not in [(type(a), a) for a in arguments]:  # True == 1 == 1.0
            hint = nearest(str(raw), map(str, arguments)) if isinstance(raw, str) else ""
            raise ConfigError(f"{key}={_shown(raw)}: expected {_describe(kind)}{hint}")
        return raw
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise wrong
        kinds = [arguments[0]] * len(raw) if arguments[1:] == (Ellipsis,) else list(arguments)
        if len(kinds) != len(raw):
            raise wrong
        try:
            return tuple(_coerce(value, k, key) for value, k in zip(raw, kinds, strict=True))
        except ConfigError:
            raise wrong from None  # the whole list is what the user knows
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and not isinstance(raw, bool) and isinstance(raw, int | float) and raw == raw // 1:
        largest = LARGEST_SEED if key.endswith("seed") else LARGEST
        if abs(raw) > largest:
            raise ConfigError(f"{key}={_shown(raw)}: expected {_describe(kind)} of at most {largest:.0e}")
        return int(raw)
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise wrong from None
    if kind is str and isinstance(raw, str):
        return raw
    raise wrong


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is tuple:
        return "a list such as " + ("[[64, 2], [128, 2]]" if typing.get_origin(arguments[0]) else "[1, 2]")
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(kind, str(kind))


LARGEST, LARGEST_SEED = 10**9, 10**19  # of whole numbers: what is above is a slip of the keyboard


def _shown(value: Any) -> str:
    """``repr(value)``, of which a message holds no more than fits into a line or two."""
    try:
        return _shorter(repr(value))
    except (ValueError, RecursionError):  # Python writes no number of thousands of digits, nor lists as deep
        return f"({type(value).__name__})"


def _shorter(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text):,} characters)"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest of the allowed names, or nothing."""
    if len(name) > 200:  # no slip of the keyboard, and the comparison takes time
        return ""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON types, with the family's name in ``method.family``."""
    from jebm import methods

    tree = json.loads(json.dumps(dataclasses.asdict(config)))
    tree["method"] = {"family": methods.family_of(config.method), **tree["method"]}
    return tree


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        ConfigError: an unknown family, an unknown or missing key, or a value out of range.
    """
    from jebm import methods

    groups = {"method", *(field.name for field in dataclasses.fields(Config))}
    if not isinstance(tree, Mapping) or set(tree) != groups or not all(isinstance(t, Mapping) for t in tree.values()):
        raise ConfigError(f"a configuration has the groups {', '.join(sorted(groups))}, and keys in each of them")
    method = dict(tree["method"])
    family = method.pop("family", None)
    if not isinstance(family, str) or family not in methods.FAMILIES:
        raise ConfigError(f"method.family={_shown(family)}: expected one of {sorted(methods.FAMILIES)}")
    return Config(
        method=_build(methods.FAMILIES[family].config_class, method, "method"),
        data=_build(DataConfig, tree["data"], "data"),
        training=_build(TrainingConfig, tree["training"], "training"),
        evaluation=_build(EvaluationConfig, tree["evaluation"], "evaluation"),
    )


def _build(kind: Any, tree: Any, key: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{key}={_shown(tree)}: expected a group of keys")
    hints = typing.get_type_hints(kind)
    unknown = set(tree) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ConfigError(f"unknown keys {_shown(sorted(f'{key}.{name}' for name in unknown))}")
    values = {
        name: _build(hints[name], raw, f"{key}.{name}")
        if dataclasses.is_dataclass(hints[name])
        else _coerce(raw, hints[name], f"{key}.{name}")
        for name, raw in tree.items()
    }
    try:
        return kind(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # a key that has no default is missing; a method's own checks
        raise ConfigError(f"{key}: {_one_line(error)}") from None


def config_hash(config: Config) -> str:
    """Sixteen hexadecimal digits that name a resolved configuration."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 1000 else f"{text[:1000]} ..."
