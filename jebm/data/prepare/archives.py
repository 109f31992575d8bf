"""`jebm data info` and `jebm data prepare`: what a source holds, and the writing of sets.

A large set is written in ArrayRecord form, a small one into one ``.npz`` as well.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jebm import files
from jebm.data.named import check_name, load
from jebm.data.prepare.catalogue import ARCHIVES, CATALOGUE, Download, Entry
from jebm.data.prepare.originals import READERS, Examples, Original
from jebm.data.preprocessing import resize_source
from jebm.data.tfds import data_directory, prepared
from jebm.errors import DataError

__all__ = ["info", "prepare", "prepare_archive"]

WITH_TENSORFLOW = "pip install tensorflow"


def info(source: str, size: int | None = None, crop: str = "auto") -> list[str]:
    """Description of a source, line by line; of an unprepared set, its requirements. Small sets are read whole.

    Raises:
        DataError: no such source, or one that is broken.
    """
    kind, argument = check_name(source)
    name = argument.partition(":")[0]
    if kind == "tfds" and prepared(name) is None:
        return [*_describe(name), *_needs(name)]
    found = resize_source(load(source, size, crop), size)
    lines = _describe(name) if kind == "tfds" else [source]
    height, width, channels = found.image_shape
    in_memory = not hasattr(found.train, "reader")
    lines += [
        f"  images        {len(found.train):,} to train, {len(found.test):,} held out; "
        f"{height} x {width} x {channels}, uint8",
        f"  labels        {f'{found.num_classes} classes' if found.num_classes else 'none are read'}",
        f"  steps         {'; then '.join(found.steps) or 'none: the images are as they are stored'}",
        f"  memory        {'decoded once, held as arrays' if in_memory else 'decoded as they are read, by Grain'}",
        f"  fingerprint   {found.fingerprint}",
    ]
    if kind == "tfds":
        lines.append(f"  prepared in   {prepared(name)}")
    return lines


def prepare(source: str, say: Callable[[str], Any]) -> Path:
    """Writes a set of `jebm.data.prepare.catalogue` in ArrayRecord form, from its authors' files, without TensorFlow.

    Files to be downloaded are checked by SHA-256. Sets that are not in the catalogue are left to the builders of
    TensorFlow Datasets, which need TensorFlow. The set appears whole or not at all.

    Returns:
        The folder of the set; at once where it is there already.

    Raises:
        DataError: no ``tfds:`` source, files that must be brought by hand, a failed download, a broken file.
    """
    kind, argument = check_name(source)
    if kind != "tfds":
        raise DataError(
            f"'{source}' needs no preparation; prepare is for tfds:NAME, and for archives of {', '.join(ARCHIVES)}"
        )
    name = argument.partition(":")[0]
    existing = prepared(name)
    if existing is not None:
        return existing
    entry = CATALOGUE.get(name)
    if entry is None:
        return _by_tensorflow(name)
    missing = [file for file, _ in entry.by_hand if find_original(file) is None]
    if missing:
        raise DataError(
            f"{name}: {', '.join(missing)} must be brought by hand into {manual_directory()}: "
            f"{'; '.join(f'{file} from {where}' for file, where in entry.by_hand if file in missing)}"
        )
    for download in entry.downloads:
        if find_original(download.name) is None:
            _download(download, say)
    names = [*(download.name for download in entry.downloads), *(file for file, _ in entry.by_hand)]
    originals = [find_original(file) for file in names]
    return write(name, entry.version, READERS[name]([file for file in originals if file is not None]))


def prepare_archive(name: str, out: Path, originals: Path | None, say: Callable[[str], Any]) -> Path:
    """Writes a set of `jebm.data.prepare.catalogue.ARCHIVES` as one ``.npz`` for ``npz:PATH``, from its authors' files.

    Its arrays are ``x_train``, ``y_train``, ``x_test``, ``y_test``, in the order of the originals. Each original is
    compared with its SHA-256, a brought one as well.

    Args:
        name: of the set.
        out: the archive; one that is there is left as it is.
        originals: a folder with the authors' files; None: those that are in `manual_directory`, else downloaded to it.
        say: called with a line for the user.

    Returns:
        ``out``.

    Raises:
        DataError: a file that is missing, cannot be downloaded, is broken or another one than the authors'.
    """
    if out.exists():
        say(f"{out} is there already")
        return out
    found = []
    for download in CATALOGUE[name].downloads:
        path = _brought(download, originals)
        if path is None:
            path = _download(download, say)
        elif (digest := files.sha256(path)) != download.sha256:
            raise DataError(
                f"{path}: its SHA-256 is {digest[:16]}..., that of the authors' file {download.sha256[:16]}...; remove "
                f"it, or bring the file of {download.url}"
            )
        found.append(path)
    arrays: dict[str, np.ndarray] = {}
    for split, examples in READERS[name](found).splits.items():
        images, labels = zip(*((_pixels(encoded), label) for encoded, label in examples()), strict=True)
        arrays |= {f"x_{split}": np.stack(images), f"y_{split}": np.array(labels, np.int32)}
    files.write_arrays(out, arrays)
    return out


def _pixels(encoded: bytes) -> np.ndarray:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _brought(download: Download, originals: Path | None) -> Path | None:
    """The original that is there, if any; in the folder of the user it has to be."""
    if originals is None:
        return find_original(download.name)
    for name in (download.name, Path(download.name).name):
        if (originals / name).is_file():
            return originals / name
    raise DataError(f"{originals} holds no {Path(download.name).name}: bring it from {download.url}")


def _download(download: Download, say: Callable[[str], Any]) -> Path:
    say(f"downloading {download.url} ({download.size / 1e6:,.2f} MB)")
    path = manual_directory() / download.name
    files.download(download.url, path, download.sha256)
    return path


def manual_directory() -> Path:
    """Folder of the originals: ``downloads/manual`` in the data directory."""
    return data_directory() / "downloads" / "manual"


def find_original(file: str) -> Path | None:
    """The file, or the folder in place of an archive of this name; None without either."""
    for name in (file, file.removesuffix(".zip")):
        if (manual_directory() / name).exists():
            return manual_directory() / name
    return None


def _describe(name: str) -> list[str]:
    what = CATALOGUE[name].what if name in CATALOGUE else "a set that this library knows nothing of"
    return [f"tfds:{name}", f"  {what}"]


def _needs(name: str) -> list[str]:
    lines = [f"  not prepared in {data_directory()} (environment variable TFDS_DATA_DIR)"]
    entry = CATALOGUE.get(name, Entry())
    for download in entry.downloads:
        state = "is there" if find_original(download.name) else "to be downloaded"
        lines.append(f"  {state}: {download.url} ({download.size / 1e6:,.0f} MB)")
    for file, where in entry.by_hand:
        if find_original(file):
            lines.append(f"  is there: {find_original(file)}")
        else:
            lines.append(f"  bring by hand: {manual_directory() / file}\n    from {where}")
    if name not in CATALOGUE:
        lines.append(f"  its builder needs TensorFlow, to prepare only: {WITH_TENSORFLOW}")
    return [*lines, f"  then: jebm data prepare tfds:{name}"]


def write(name: str, version: str, original: Original) -> Path:
    """Writes a set, in the order of the originals, as a builder of TensorFlow Datasets would.

    Raises:
        DataError: a broken original.
    """
    import tensorflow_datasets

    core, features = tensorflow_datasets.core, tensorflow_datasets.features
    base, _, config = name.partition("/")
    held: dict[str, Any] = {"image": features.Image(shape=original.image_shape)}
    if original.num_classes:
        held["label"] = features.ClassLabel(num_classes=original.num_classes)

    def describe(self: Any) -> Any:
        described = features.FeaturesDict(held)
        return core.DatasetInfo(builder=self, features=described, disable_shuffling=True)

    def splits(self: Any, manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(examples) for split, examples in original.splits.items()}

    def generate(self: Any, examples: Callable[[], Examples]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(examples()):
            yield index, {"image": image} | ({"label": label} if original.num_classes else {})

    members = {
        "name": base, "VERSION": core.Version(version), "_info": describe, "_split_generators": splits,
        "_generate_examples": generate, "pkg_dir_path": None,
        "BUILDER_CONFIGS": [core.BuilderConfig(name=config)] if config else [],
    }  # fmt: skip
    kind: Any = type("Builder", (core.GeneratorBasedBuilder,), members, skip_registration=True)
    options = {"config": config} if config else {}
    builder = kind(data_dir=str(data_directory()), file_format="array_record", **options)
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS adds lines of its own to what a generator raises
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            first = (str(error).strip().splitlines() or [""])[0]
            raise DataError(f"{name}: cannot be prepared ({type(error).__name__}: {first})") from error
        raise DataError(str(cause).splitlines()[0]) from error
    return Path(builder.data_dir)


def _by_tensorflow(name: str) -> Path:
    import importlib.util

    import tensorflow_datasets

    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"{name}: its builder needs TensorFlow, to prepare only: {WITH_TENSORFLOW}, then again; "
            f"sets that need none: {', '.join(CATALOGUE)}"
        )
    try:
        builder = tensorflow_datasets.builder(name, data_dir=str(data_directory()), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"{name}: TensorFlow Datasets cannot prepare it ({type(error).__name__}: {first})") from error
    return Path(builder.data_dir)
