"""Energies and their combinators.

An *energy* is a function of ONE example (any pytree of floating arrays without a batch axis) that returns a
scalar, lower being more likely: ``p(x) ∝ exp(-E(x))``. Batches are ``jax.vmap``, gradients are ``jax.grad``.

Every energy made here is a ``jax.tree_util.Partial``, a pytree whose leaves are the parameters: it can be
handed to a jitted function, new parameters recompile nothing, and no constant is baked into a program.

    energy = jebm.energy.bind(lambda params, x: params["k"] * jnp.sum(x**2), {"k": 2.0})
    posterior = jebm.energy.sum(prior, likelihood)

A flax-nnx or equinox module, or a method of one, is an energy without further ado: its arrays are the leaves, read at
each call, so that a module trained in place is sampled with the weights that it has now. A plain function that reads
arrays or floats from its closure or from global variables is compiled again where it finds other objects there than
before: it is right, and slow in a training loop; `bind` them. Not seen, so that chains go on with what was there when
they were compiled, are a NumPy array written in place, an int, and what a function under `jax.jit` deeper inside, or
under `jax.checkpoint`, has kept of its closure: give it such things as arguments.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jebm import partials

PyTree = Any
Energy = Callable[[PyTree], Array]
Generator = Callable[[PyTree], Array]

__all__ = [
    "Annealed", "Energy", "anneal", "as_partial", "at_step", "bind", "condition", "gaussian", "hat", "latent",
    "mixture", "negate", "scale", "squared_distance", "standard_normal", "sum", "temper", "value",
]  # fmt: skip


def bind(function: Callable[..., Any], *arguments: PyTree) -> Partial:
    """The energy (or generator) ``x -> function(*arguments, x)``, its ``arguments`` being pytree leaves.

    ``function`` itself is static, unless it is a module: use the same function object again, not a new ``lambda`` each
    time, or the programs that take the energy compile again. The same holds for arrays that it reads from elsewhere
    than its ``arguments``.

    Examples:
        >>> spring = jebm.energy.bind(lambda k, x: 0.5 * k * jnp.sum(x**2), 4.0)
        >>> float(spring(jnp.array([1.0, 2.0])))
        10.0
        >>> jax.tree.leaves(spring)  # a new value recompiles nothing
        [4.0]
    """
    return partials.as_partial(function, *arguments)


def as_partial(function: Callable[..., Any]) -> Partial:
    """An energy, a generator or a distance as a pytree; see `jebm.partials`.

    Raises:
        ValueError: no function.
    """
    if not callable(function):
        raise ValueError(
            f"an energy or generator must be a function of one example, got {type(function).__name__}"
            " (combine plain energies inside an annealed one's function)"
        )
    return partials.as_partial(function)


def value(energy: Energy, x: PyTree) -> Array:
    """``energy(x)`` as a scalar of at least float32.

    Raises:
        ValueError: the energy did not return a scalar (it must take one example, not a batch).

    Examples:
        >>> jebm.energy.value(lambda x: x @ x, jnp.array([1.0, 2.0], jnp.bfloat16)).dtype
        dtype('float32')
    """
    result = jnp.asarray(energy(x))
    if result.shape != ():
        raise ValueError(
            f"an energy must return one scalar for one example, got shape {result.shape}: "
            "write it without a batch axis and let jax.vmap add one"
        )
    return result.astype(jnp.promote_types(result.dtype, jnp.float32))


def scale(energy: Energy, factor: Array | float) -> Partial:
    """``factor * E(x)``: tempering by ``factor = 1 / temperature``.

    Examples:
        >>> twice = jebm.energy.scale(jebm.energy.standard_normal, 2.0)
        >>> float(twice(jnp.array([1.0, 2.0])))
        5.0
    """
    return Partial(_scale, as_partial(energy), factor)


def _scale(energy: Energy, factor: Array, x: PyTree) -> Array:
    return factor * value(energy, x)


def temper(energy: Energy, temperature: Array | float) -> Partial:
    """``E(x) / temperature``: the density ``p(x)^(1/temperature)``, up to its normaliser.

    Raises:
        ValueError: a temperature that is not above 0.

    Examples:
        >>> hot = jebm.energy.temper(jebm.energy.standard_normal, 10.0)
        >>> float(hot(jnp.array([3.0, 4.0])))
        1.25
    """
    require(temperature, lambda a: a > 0, "temperature", "must be above 0")
    return Partial(_temper, as_partial(energy), temperature)


def _temper(energy: Energy, temperature: Array, x: PyTree) -> Array:
    return value(energy, x) / temperature


def sum(*energies: Energy, weights: Sequence[float] | Array | None = None) -> Partial:  # noqa: A001
    """``Σ_i w_i E_i(x)``: the product of experts ``Π_i p_i(x)^w_i``. Weights default to 1.

    On Gaussians precisions add: ``Λ = Σ w_i Λ_i``, with mean ``Λ⁻¹ Σ w_i Λ_i μ_i``.

    Raises:
        ValueError: no energy, or not as many weights as energies.

    Examples:
        >>> left = jebm.energy.gaussian(jnp.array([-1.0]), jnp.array([1.0]))
        >>> right = jebm.energy.gaussian(jnp.array([2.0]), jnp.array([2.0]))
        >>> product = jebm.energy.sum(left, right)
        >>> jax.grad(product)(jnp.array([1.0]))  # the precisions 1 and 2 add: the mean is (-1 + 4)/3
        Array([0.], dtype=float32)
    """
    weights = _weights("sum", energies, weights)
    return Partial(_sum, tuple(map(as_partial, energies)), weights)


def _sum(energies: Sequence[Energy], weights: Array, x: PyTree) -> Array:
    # not jnp.dot: an accelerator would round its factors to bfloat16 or TF32
    return jnp.sum(weights * jnp.stack([value(energy, x) for energy in energies]))


def mixture(
    energies: Sequence[Energy], weights: Sequence[float] | Array, log_normalizers: Sequence[float] | Array
) -> Partial:
    """``-log Σ_i w_i exp(-E_i(x) - log Z_i)``: the mixture ``Σ_i w_i p_i(x)`` with ``Z_i = ∫ exp(-E_i)``.

    The ``log_normalizers`` are needed: without them components of unequal ``Z_i`` get the wrong weights. With
    weights that sum to 1 the mixture is normalised (``log Z = 0``).

    Raises:
        ValueError: no energy, lengths that differ, a negative weight, or no weight above 0.

    Examples:
        >>> wells = [jebm.energy.gaussian(jnp.array([m]), jnp.array([1.0])) for m in (-2.0, 2.0)]
        >>> both = jebm.energy.mixture(wells, [0.5, 0.5], [0.5 * np.log(2 * np.pi)] * 2)
        >>> x = jnp.array([2.0])
        >>> round(float(jnp.exp(-both(x))), 4)  # half of 1/sqrt(2 pi), and e^-8 as much
        0.1995
    """
    energies = tuple(energies)
    require(weights, lambda a: a >= 0, "weights of a mixture", "must be at least 0")
    if energies and all(is_concrete(a) and not np.any(a) for a in jax.tree.leaves(weights)):
        raise ValueError(f"weights of a mixture must not all be 0, got {weights}")
    log_weights = jnp.log(_weights("mixture", energies, weights))
    log_normalizers = _weights("mixture", energies, log_normalizers)
    return Partial(_mixture, tuple(map(as_partial, energies)), log_weights - log_normalizers)


def _mixture(energies: Sequence[Energy], log_weights: Array, x: PyTree) -> Array:
    return -jax.nn.logsumexp(log_weights - jnp.stack([value(energy, x) for energy in energies]))


def _weights(name: str, energies: Sequence[Energy], weights: Sequence[float] | Array | None) -> Array:
    if not energies:
        raise ValueError(f"{name} needs at least one energy")
    weights = jnp.ones(len(energies)) if weights is None else jnp.asarray(weights, float)
    if weights.shape != (len(energies),):
        raise ValueError(f"{name} of {len(energies)} energies needs as many numbers, got {weights.shape}")
    return weights


def negate(energy: Energy, coefficient: Array | float = 1.0) -> Partial:
    """``-coefficient * E(x)``; add it to another energy to say "like that one, unlike this one".

    ``E_1 - α E_2`` is a density only where it is integrable: for Gaussians iff ``Λ_1 - α Λ_2`` is positive
    definite.

    Examples:
        >>> unlike = jebm.energy.negate(jebm.energy.standard_normal, 0.5)
        >>> float(unlike(jnp.array([2.0])))
        -1.0
    """
    return scale(energy, -jnp.asarray(coefficient, float))


def squared_distance(x: PyTree, reference: PyTree) -> Array:
    """``Σ (x - reference)²`` over all entries of all leaves, summed in float32 or wider.

    Raises:
        ValueError: ``x`` and ``reference`` differ in structure or in a shape.

    Examples:
        >>> a, b = {"z": jnp.array([1.0, 2.0])}, {"z": jnp.array([1.0, 5.0])}
        >>> float(jebm.energy.squared_distance(a, b))
        9.0
    """
    _require_like("reference", reference, x)
    return _sum_of_squares(jax.tree.map(jnp.subtract, x, reference))


def _sum_of_squares(x: PyTree) -> Array:
    wide = lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))  # noqa: E731
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a: jnp.sum(jnp.square(wide(a))), x))


def _require_like(name: str, given: PyTree, x: PyTree) -> None:
    shapes, expected = jax.tree.map(jnp.shape, given), jax.tree.map(jnp.shape, x)
    if shapes != expected:
        raise ValueError(f"{name} must have the structure and shapes of x, {expected}, got {shapes}")


def condition(
    energy: Energy,
    reference: PyTree,
    weight: Array | float,
    distance: Callable[[PyTree, PyTree], Array] = squared_distance,
) -> Partial:
    """``E(x) + weight * distance(x, reference)``: ``x`` kept near a reference point.

    With the default distance and ``weight = 1/(2σ²)`` this is the energy of ``x`` given a noisy copy
    ``reference = x + σ ξ`` (recovery likelihood; Gao et al., arXiv 2012.08125).

    Examples:
        >>> near = jebm.energy.condition(jebm.energy.standard_normal, jnp.array([2.0]), weight=0.5)
        >>> jax.grad(near)(jnp.array([1.0]))  # N(0, 1) given 2 with noise of deviation 1 is N(1, 1/2)
        Array([0.], dtype=float32)
    """
    return Partial(_condition, as_partial(energy), as_partial(distance), reference, weight)


def _condition(energy: Energy, distance: Callable, reference: PyTree, weight: Array, x: PyTree) -> Array:
    return value(energy, x) + weight * distance(x, reference)


def latent(energy: Energy, generator: Generator, prior: Energy | None = None) -> Partial:
    """``z -> E(G(z)) + prior(z)``: an energy seen through a generator.

    Samples of it, pushed through ``G``, follow the *latent* density tilted by ``exp(-E(G(z)))``. That is not
    the image-space density ``exp(-E(x))``: no Jacobian of ``G`` enters. Without a ``prior`` the latent
    density is ``exp(-E(G(z)))`` alone, which need not be integrable; ``standard_normal`` is the usual prior.

    Examples:
        >>> seen = jebm.energy.latent(jebm.energy.standard_normal, lambda z: 3.0 * z, jebm.energy.standard_normal)
        >>> float(seen(jnp.array([1.0])))
        5.0
    """
    generator = as_partial(generator)
    if prior is None:
        return Partial(_latent, as_partial(energy), generator)
    return Partial(_latent_with_prior, as_partial(energy), generator, as_partial(prior))


def _latent(energy: Energy, generator: Generator, z: PyTree) -> Array:
    return value(energy, generator(z))


def _latent_with_prior(energy: Energy, generator: Generator, prior: Energy, z: PyTree) -> Array:
    return value(energy, generator(z)) + value(prior, z)


def hat(energy: Energy, generator: Generator) -> Partial:
    """``{"z": z, "y": y} -> E(G(z) + y)``: an energy of generator output plus residual (arXiv 2210.16486).

    Examples:
        >>> energy = jebm.energy.hat(jebm.energy.standard_normal, lambda z: 2.0 * z)
        >>> float(energy({"z": jnp.array([1.0]), "y": jnp.array([-2.0])}))
        0.0
    """
    return Partial(_hat, as_partial(energy), as_partial(generator))


def _hat(energy: Energy, generator: Generator, x: dict[str, PyTree]) -> Array:
    image = generator(x["z"])
    _require_like("the residual y", x["y"], image)  # or it would broadcast
    return value(energy, image + x["y"])


def gaussian(mean: PyTree, precision: PyTree) -> Partial:
    """``½ (x-μ)ᵀ Λ (x-μ)`` of ``N(μ, Λ⁻¹)``; ``log Z = (d/2) log 2π - ½ log det Λ``.

    ``mean`` is a pytree as ``x``; ``precision`` a matrix when ``mean`` is one vector, else a pytree of
    diagonal precisions that broadcast against the leaves of ``mean``.

    Raises:
        ValueError: a precision unlike the mean; at the evaluation, an ``x`` unlike the mean, such as a batch.

    Examples:
        >>> energy = jebm.energy.gaussian(jnp.zeros(2), jnp.array([[2.0, 0.0], [0.0, 8.0]]))
        >>> float(energy(jnp.array([1.0, 0.5])))
        2.0
    """
    mean = jax.tree.map(jnp.asarray, mean)
    precision = jax.tree.map(jnp.asarray, precision)
    same = jax.tree.structure(mean) == jax.tree.structure(precision)  # type: ignore[operator]
    if not same or not all(jax.tree.leaves(jax.tree.map(_fits, mean, precision))):
        given, shapes = (jax.tree.map(jnp.shape, tree) for tree in (precision, mean))
        raise ValueError(f"a precision must broadcast to the mean, or be its matrix, got shapes {given} for {shapes}")
    return Partial(_gaussian, mean, precision)


def _fits(mean: Array, precision: Array) -> bool:
    if precision.ndim == 2 and mean.ndim == 1:
        return precision.shape == 2 * mean.shape
    try:
        return np.broadcast_shapes(precision.shape, mean.shape) == mean.shape
    except ValueError:
        return False


def _gaussian(mean: PyTree, precision: PyTree, x: PyTree) -> Array:
    shapes, expected = jax.tree.map(jnp.shape, x), jax.tree.map(jnp.shape, mean)
    if shapes != expected:
        raise ValueError(f"x must be one example of shapes {expected}, as the mean, got {shapes}: no batch")

    def one(m: Array, p: Array, a: Array) -> Array:
        centred = a - m
        if p.ndim == 2 and m.ndim == 1:
            return 0.5 * jnp.dot(centred, jnp.dot(p, centred, precision="highest"), precision="highest")
        return 0.5 * sum_of_few((p * jnp.square(centred)).ravel())

    return jax.tree.reduce(jnp.add, jax.tree.map(one, mean, precision, x))


def sum_of_few(a: Array) -> Array:
    """The sum over the last axis, written out for up to 8: a CPU is slow at so short a reduction.

    [..., d] -> [...].
    """
    if not 0 < a.shape[-1] <= 8 or a.dtype.itemsize < 4:
        return jnp.sum(a, -1)
    return functools.reduce(jnp.add, [a[..., i] for i in range(a.shape[-1])])


def standard_normal(x: PyTree) -> Array:
    """``½‖x‖²`` over all leaves: the energy of N(0, I).

    Examples:
        >>> float(jebm.energy.standard_normal(jnp.array([3.0, 4.0])))
        12.5
    """
    return 0.5 * _sum_of_squares(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Annealed:
    """An energy that changes along a chain: step number ``step``, from 0, descends ``function(step, x)``."""

    function: Callable[[Array, PyTree], Array]


def anneal(function: Callable[..., Array], *arguments: PyTree) -> Annealed:
    """The annealed energy ``(step, x) -> function(*arguments, step, x)``; ``step`` is an int32 scalar.

    Examples:
        >>> cooling = jebm.energy.anneal(lambda step, x: (1.0 + step) * jnp.sum(x**2))
        >>> [float(jebm.energy.at_step(cooling, k)(jnp.array([1.0]))) for k in (0, 9)]
        [1.0, 10.0]
    """
    return Annealed(partials.as_partial(function, *arguments))


def at_step(energy: Energy | Annealed, step: Array) -> Energy:
    """The plain energy in force at ``step``; an energy that is not annealed is the same at every step."""
    if isinstance(energy, Annealed):
        return Partial(energy.function, step)
    return energy


def require(tree: PyTree, rule: Callable[[np.ndarray], Any], name: str, allowed: str) -> None:
    """Raises ``ValueError("<name> <allowed>, got ...")`` unless ``rule`` holds at every known leaf."""
    for leaf in jax.tree.leaves(tree, is_leaf=callable):
        if is_concrete(leaf) and not np.all(rule(np.asarray(leaf))):
            raise ValueError(f"{name} {allowed}, got {leaf}")


def require_int(given: Any, name: str, least: int) -> int:
    """``given`` as an int; raises ``ValueError("<name> must be an int of at least <least>, got ...")``."""
    try:
        number = None if isinstance(given, bool) else operator.index(given)
    except TypeError:  # floats, and tracers
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {given!r}")
    return number


def is_concrete(a: Any) -> bool:
    """Whether ``a`` is a number or an array whose value is known, neither a function nor a tracer."""
    return isinstance(a, int | float | np.ndarray | np.generic) or (
        isinstance(a, Array) and not isinstance(a, jax.core.Tracer)
    )
