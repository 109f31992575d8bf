"""Image sets by name: ``digits`` (bundled with scikit-learn), ``npz:PATH``, ``folder:PATH``, ``tfds:NAME[:SPLIT]``."""

import numpy as np

from jebm import paths
from jebm.data.loader import permutation
from jebm.data.prepare.catalogue import ARCHIVES
from jebm.data.source import Source, of_arrays
from jebm.errors import DataError


def _split(name: str, images: np.ndarray, labels: np.ndarray | None, num_test: int, seed: int = 0) -> Source:
    order = permutation(seed, 0, len(images))
    train, test = order[: len(images) - num_test], order[len(images) - num_test :]
    if labels is None:
        return of_arrays(name, images[train], images[test], None, None)
    return of_arrays(name, images[train], images[test], labels[train], labels[test])


def digits() -> Source:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    levels = bundled.images.astype(np.int64)
    images = ((levels * 255 + 8) // 16).astype(np.uint8)[..., None]
    return _split("digits", images, bundled.target.astype(np.int32), num_test=297)


def npz(path: paths.Path) -> Source:
    arrays = _read_shards(path) if path.is_dir() else _read_npz(path)
    if "x_train" in arrays:
        if "x_test" not in arrays:
            raise DataError(f"{path}: holds 'x_train' but no 'x_test'; give both, or all images as 'x'")
        train, test = (_images(path, key, arrays[key]) for key in ("x_train", "x_test"))
        if train.shape[1:] != test.shape[1:]:
            shapes = f"{train.shape[1:]} and {test.shape[1:]}"
            raise DataError(f"{path}: images of 'x_train' and 'x_test' have the shapes {shapes}; make them equal")
        labelled = [key for key in ("y_train", "y_test") if key in arrays]
        if len(labelled) == 1:
            raise DataError(f"{path}: holds '{labelled[0]}' alone; give 'y_train' and 'y_test', or neither")
        if not labelled:
            return of_arrays(path.stem, train, test, None, None)
        labels = [_labels(path, key, arrays[key], len(x)) for key, x in (("y_train", train), ("y_test", test))]
        return of_arrays(path.stem, train, test, labels[0], labels[1])
    if "x" not in arrays:
        raise DataError(f"{path}: no image array; wanted are 'x_train' and 'x_test', or 'x'")
    images = _images(path, "x", arrays["x"])
    if len(images) < 2:
        raise DataError(f"{path}: 'x' holds one image; to be split it must hold at least 2")
    labels_or_none = _labels(path, "y", arrays["y"], len(images)) if "y" in arrays else None
    return _split(path.stem, images, labels_or_none, num_test=max(1, len(images) // 10))


def _read_shards(path: paths.Path) -> dict[str, np.ndarray]:
    """The arrays of a folder of archives, each joined in the order of the files' names."""
    shards = {file: _read_npz(file) for file in sorted(path.glob("*.npz"))}
    if not shards:
        raise DataError(f"{path}: no .npz in this folder")
    names = {file: sorted(arrays) for file, arrays in shards.items()}
    first = next(iter(shards))
    for file, arrays in shards.items():
        if names[file] != names[first]:
            raise DataError(f"{file}: holds {names[file]}, but {first.name} holds {names[first]}; shards must be alike")
        for name, array in arrays.items():
            if array.ndim == 0:
                raise DataError(f"{file}: {name!r} is one number; the arrays of shards have an axis of images")
            if array.shape[1:] != shards[first][name].shape[1:] or array.dtype != shards[first][name].dtype:
                raise DataError(f"{file}: {name!r} is {array.dtype} {array.shape}, unlike that of {first.name}")
    return {name: np.concatenate([arrays[name] for arrays in shards.values()]) for name in names[first]}


def _read_npz(path: paths.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        if path.suffix == ".npz" and path.stem in ARCHIVES:
            out = "" if str(path) == f"data/{path.stem}.npz" else f" --out {path}"
            raise DataError(f"{path}: no such file; make it by 'jebm data prepare {path.stem}{out}'")
        raise DataError(
            f"{path}: no such file; write it by np.savez(path, x_train=..., x_test=...), uint8 [N, H, W, C], or take "
            "another source: digits, folder:PATH, tfds:NAME ('jebm data info tfds:NAME' says what it needs)"
        )
    arrays, reading = {}, "the archive"
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: a bare array, not an .npz archive; write it by np.savez(path, x=array)")
            for name in {"x_train", "x_test", "y_train", "y_test", "x", "y"} & set(archive.files):
                reading = f"'{name}'"
                arrays[name] = archive[name]
    except DataError:
        raise
    except Exception as error:  # damaged archives fail in many ways: lengths, versions, encryption, codecs
        reason = type(error).__name__
        raise DataError(f"{path}: cannot read {reading}; not an .npz archive, or a broken one ({reason})") from error
    return {name: array for name, array in arrays.items() if name.startswith("x") or array.size}


def _images(path: paths.Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        problem = f"is {images.dtype}"
        if np.issubdtype(images.dtype, np.floating):
            bad = int(np.size(images) - np.isfinite(images).sum())
            problem += f" with {bad:,} values that are NaN or infinite" if bad else ""
        raise DataError(f"{path}: '{key}' {problem}; images must be uint8 in 0..255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{path}: '{key}' has shape {images.shape}; images are [N, H, W] or [N, H, W, C] with C = 1 or 3"
        )
    if images.size == 0:
        raise DataError(f"{path}: '{key}' is empty, shape {images.shape}")
    return images


def _labels(path: paths.Path, key: str, labels: np.ndarray, num_images: int) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (num_images,):
        raise DataError(
            f"{path}: '{key}' is {labels.dtype} {labels.shape}; labels must be integers, one for each of the "
            f"{num_images} images"
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        raise DataError(f"{path}: '{key}' runs from {labels.min()} to {labels.max()}; labels count from 0")
    return labels.astype(np.int32)
