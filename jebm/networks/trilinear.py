"""Primitives for kinds of convolution that have a program of their own for a CPU.

A convolution ``y = f(x, k)`` of images x [N, H, W, I] by a kernel k [h, w, I, O] is linear in both. It, its gradient in
x and its gradient in k are three programs, each of which has the other two as its transposes. A primitive takes two of
the arrays, y also standing for its own cotangent, and says which one is wanted:

    primitive.bind(x, k, wanted="y", image=(H, W), window=(h, w), **how)
    primitive.bind(y, k, wanted="x", ...)
    primitive.bind(x, y, wanted="k", ...)

Derivatives of any order and in both modes are the primitive again. Under `jax.vmap` over images the mapped axis joins
the batch axis. A program is chosen when a function is lowered, by the platform that it is compiled for.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["PLAIN", "Wanted", "as_jax_writes", "trilinear"]

Wanted = Literal["y", "x", "k"]
OPERANDS: dict[Wanted, tuple[Wanted, Wanted]] = {"y": ("x", "k"), "x": ("y", "k"), "k": ("x", "y")}

PLAIN: dict[Primitive, Callable[..., Array]] = {}
"""The programs of each of these primitives for other platforms, as `as_jax_writes` makes them."""


def trilinear(name: str, direct: Callable[..., Array], on_cpu: Callable[..., Array]) -> Primitive:
    """A primitive for a kind of convolution.

    Args:
        name: of the primitive.
        direct: ``(x, k, **how) -> y``. Other platforms have it, and its transposes as JAX writes them.
        on_cpu: ``(a, b, *, wanted, image, window, **how)``, the programs for a CPU.
    """
    primitive = Primitive(name)
    plain = PLAIN[primitive] = functools.partial(as_jax_writes, direct)

    def transpose(to: int, g: Array, a: Any, b: Any, *, wanted: Wanted, **sizes_and_how: Any) -> Array:
        arrays = {wanted: g, **dict(zip(OPERANDS[wanted], (a, b), strict=True))}
        goal = OPERANDS[wanted][to]
        return primitive.bind(*(arrays[name] for name in OPERANDS[goal]), wanted=goal, **sizes_and_how)

    def batch(operands: Sequence[Array], axes: Sequence[int | None], **parameters: Any) -> tuple[Array, int]:
        (a, b), (axis, other) = operands, axes
        if axis is None or other is not None or parameters["wanted"] == "k":  # a kernel for each: nothing to join
            each = [jax.vmap(functools.partial(of, **parameters), axes) for of in (on_cpu, plain)]
            return lax.platform_dependent(a, b, cpu=each[0], default=each[1]), 0
        a = jnp.moveaxis(a, axis, 0)
        found = primitive.bind(a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), b, **parameters)
        return found.reshape(*a.shape[:2], *found.shape[1:]), 0

    @functools.lru_cache(maxsize=4096)
    def abstract(a: Any, b: Any, **parameters: Any) -> Any:
        # shape, dtype and sharding are those of XLA's convolution, as are the errors
        return jax.make_jaxpr(functools.partial(plain, **parameters))(a, b).out_avals[0]

    @functools.lru_cache(maxsize=4096)
    def compiled(**parameters: Any) -> Any:
        return jax.jit(functools.partial(primitive.bind, **parameters))

    primitive.def_impl(lambda a, b, **parameters: compiled(**parameters)(a, b))
    primitive.def_abstract_eval(abstract)
    ad.defbilinear(primitive, functools.partial(transpose, 0), functools.partial(transpose, 1))
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    return primitive


def as_jax_writes(
    direct: Callable[..., Array], a: Array, b: Array, *, wanted: Wanted, image: Sequence[int], window: Sequence[int],
    **how: Any,
) -> Array:  # fmt: skip
    """``direct`` of x and k, or its transpose to one of them."""
    if wanted == "y":
        return direct(a, b, **how)
    if wanted == "x":
        x = jax.ShapeDtypeStruct((a.shape[0], *image, b.shape[2]), a.dtype)
        found: Array = jax.linear_transpose(lambda x: direct(x, b, **how), x)(a)[0]
    else:
        k = jax.ShapeDtypeStruct((*window, a.shape[3], b.shape[3]), a.dtype)
        found = jax.linear_transpose(lambda k: direct(a, k, **how), k)(b)[0]
    return found
