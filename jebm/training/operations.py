"""Operations of a training step, counted on what JAX traced of it: no compilation, and none of a compiler's changes."""

import functools
import math
from typing import Any

import jax
import numpy as np

from jebm.networks.trilinear import PLAIN

__all__ = ["count"]


def count(jaxpr: Any) -> float:
    """Operations of all matrix products and convolutions, a multiplication with an addition being two.

    Bodies of loops count as often as they run; of the branches of a choice the largest counts. Products with zeros, of
    the padding or between the pixels of a dilated image, are left out. Over all devices together.

    Args:
        jaxpr: of a function, as ``jax.jit(f).trace(*arguments).jaxpr``.

    Returns:
        NaN where a loop with products has a number of steps that is not known beforehand.
    """
    return sum((_of(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns), 0.0)


def _of(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    shapes = [tuple(atom.aval.shape) for atom in (*equation.invars, *equation.outvars) if hasattr(atom.aval, "shape")]
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2.0 * math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _convolution(shapes, parameters)
    if equation.primitive in PLAIN:
        return _of_ours(equation.primitive, *(atom.aval for atom in equation.invars), **parameters)
    inside = [_inner(value) for value in parameters.values()]
    if name == "cond":
        return max((count(branch) for branch in parameters["branches"]), default=0.0)
    if name == "while":
        return math.nan if any(count(jaxpr) for jaxprs in inside for jaxpr in jaxprs) else 0.0
    times = parameters["length"] if name == "scan" else math.prod(parameters["grid"]) if name == "pallas_call" else 1
    return times * sum((count(jaxpr) for jaxprs in inside for jaxpr in jaxprs), 0.0)


def _inner(value: Any) -> list[Any]:
    return [one for one in (value if isinstance(value, tuple | list) else [value]) if hasattr(one, "eqns")]


@functools.lru_cache(maxsize=4096)
def _of_ours(primitive: Any, a: Any, b: Any, **parameters: Any) -> float:
    return count(jax.make_jaxpr(functools.partial(PLAIN[primitive], **parameters))(a, b))


def _convolution(shapes: list[tuple[int, ...]], parameters: dict[str, Any]) -> float:
    image, kernel, output = shapes
    numbers = parameters["dimension_numbers"]
    pairs = 1
    for axis, (before, _) in enumerate(parameters["padding"]):
        stride, dilation, spread = (
            parameters[name][axis] for name in ("window_strides", "lhs_dilation", "rhs_dilation")
        )
        length, taps, places = (
            shape[spec[2 + axis]]
            for shape, spec in ((image, numbers.lhs_spec), (kernel, numbers.rhs_spec), (output, numbers.out_spec))
        )
        where = np.add.outer(np.arange(places) * stride, np.arange(taps) * spread) - before
        pairs *= int(((where % dilation == 0) & (where >= 0) & (where <= (length - 1) * dilation)).sum())
    rows, channels = (output[numbers.out_spec[i]] for i in (0, 1))
    return 2.0 * rows * channels * kernel[numbers.rhs_spec[1]] * pairs
