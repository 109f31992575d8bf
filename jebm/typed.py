"""JSON to frozen dataclasses and back, by their type hints; single fields by dotted keys."""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jebm.errors import ConfigError, nearest, shorter, shown

__all__ = ["Key", "build", "described", "keys", "leaves", "one_line", "parse", "parsed", "replaced", "written"]

LARGEST, LARGEST_SEED = 10**9, 10**19  # of whole numbers: a larger one is a slip of the keyboard


def replaced(node: Any, given: Mapping[str, str], values: Mapping[str, Any], prefix: str) -> Any:
    """``node`` with ``values`` in place of its own, groups first; each dataclass is made, and checked, once.

    Args:
        node: a dataclass whose keys begin with ``prefix``.
        given: the values of all keys as text, for messages.
        values: the values of all keys.
        prefix: empty, or dotted up to the last dot.

    Raises:
        ConfigError: values that the dataclass refuses.
    """
    mine = {key: value for key, value in values.items() if key.startswith(prefix)}
    if not mine:
        return node
    changes = {}
    for name in dict.fromkeys(key[len(prefix) :].partition(".")[0] for key in mine):
        child = getattr(node, name)
        group = dataclasses.is_dataclass(child)
        changes[name] = replaced(child, given, values, f"{prefix}{name}.") if group else mine[prefix + name]
    try:
        return dataclasses.replace(node, **changes)
    except ValueError as error:  # a ConfigError, or what a method's own checks raise
        message = one_line(error)
    if any(key in message for key in mine):
        raise ConfigError(message)
    raise ConfigError(f"{' '.join(f'{key}={shorter(given[key])}' for key in mine)}: {message}")


def parsed(node: Any, path: list[str], text: str, key: str) -> Any:
    """The value of ``key``, typed as the field at ``path`` below ``node``.

    Raises:
        ConfigError: an unknown key, a group of keys, or text of another type.
    """
    hints = typing.get_type_hints(type(node))
    names = [field.name for field in dataclasses.fields(node)]
    head, *rest = path
    if head not in names:
        where = key[: len(key) - len(".".join(path))].rstrip(".")
        prefix = where + "." if where else ""
        everything = [prefix + leaf for leaf in leaves(node)]
        raise ConfigError(
            f"unknown key {shown(key)}{nearest(key, everything)}; {where or 'a configuration'} has: {', '.join(names)}"
        )
    child = getattr(node, head)
    if dataclasses.is_dataclass(child):
        if not rest:
            raise ConfigError(f"{key!r} is a group of keys: {', '.join(leaves(child))}")
        return parsed(child, rest, text, key)
    if rest:
        raise ConfigError(f"unknown key {shown(key)}: {'.'.join(key.split('.')[: -len(rest)])!r} has no parts")
    return parse(text, hints[head], key)


def leaves(node: Any) -> list[str]:
    """The dotted keys of a dataclass's fields, those of its groups included."""
    out = []
    for field in dataclasses.fields(node):
        child = getattr(node, field.name)
        out += [f"{field.name}.{leaf}" for leaf in leaves(child)] if dataclasses.is_dataclass(child) else [field.name]
    return out


class Key(NamedTuple):
    """A field of a configuration.

    Attributes:
        name: its dotted key.
        kind: its type.
        value: its value.
        rule: its range, as `jebm.errors.check` has it; empty without one.
        meaning: the first sentence of its docstring.
    """

    name: str
    kind: Any
    value: Any
    rule: str
    meaning: str


def keys(node: Any, prefix: str = "") -> list[Key]:
    """The fields of a dataclass, those of its groups included."""
    hints, rules, meanings = typing.get_type_hints(type(node)), _rules(type(node)), _meanings(type(node))
    out = []
    for field in dataclasses.fields(node):
        name, value = field.name, getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            out += keys(value, f"{prefix}{name}.")
        else:
            out.append(Key(prefix + name, hints[name], value, rules.get(name, ""), meanings.get(name, "")))
    return out


def _rules(kind: type) -> dict[str, str]:
    """The rules that ``__post_init__`` gives to `jebm.errors.check`, read from its source."""
    rules: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if "__post_init__" in vars(owner):
            tree = ast.parse(textwrap.dedent(inspect.getsource(vars(owner)["__post_init__"])))
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            given = [k for call in calls if getattr(call.func, "id", "") == "check" for k in call.keywords]
            rules |= {k.arg: str(k.value.value) for k in given if k.arg and isinstance(k.value, ast.Constant)}
    return rules


def _meanings(kind: type) -> dict[str, str]:
    """The first sentence of each field in the section ``Attributes`` of a docstring."""
    texts = [inspect.cleandoc(vars(owner).get("__doc__") or "") for owner in reversed(kind.__mro__)]
    sections = [text.partition("Attributes:\n")[2] for text in texts]
    found = [pair for text in sections for pair in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)]
    return {name: re.split(r"(?<=\.) (?=[A-Z])", " ".join(meaning.split()))[0] for name, meaning in found}


def written(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return value if isinstance(value, str) else json.dumps(value).replace("null", "none")


def parse(text: str, kind: Any, key: str) -> Any:
    """The value of ``key``, of type ``kind``.

    Raises:
        ConfigError: text of another type.
    """
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
    wrong = ConfigError(f"{key}={shown(raw)}: expected {described(kind)}")
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
            raise ConfigError(f"{key}={shown(raw)}: expected {described(kind)}{hint}")
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
            raise wrong from None  # report the whole list, not the entry that failed
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and not isinstance(raw, bool) and isinstance(raw, int | float) and raw == raw // 1:
        largest = LARGEST_SEED if key.endswith("seed") else LARGEST
        if abs(raw) > largest:
            raise ConfigError(f"{key}={shown(raw)}: expected {described(kind)} of at most {largest:.0e}")
        return int(raw)
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise wrong from None
    if kind is str and isinstance(raw, str):
        return raw
    raise wrong


def described(kind: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(a) for a in arguments)
    if origin is tuple:
        if typing.get_origin(arguments[0]) is Literal:
            return f"a list such as {json.dumps(typing.get_args(arguments[0]))}"
        return "a list such as " + ("[[64, 2], [128, 2]]" if typing.get_origin(arguments[0]) else "[1, 2]")
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(kind, str(kind))


def build(kind: Any, tree: Any, key: str) -> Any:
    """The dataclass ``kind`` from JSON; its dotted keys begin with ``key``.

    Raises:
        ConfigError: an unknown or missing key, a value of another type or out of range.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{key}={shown(tree)}: expected a group of keys")
    hints = typing.get_type_hints(kind)
    unknown = set(tree) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ConfigError(f"unknown keys {shown(sorted(f'{key}.{name}' for name in unknown))}")
    values = {
        name: build(hints[name], raw, f"{key}.{name}")
        if dataclasses.is_dataclass(hints[name])
        else _coerce(raw, hints[name], f"{key}.{name}")
        for name, raw in tree.items()
    }
    try:
        return kind(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # a key that has no default is missing; a method's own checks
        raise ConfigError(f"{key}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """The message of an error, of which no more than fits into a few lines."""
    text = " ".join(str(error).split())
    return text if len(text) <= 1000 else f"{text[:1000]} ..."
