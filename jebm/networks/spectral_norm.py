"""Spectral normalisation as a transform of parameter trees (Miyato et al., arXiv 1802.05957).

Every kernel ``K``, seen as a matrix [rest, out], is divided by an estimate ``σ = vᵀ K u`` of its largest
singular value. The vectors are state of their own, so that normalised weights are computed once per update,
outside any Langevin loop:

    state = spectral_norm.init(key, params)
    state = spectral_norm.iterate(params, state)                  # once per training iteration
    f = lambda params, x: net.apply({"params": spectral_norm.normalize(params, state)}, x)

The state mirrors the parameter tree: where that has a layer ``{"kernel": ..., "bias": ...}``, it has
``{"u": ..., "v": ...}``, float32 of lengths ``out`` and ``rest``. **The state says which kernels are
normalised**; a kernel without vectors passes through.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

Tree = Mapping[str, Any]
SpectralState = dict[str, Any]

EPSILON = 1e-12

__all__ = ["SpectralState", "divide", "init", "iterate", "normalize", "sigmas"]


def init(key: Array, params: Tree, exclude: Sequence[str] = ()) -> SpectralState:
    """Random unit vectors (normalised normal draws) for every leaf named ``kernel``.

    Args:
        key: a typed PRNG key.
        params: a parameter tree; only shapes are read, so it may be abstract.
        exclude: "/"-separated paths of layers, or of groups of layers, to leave alone.

    Raises:
        ValueError: an excluded path that holds no kernel.
    """
    kernels = {path[:-1]: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}
    for name in exclude:
        prefix = tuple(name.split("/"))
        inside = [path for path in kernels if path[: len(prefix)] == prefix]
        if not inside:
            layers = ["/".join(path) for path in kernels]
            raise ValueError(f"exclude: no kernel under {name!r}; the layers with kernels are {layers}")
        for path in inside:
            del kernels[path]
    vectors = {}
    for path, layer_key in zip(kernels, jax.random.split(key, max(len(kernels), 1)), strict=False):
        *rest, out = kernels[path].shape
        u_key, v_key = jax.random.split(layer_key)
        vectors[*path, "u"] = _unit(jax.random.normal(u_key, (out,), jnp.float32))
        vectors[*path, "v"] = _unit(jax.random.normal(v_key, (math.prod(rest),), jnp.float32))
    return unflatten_dict(vectors)


def iterate(params: Tree, state: Tree, num_iterations: int = 1) -> SpectralState:
    """Power iterations ``v <- K u / ‖K u‖``, then ``u <- Kᵀ v / ‖Kᵀ v‖``; no gradient flows through them.

    Raises:
        ValueError: vectors for a layer that ``params`` has not, or of another size.
    """
    matrices = {path: jax.lax.stop_gradient(matrix) for path, matrix in _matrices(params, state).items()}

    def one(_: int, vectors: dict[Any, Array]) -> dict[Any, Array]:
        new = {}
        for path, matrix in matrices.items():
            v = _unit(_product(matrix, vectors[*path, "u"]))
            new[*path, "v"], new[*path, "u"] = v, _unit(_product(v, matrix))
        return new

    vectors = {path: jax.lax.stop_gradient(vector) for path, vector in flatten_dict(state).items()}
    return unflatten_dict(jax.lax.fori_loop(0, num_iterations, one, vectors))


def sigmas(params: Tree, state: Tree) -> dict[str, Any]:
    """``σ = vᵀ K u`` per layer, differentiable in ``K``; a tree of scalars, one in the place of each layer.

    Raises:
        ValueError: as `iterate`.
    """
    return unflatten_dict(_sigmas(params, state))


def normalize(params: Tree, state: Tree) -> dict[str, Any]:
    """``params`` with ``K / σ`` in the place of each kernel that has vectors; gradients pass through ``σ``.

    Raises:
        ValueError: as `iterate`.
    """
    return divide(params, sigmas(params, state))


def divide(params: Tree, norms: Tree) -> dict[str, Any]:
    """``params`` with each kernel divided by its entry of ``norms``, a tree as `sigmas` returns."""
    flat = dict(flatten_dict(params))
    for path, norm in flatten_dict(norms).items():
        flat[*path, "kernel"] = flat[*path, "kernel"] / norm
    return unflatten_dict(flat)


def _sigmas(params: Tree, state: Tree) -> dict[tuple[str, ...], Array]:
    vectors = {path: jax.lax.stop_gradient(vector) for path, vector in flatten_dict(state).items()}
    return {
        path: _product(vectors[*path, "v"], _product(matrix, vectors[*path, "u"]))
        for path, matrix in _matrices(params, state).items()
    }


def _matrices(params: Tree, state: Tree) -> dict[tuple[str, ...], Array]:
    flat, vectors = flatten_dict(params), flatten_dict(state)
    matrices = {}
    for path in (path[:-1] for path in vectors if path[-1] == "u"):
        name = "/".join(path)
        if (*path, "kernel") not in flat:
            raise ValueError(f"spectral norm: vectors for {name!r}, but the parameters have no kernel there")
        kernel = flat[*path, "kernel"]
        matrix = kernel.reshape(-1, kernel.shape[-1])
        sizes = (vectors[*path, "v"].size, vectors[*path, "u"].size)
        if sizes != matrix.shape:
            raise ValueError(f"spectral norm: {name!r} is a matrix {matrix.shape}, its vectors {sizes}")
        matrices[path] = matrix
    return matrices


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), EPSILON)


_product = functools.partial(jnp.matmul, precision="highest")  # cheap, and σ divides every weight
