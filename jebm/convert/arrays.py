"""Imported weights: flat dictionaries of arrays into the trees of this library's networks.

`from_flat` reads names like ``"feat_8/conv_1/kernel"`` with arrays laid out as here. `from_torch` reads a
PyTorch ``state_dict`` as plain arrays (``{name: tensor.numpy()}``), and needs no torch. Both fill a
*template*, a dict of collections, which may be abstract:

    template = jax.eval_shape(decoder.init, key, z)                     # {"params": ..., "batch_stats": ...}
    template["spectral"] = spectral_norm.init(key, template["params"])  # for singular vectors

Every leaf of the template must be given, with its shape, and nothing else: what is missing, left over or of
another shape is named in one ValueError.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Arrays = Mapping[str, Any]
Variables = dict[str, Any]

__all__ = ["from_flat", "from_torch"]


def from_flat(arrays: Arrays, template: Variables) -> Variables:
    """Arrays under "/"-separated names, without their collection, into trees.

    Args:
        arrays: names are paths in the network; leaves are ``kernel``, ``bias``, ``scale`` (params), ``mean``,
            ``var`` (batch_stats), ``u``, ``v`` (singular vectors). Kernels are HWIO or (in, out).
        template: ``{collection: tree}`` with the leaves and shapes to fill; leaves may be abstract.

    Returns:
        The template's trees, of jax arrays with the template's dtypes.

    Raises:
        ValueError: names missing or left over, or shapes that differ.
    """
    leaves = {"/".join(path[1:]): (path, leaf) for path, leaf in flatten_dict(template).items()}
    problems = []
    if missing := sorted(leaves.keys() - arrays.keys()):
        problems.append(f"missing {', '.join(missing)}")
    if extra := sorted(arrays.keys() - leaves.keys()):
        problems.append(f"not in the network {', '.join(extra)}")
    wrong = [
        f"{name} has shape {np.shape(arrays[name])}, the network needs {leaf.shape}"
        for name, (_, leaf) in sorted(leaves.items())
        if name in arrays and np.shape(arrays[name]) != leaf.shape
    ]
    if problems or wrong:
        raise ValueError(f"these arrays do not fit the network: {'; '.join(problems + wrong)}")
    filled = {path: jnp.asarray(arrays[name], leaf.dtype) for name, (path, leaf) in leaves.items()}
    return unflatten_dict(filled)


def from_torch(
    state_dict: Arrays,
    template: Variables,
    modules: Mapping[str, str] | None = None,
    *,
    transposed: Collection[str] = (),
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
) -> Variables:
    """A PyTorch ``state_dict`` into trees, layouts converted.

    ==========================================  ========================================================
    PyTorch                                     here
    ==========================================  ========================================================
    ``weight`` of a convolution, OIHW           ``kernel``, HWIO
    ``weight`` of a transposed one, IOHW        ``kernel``, (H, W, in, out), not flipped
    ``weight`` of a linear layer, (out, in)     ``kernel``, (in, out)
    ``weight`` of a batch norm                  ``scale``
    ``bias``                                    ``bias``
    ``running_mean``, ``running_var``           ``mean``, ``var``
    ``weight_orig`` (spectral norm's hook)      ``kernel``, not yet normalised
    ``weight_u``, ``weight_v``                  ``u``, ``v``; ``v`` from (in, H, W) to (H, W, in) order
    ``num_batches_tracked``                     left out
    ==========================================  ========================================================

    Under the hook, a plain ``weight`` beside ``weight_orig`` is the normalised kernel and is left out, too.

    Args:
        state_dict: plain arrays by PyTorch name.
        template: as in `from_flat`. Without a collection for ``u`` and ``v`` these are left out.
        modules: PyTorch module name -> path here, ``{"main.0": "feat_8/conv_1", ...}``, one entry per layer;
            by default the same name with "/" for ".".
        transposed: paths here of transposed convolutions (`jebm.methods.ec.vae_networks`: ``{"init/conv_1"}``).
        flattened: path here -> (C, H, W), for linear layers that read a flattened map: their rows go from
            (C, H, W) to (H, W, C) order (`jebm.methods.ec.vae_networks_256`: ``mu`` and ``logvar``).

    Raises:
        ValueError: a module that ``modules`` does not name, an unknown kind of array, or as `from_flat`.
    """
    with_vectors = any(path[-1] in ("u", "v") for path in flatten_dict(template))
    arrays: dict[str, np.ndarray] = {}
    for name in state_dict:
        module, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked" or (kind == "weight" and f"{module}.weight_orig" in state_dict):
            continue
        if kind in ("weight_u", "weight_v") and not with_vectors:
            continue
        if modules is not None and module not in modules:
            raise ValueError(f"{name!r}: modules has no entry for {module!r}; give its path in the network")
        path = module.replace(".", "/") if modules is None else modules[module]
        order = _RowOrder(name, path in transposed, (flattened or {}).get(path))
        array = np.asarray(state_dict[name])
        if kind in ("weight", "weight_orig"):
            leaf, array = ("scale", array) if array.ndim == 1 else ("kernel", order.kernel(array))
        elif kind == "weight_v":
            leaf, array = "v", order.vector(array, np.shape(state_dict.get(f"{module}.weight_orig", ())))
        elif kind in _VECTORS:
            leaf = _VECTORS[kind]
        else:
            raise ValueError(f"{name!r}: unknown kind of array {kind!r}; known: {_KNOWN}")
        arrays[f"{path}/{leaf}"] = array
    return from_flat(arrays, template)


_VECTORS = {"bias": "bias", "running_mean": "mean", "running_var": "var", "weight_u": "u"}
_KNOWN = ", ".join(sorted([*_VECTORS, "weight", "weight_orig", "weight_v", "num_batches_tracked"]))


class _RowOrder:
    """Order of the rows of one layer's matrix [rest, out] in PyTorch."""

    def __init__(self, name: str, transposed: bool, flattened: tuple[int, int, int] | None) -> None:
        self.name = name
        self.transposed = transposed
        self.flattened = flattened

    def kernel(self, weight: np.ndarray) -> np.ndarray:
        if weight.ndim == 4:
            return weight.transpose((2, 3, 0, 1) if self.transposed else (2, 3, 1, 0))
        if weight.ndim != 2:
            raise ValueError(f"{self.name!r} has shape {weight.shape}; weights have 1, 2 or 4 axes")
        return self._unflatten(weight.T)

    def vector(self, v: np.ndarray, weight_shape: tuple[int, ...]) -> np.ndarray:
        """``v`` pairs with the rows in the order (in, H, W); here it is (H, W, in)."""
        if len(weight_shape) != 4:
            return self._unflatten(v)
        shape = (weight_shape[0] if self.transposed else weight_shape[1], *weight_shape[2:])
        if v.size != math.prod(shape):
            raise ValueError(
                f"{self.name!r} has {v.size} entries, the kernel (in, H, W) = {shape} {math.prod(shape)}; "
                "is the layer a transposed convolution (argument transposed)?"
            )
        return v.reshape(shape).transpose(1, 2, 0).ravel()

    def _unflatten(self, array: np.ndarray) -> np.ndarray:
        if self.flattened is None:
            return array
        if array.shape[0] != math.prod(self.flattened):
            raise ValueError(f"{self.name!r} reads {array.shape[0]} inputs, flattened says {self.flattened}")
        rest = array.shape[1:]
        return np.moveaxis(array.reshape(*self.flattened, *rest), 0, 2).reshape(array.shape)
