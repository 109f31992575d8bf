"""Image sets by name: ``digits``, ``npz:PATH``, ``folder:PATH``, ``tfds:NAME[:SPLIT]``."""

import difflib

from jebm import paths
from jebm.data.arrays import digits, npz
from jebm.data.source import Source
from jebm.errors import DataError

__all__ = ["KINDS", "check_name", "load"]


KINDS = {"npz": "npz:PATH", "folder": "folder:PATH", "tfds": "tfds:NAME[:SPLIT]"}


def load(name: str, size: int | None = None, crop: str = "auto") -> Source:
    """The source called ``name``, both splits.

    * ``digits``: 1,797 handwritten digits, 8 x 8 x 1, ten classes. The grey levels 0..16 become
      ``floor(255 level / 16 + 1/2)``. The first 1,500 in a fixed random order train, the other 297 test.
    * ``npz:PATH``: a numpy archive, or a folder of them (shards, joined in the order of their names), with ``x_train``
      and ``x_test``, and perhaps ``y_train`` and ``y_test``;
      or with ``x``, and perhaps ``y``, whose last tenth in a fixed random order tests. Images are uint8,
      [N, H, W] or [N, H, W, C] with 1 or 3 channels; labels are integers from 0, an empty array means none.
    * ``folder:PATH``: image files, in folders of any depth; those below ``train`` and ``test`` where these two
      are all there is, else the last tenth in a fixed random order tests.
    * ``tfds:NAME[:SPLIT]``: a data set of TensorFlow Datasets, prepared in ArrayRecord form (`jebm data prepare`);
      ``SPLIT``, such as ``train[:90%]``, is what trains.

    Args:
        name: the source.
        size: the side of square images, for the last two kinds; None: as they are, or the set's own.
        crop: `jebm.data.geometry`; ``auto`` is the set's own for ``tfds:``, and ``none`` for the others.

    Raises:
        DataError: no such source, one that is missing, broken, or holds something else than these.
    """
    kind, argument = check_name(name)
    if kind in ("npz", "folder"):
        try:
            place = paths.place(argument)
        except ValueError as error:
            raise DataError(f"{kind}:{error}") from None
    if kind in ("folder", "tfds"):
        from jebm.data import folders as files
        from jebm.data import tfds

        return files.folder(place, size, crop) if kind == "folder" else tfds.tfds(argument, size, crop)
    if crop not in ("auto", "none"):
        raise DataError(f"crop '{crop}' is for folder: and tfds: sources; '{name}' holds images of one size")
    return digits() if kind == "digits" else npz(place)


def check_name(name: str) -> tuple[str, str]:
    """The kind of source and its argument, the path of a file or a folder with its ``~`` expanded.

    Raises:
        DataError: no such source, or a path of a kind that there is not.
    """
    kind, colon, argument = name.partition(":")
    if kind in ("npz", "folder") and argument:
        try:
            return kind, paths.check(argument)
        except ValueError as error:
            raise DataError(f"{kind}:{error}") from None
    if (kind in KINDS and bool(argument)) or name == "digits":
        return kind, argument
    if name.endswith(".npz"):
        hint = f"; did you mean 'npz:{name}'?"
    else:
        near = difflib.get_close_matches(kind, ["digits", *KINDS], n=1)
        hint = f"; did you mean '{KINDS.get(near[0], near[0])}'?" if near else ""
    raise DataError(f"no data source '{name}'; there are digits, {', '.join(KINDS.values())}{hint}")
