"""Functions as pytrees, with state of their own followed: modules trained in place, closures over arrays."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.tree_util import Partial, all_leaves

__all__ = ["as_partial", "closed_over"]


def as_partial(function: Callable[..., Any], *arguments: Any) -> Partial:
    """``Partial(function, *arguments)``, in which state of the function's own is followed.

    A compiled program that takes a bare function keeps what the function read when it was compiled: old weights, where
    a module is trained in place or a variable that a closure reads is exchanged. So the arrays of a callable pytree are
    leaves, and those that another function reads are part of its identity.
    """
    if isinstance(function, Partial):
        if (inner := _followed(function.func)) is not None:  # made by hand, of a module or a closure
            function = Partial(_call, inner, *function.args, **function.keywords)
        return Partial(_call, function, *arguments) if arguments else function
    if not all_leaves([function.__self__ if inspect.ismethod(function) else function]):
        return Partial(_call, _Module(function), *arguments)
    # what is under jax.jit would keep what it read in a cache of its own
    plain = getattr(function, "__wrapped__", function) if isinstance(function, jax.stages.Wrapped) else function
    if next(_reads(plain), None) is not None:
        return Partial(_call, _Closure(plain), *arguments)
    return Partial(function, *arguments)


def closed_over(function: Callable[..., Any]) -> list[Any]:
    """The arrays and floats that a function of `as_partial` reads from elsewhere, which are none of its leaves."""
    inner = function.args[0] if isinstance(function, Partial) and function.func is _call else None
    return list(_reads(inner.function)) if isinstance(inner, _Closure) else []


def _call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    return function(*arguments, **keywords)


def _followed(leaf: Any) -> Partial | None:
    """A function with state of its own as a pytree; None for any other object."""
    if not callable(leaf) or isinstance(leaf, type):
        return None
    partial = as_partial(leaf)
    return partial if partial.func is _call and leaf is not _call else None


@jax.tree_util.register_pytree_node_class
class _Module:
    """A callable pytree, or a method of one; what is no array (an activation function, a name) is static.

    A function among its leaves that has state of its own, such as a method of another module, is followed in its turn.
    The module itself is kept as long as it can be, so that its leaves are those of now; inside a compiled program
    leaves and structure are what there is.
    """

    def __init__(self, function: Any, parts: Any = None) -> None:
        self.function, self.parts = function, parts

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        children, (structure, kept, method) = self.tree_flatten()
        given = iter(children)
        module = structure.unflatten([next(given) if leaf is None else leaf[0] for leaf in kept])
        return module(*arguments, **keywords) if method is None else method(module, *arguments, **keywords)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        if self.function is None:
            return self.parts
        is_method = inspect.ismethod(self.function)
        module, method = (self.function.__self__, self.function.__func__) if is_method else (self.function, None)
        leaves, structure = jax.tree.flatten(module)
        children = [leaf if _is_array(leaf) else _followed(leaf) for leaf in leaves]
        kept = tuple((leaf,) if child is None else None for leaf, child in zip(leaves, children, strict=True))
        return tuple(child for child in children if child is not None), (structure, kept, method)

    @classmethod
    def tree_unflatten(cls, static: Any, children: tuple[Any, ...]) -> "_Module":
        return cls(None, (tuple(children), static))


@jax.tree_util.register_pytree_node_class
class _Closure:
    """A function that reads arrays from elsewhere: no leaves, but equal only where it reads the same ones."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)

    def tree_flatten(self) -> tuple[tuple[()], Any]:
        return (), (self.function, tuple(map(_Same, _reads(self.function))))

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: tuple[()]) -> "_Closure":
        return cls(static[0])


class _Same:
    """A value that is equal to itself alone; numbers are compared. It holds the value, so that no id comes twice."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        numbers = isinstance(self.value, float | complex) and isinstance(other.value, float | complex)
        return self.value is other.value or (numbers and self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value) if isinstance(self.value, float | complex) else id(self.value)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _reads(function: Callable[..., Any]) -> Iterator[Any]:
    """The arrays and floats that a function reads from its closure, its global variables and its object.

    Found by the names in its code, through the functions that it calls from its closure and its own module. Not found:
    numbers that are ints (counters, more often than parameters), and an array that is written in place.
    """
    seen: set[Any] = set()

    def of_function(function: Any) -> Iterator[Any]:
        while isinstance(function, functools.partial):
            given = (function.args, function.keywords)
            yield from of_value(given, frozenset(), {})
            for value in _leaves(given):
                if callable(value):
                    yield from of_function(value)
            function = function.func
        owner = None
        if inspect.ismethod(function):
            owner, function = function.__self__, function.__func__
        elif not inspect.isfunction(function):
            owner, function = function, getattr(type(function), "__call__", None)  # noqa: B004
        if not inspect.isfunction(function) or (id(function), id(owner)) in seen:
            return
        seen.add((id(function), id(owner)))
        names, known = _names(function.__code__), function.__globals__
        if known.get("__name__", "").partition(".")[0] in _LIBRARIES:
            known = {}
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        for value in (owner, *cells, *(known[name] for name in sorted(names & known.keys()))):
            yield from of_value(value, names, known)
        for value in (owner, *cells):
            if callable(value) and all_leaves([value]):
                yield from of_function(value)

    def of_value(value: Any, names: frozenset[str], known: dict[str, Any]) -> Iterator[Any]:
        if isinstance(value, Partial):
            yield from of_function(value)
            return
        for leaf in _leaves(value):
            if _is_array(leaf) or isinstance(leaf, float | complex):
                yield leaf
            elif inspect.isfunction(leaf):
                if leaf.__globals__ is known:
                    yield from of_function(leaf)
            elif isinstance(leaf, functools.partial) or inspect.ismethod(leaf):
                yield from of_function(leaf)
            elif not isinstance(leaf, type | types.ModuleType) and (id(leaf), names) not in seen:
                seen.add((id(leaf), names))
                held = getattr(leaf, "__dict__", {})
                for name in sorted(names):
                    method = getattr(type(leaf), name, None) if known else None
                    if name in held:
                        yield from of_value(held[name], names, known)
                    elif inspect.isfunction(method):
                        yield from of_function(types.MethodType(method, leaf))
                if callable(leaf):
                    yield from of_function(leaf)

    yield from of_function(function)


_LIBRARIES = {"blackjax", "equinox", "flax", "jax", "jebm", "numpy", "optax"}  # their global variables are constants


def _leaves(value: Any) -> list[Any]:
    try:
        return jax.tree.leaves(value)
    except (TypeError, ValueError):  # a dict whose keys have no order
        return list(value.values()) if isinstance(value, dict) else []


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@functools.cache
def _names(code: types.CodeType) -> frozenset[str]:
    """All names in a function's code and in the functions written inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*map(_names, inner))
