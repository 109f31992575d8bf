"""A trained model as one file: a zip archive of ``model.json`` and ``.npy`` arrays, without pickles.

The file holds what sampling, scoring and restoring need: the weights that the family generates with, and the statistics
beside them; no optimisers, no banks of chains, no second set of weights, so that no training goes on from it. numpy
reads its arrays as those of an ``.npz``.
"""

import io
import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jebm import files, methods
from jebm.config import Config, from_dict, to_dict
from jebm.errors import ConfigError, DataError, shown
from jebm.mcmc.bank import Bank
from jebm.methods.base import Weights
from jebm.methods.shared import Trained, has_ema, with_weights

__all__ = ["SUFFIX", "Packed", "find", "pack", "read", "released", "state_of"]

FORMAT = 1
SUFFIX = ".jebm"
DESCRIPTION = "model.json"
REMOTE = re.compile(r"https?://")


class Packed(NamedTuple):
    """The content of a file.

    Attributes:
        path: of the file.
        sha256: of its content.
        config: the configuration of the run.
        generator: of a run over the generator of another one, the configurations and the fingerprint of
            ``generator.json``.
        step: training iterations made.
        weights: which weights these are, ``"raw"`` or ``"ema"``.
        card: what is known of the model, JSON values.
        arrays: by the path of the leaf in the state.
    """

    path: pathlib.Path
    sha256: str
    config: Config
    generator: tuple[tuple[Config, ...], str] | None
    step: int
    weights: str
    card: dict[str, Any]
    arrays: dict[str, np.ndarray]


def released() -> dict[str, pathlib.Path]:
    """The trained models that come with the library, by name, such as ``digits/ec_vae``."""
    folder = pathlib.Path(__file__).parent.parent / "models"
    found = sorted(folder.rglob(f"*{SUFFIX}"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find(where: str) -> pathlib.Path | None:
    """The file that ``where`` names: its path, an address, or a model that comes with the library; None for none.

    A file at an address is downloaded once, and checked each time.

    Raises:
        ConfigError: an address without a hash.
        DataError: a file that cannot be downloaded, or is another one than its hash says.
    """
    if REMOTE.match(where):
        return _downloaded(where)
    path = pathlib.Path(where).expanduser()
    if path.is_dir():
        return None
    return path if path.is_file() else released().get(where)


def _downloaded(address: str) -> pathlib.Path:
    url, _, digest = address.partition("#sha256=")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ConfigError(
            f"{shown(address)}: write the address of a model as URL#sha256=HASH, with the 64 hexadecimal digits that "
            "'jebm export' printed"
        )
    path = files.cache_directory() / "models" / f"{digest}{SUFFIX}"
    if not path.is_file() or files.sha256(path) != digest:
        files.download(url, path, digest)
    return path


def pack(run: Any, out: pathlib.Path, card: Mapping[str, Any]) -> str:
    """Writes the model of a run (`jebm.runs.Run`), whole or not at all; the same run gives the same bytes.

    Args:
        run: the run.
        out: the file.
        card: what is known of the model, JSON values.

    Returns:
        The SHA-256 of the file.
    """
    weights: Weights = run.method.weights if has_ema(run.state) else "raw"
    generator = run.directory.read_generator() if methods.given_generator(run.config) else None
    description = {
        "format": FORMAT,
        "jebm": metadata.version("jebm"),
        "step": run.step,
        "weights": weights,
        "config": to_dict(run.config),
        "generator": generator and {"configs": [to_dict(c) for c in generator[0]], "fingerprint": generator[1]},
        "card": dict(card),
    }
    members = {DESCRIPTION: json.dumps(description, indent=2).encode()}
    for name, leaf in _leaves(_kept(with_weights(run.state, weights))).items():
        stream = io.BytesIO()
        np.save(stream, np.asarray(leaf), allow_pickle=False)
        members[f"{name}.npy"] = stream.getvalue()
    with files.whole(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # dated 1980
    return files.sha256(out)


def read(path: pathlib.Path) -> Packed:
    """The content of a file.

    Raises:
        DataError: no such file, or one that is damaged or of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read(DESCRIPTION))
            if content["format"] != FORMAT:
                raise DataError(
                    f"{path}: a model of format {shown(content['format'])}, written by jebm {shown(content['jebm'])}; "
                    f"this version reads format {FORMAT}"
                )
            names = [name for name in archive.namelist() if name != DESCRIPTION]
            arrays = {name.removesuffix(".npy"): _array(archive.read(name)) for name in names}
        given = content["generator"]
        generator = given and (tuple(from_dict(config) for config in given["configs"]), str(given["fingerprint"]))
        config, step, weights = from_dict(content["config"]), int(content["step"]), str(content["weights"])
        return Packed(path, files.sha256(path), config, generator, step, weights, dict(content["card"]), arrays)
    except DataError:
        raise
    except ConfigError as error:
        raise DataError(f"{path}: its configuration is not of this version of jebm: {error}") from None
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: no model that 'jebm export' wrote, or a damaged one ({type(error).__name__}: {reason}); get it "
            "again"
        ) from error


def _array(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def state_of(packed: Packed, abstract: Any) -> Any:
    """The method's state: the arrays of the file, and zeros for what it leaves out.

    Args:
        packed: the content of the file.
        abstract: shapes and dtypes of the whole state of the method.

    Raises:
        DataError: arrays of other names, shapes or dtypes.
    """
    like = _leaves(_kept(abstract))
    for name in [*like, *packed.arrays]:
        there, wanted = (_described(tree.get(name)) for tree in (packed.arrays, like))
        if there != wanted:
            raise DataError(
                f"{packed.path}: it holds {name} as {there}, and this version of jebm takes {wanted}: it was written "
                "by another version"
            )
    kept = jax.tree.unflatten(jax.tree.structure(_kept(abstract)), [jnp.asarray(packed.arrays[name]) for name in like])
    return jax.tree.map(_filled, abstract, kept, is_leaf=_is_cut)


def _described(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _is_cut(node: Any) -> bool:
    return isinstance(node, Trained | Bank)


def _kept(state: Any) -> Any:
    """The state without optimisers, averages and banks."""

    def cut(node: Any) -> Any:
        if isinstance(node, Bank):
            return None
        return node._replace(optimizer=None, ema=None) if isinstance(node, Trained) else node

    return jax.tree.map(cut, state, is_leaf=_is_cut)


def _filled(node: Any, kept: Any) -> Any:
    """A whole part of the state from a kept one: both sets of weights are the ones of the file."""
    if isinstance(node, Bank):
        return _zeros(node)
    if isinstance(node, Trained):
        return Trained(kept.params, _zeros(node.optimizer), None if node.ema is None else kept.params)
    return kept


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def _leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
