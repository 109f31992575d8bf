"""``hf:NAME``: parquet files of the Hugging Face hub that are on this machine, read with pyarrow alone."""

import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jebm import paths
from jebm.data.geometry import Geometry
from jebm.data.image_set import IMAGE_MODES, ImageSet, decode_file
from jebm.data.source import Source, holdout_split, of_image_sets
from jebm.errors import DataError

__all__ = ["ParquetReader", "hub"]

IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label")
LOOKED_AT = 100  # images whose headers say how many channels there are


@dataclasses.dataclass(frozen=True)
class ParquetReader:
    """The images in a column of some files; each process holds them as they are stored, encoded.

    Attributes:
        files: in the order of their rows.
        column: of image files as bytes, or of records with such ``bytes``.
        num_rows: of all files.
    """

    files: tuple[Path, ...]
    column: str
    num_rows: int

    @functools.cached_property
    def values(self) -> Any:
        """The column, read when it is first needed."""
        return _column(self.files, self.column)

    def __getstate__(self) -> dict[str, Any]:  # files are read again in a worker process
        return {key: value for key, value in self.__dict__.items() if key != "values"}

    def __len__(self) -> int:
        return self.num_rows

    def read(self, index: int) -> bytes:
        """The content of image file ``index``."""
        value = self.values[index].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DataError(f"{self.where(index)}: holds no bytes of an image, but {type(content).__name__}")
        return content

    def where(self, index: int) -> str:
        """Folder, file names and row."""
        return f"{self.files[0].parent}, row {index} of {self.files[0].name.partition('-')[0]}, column {self.column!r}"

    def identity(self) -> str:
        """Of names and sizes."""
        described = [(path.name, path.stat().st_size) for path in self.files]
        return hashlib.sha256(repr((described, self.column)).encode()).hexdigest()


def hub(argument: str, size: int | None = None, crop: str = "auto") -> Source:
    """The images of ``OWNER/NAME``, or of a folder of parquet files.

    Files whose names begin with ``train`` train; those with ``test``, ``validation``, ``valid`` or ``val``, in this
    order of preference, are held out; where there are none, the last tenth in a fixed random order. Images are the
    column ``image`` or ``img``, labels the integers in ``label``, ``labels`` or ``fine_label``.

    Raises:
        DataError: pyarrow is not installed; no such files here; files without such columns, or broken ones.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError("hf: sources need pyarrow: pip install pyarrow")
    folder = _folder(argument)
    splits = _splits(folder)
    readers, labels = zip(*(_opened(splits[name]) for name in ("train", "test") if name in splits), strict=True)
    rows = [np.arange(len(reader)) for reader in readers]
    if len(readers) == 1:
        rows = list(holdout_split(rows[0], str(folder)))
        readers, labels = readers * 2, labels * 2
    geometry = Geometry("none" if crop == "auto" else crop, size)
    channels = max(_channels(readers[0], index) for index in range(min(len(readers[0]), LOOKED_AT)))
    first = decode_file(readers[0].read(0), readers[0].where(0), Geometry(), channels)
    if geometry.crop == "none" and first.shape[:2] in ((size, size), first.shape[:2] if size is None else None):
        geometry = Geometry()
    shape = (*first.shape[:2], channels) if geometry.size is None else (geometry.size, geometry.size, channels)
    train, test = (ImageSet(reader, geometry, shape, chosen) for reader, chosen in zip(readers, rows, strict=True))
    known = all(part is not None and len(part) and part.min() >= 0 for part in labels)
    chosen = [part[row].astype(np.int32) if known else None for part, row in zip(labels, rows, strict=True)]
    return of_image_sets(argument.rstrip("/").rpartition("/")[2], train, test, geometry, *chosen)


def _folder(argument: str) -> Path:
    """The folder of files: a path, or the newest snapshot in the cache of the hub's programs."""
    try:
        local = paths.local(argument)
        cache = os.environ.get("HF_HUB_CACHE") or f"{os.environ.get('HF_HOME') or '~/.cache/huggingface'}/hub"
        home = paths.local(cache)
    except ValueError as error:
        raise DataError(f"hf:{error}") from None
    if local.is_dir():
        return local
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", argument):
        raise DataError(f"hf:{argument}: no folder, and no name such as OWNER/NAME or OWNER/NAME/CONFIGURATION")
    name, part = "/".join(argument.split("/")[:2]), "/".join(argument.split("/")[2:])
    base = home / f"datasets--{name.replace('/', '--')}"
    main = base / "refs/main"
    snapshots = [base / "snapshots" / main.read_text().strip()] if main.is_file() else []
    for snapshot in snapshots:
        if (snapshot / part).is_dir():
            return snapshot / part
    raise DataError(
        f"hf:{argument} is not here: get it by 'hf download --repo-type dataset {name} --include \"*.parquet\"' "
        f"(pip install huggingface_hub), or give a folder of parquet files; looked in {base}"
    )


def _splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files that train and those that are held out."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: no .parquet files in this folder")
    of = {name: [f for f in files if re.match(rf"{name}(?![a-z])", f.stem)] for name in _NAMES}
    train = of["train"] or ([] if any(of.values()) else files)
    test = next((of[name] for name in _NAMES[1:] if of[name]), [])
    if not train:
        raise DataError(f"{folder}: no file begins with 'train'; there are {', '.join(f.name for f in files[:5])}")
    folders = sorted({file.parent.relative_to(folder).as_posix() for file in train})
    if len(folders) > 1:
        raise DataError(f"{folder}: several sets, in {', '.join(folders)}: add one to the name")
    return {"train": tuple(train)} | ({"test": tuple(test)} if test else {})


_NAMES = ("train", "test", "validation", "valid", "val")


def _opened(files: tuple[Path, ...]) -> tuple[ParquetReader, np.ndarray | None]:
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(files[0]).names
        num_rows = sum(parquet.read_metadata(file).num_rows for file in files)
    except Exception as error:  # pyarrow raises many kinds
        raise DataError(_broken(files[0], error)) from error
    column = next((name for name in IMAGES if name in names), None)
    if column is None:
        raise DataError(f"{files[0]}: no column {' or '.join(map(repr, IMAGES))}; there are {', '.join(names)}")
    label = next((name for name in LABELS if name in names), None)
    labels = None if label is None else _column(files, label).to_numpy()
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        labels = None
    return ParquetReader(files, column, num_rows), labels


def _column(files: tuple[Path, ...], name: str) -> Any:
    import pyarrow
    import pyarrow.parquet as parquet

    chunks = []
    for file in files:
        try:
            chunks += parquet.read_table(file, columns=[name])[name].chunks
        except Exception as error:
            raise DataError(_broken(file, error)) from error
    return pyarrow.chunked_array(chunks)


def _broken(file: Path, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{file}: cannot be read as parquet ({type(error).__name__}: {first})"


def _channels(reader: ParquetReader, index: int) -> int:
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(reader.read(index))) as image:
            return IMAGE_MODES[image.mode]
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{reader.where(index)}: not an image of 8 bits per channel, or a broken one") from error
