"""Image sets by name: ``digits``, ``npz:``, ``folder:``, ``hf:``, ``tfds:``, ``points:``."""

import difflib

from jebm import paths
from jebm.data.arrays import digits, npz
from jebm.data.prepare.catalogue import ARCHIVES
from jebm.data.source import Source
from jebm.errors import DataError

__all__ = ["KINDS", "check_name", "load"]


KINDS = {
    "npz": "npz:PATH",
    "folder": "folder:PATH",
    "hf": "hf:NAME",
    "tfds": "tfds:NAME[:SPLIT]",
    "points": "points:NAME",
}


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
    * ``hf:NAME``: the parquet files of a set of the Hugging Face hub, in a folder or in the hub's own cache, with
      images in ``image`` or ``img`` and perhaps labels (`jebm.data.parquet.hub`); nothing is downloaded.
    * ``tfds:NAME[:SPLIT]``: a data set of TensorFlow Datasets, prepared in ArrayRecord form (`jebm data prepare`);
      ``SPLIT``, such as ``train[:90%]``, is what trains.
    * ``points:NAME``: a two-dimensional set of `jebm.problems`, as ``points:two_moons``: images of one pixel and two
      channels, the coordinates (`jebm.data.points`).

    Args:
        name: the source.
        size: the side of square images, for files; of points 1; None: as they are, or the set's own.
        crop: `jebm.data.geometry`; ``auto`` is the set's own for ``tfds:``, and ``none`` for the others.

    Raises:
        DataError: no such source, one that is missing, broken, or holds something else than these.

    Examples:
        >>> digits = jebm.data.load("digits")
        >>> digits.train.shape, digits.train.dtype, len(digits.test)
        ((1500, 8, 8, 1), dtype('uint8'), 297)
    """
    kind, argument = check_name(name)
    if kind in ("npz", "folder"):
        try:
            place = paths.place(argument)
        except ValueError as error:
            raise DataError(f"{kind}:{error}") from None
    if kind in ("folder", "hf", "tfds"):
        from jebm.data import folders, parquet, tfds

        if kind == "folder":
            return folders.folder(place, size, crop)
        return (parquet.hub if kind == "hf" else tfds.tfds)(argument, size, crop)
    if crop not in ("auto", "none"):
        raise DataError(f"crop '{crop}' is for folder:, hf: and tfds: sources; '{name}' holds images of one size")
    if kind == "points":
        from jebm.data.points import points

        if size not in (None, 1):
            raise DataError(
                f"points are images of one pixel, not of {size}: set method.image_size=1 and method.channels=2"
            )
        return points(argument)
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
        near = difflib.get_close_matches(kind, ["digits", *KINDS, *ARCHIVES], n=1)
        hint = f"; did you mean '{KINDS.get(near[0], near[0])}'?" if near else ""
        if near and near[0] in ARCHIVES:
            hint = f"; 'jebm data prepare {near[0]}' makes npz:data/{near[0]}.npz"
    raise DataError(f"no data source '{name}'; there are digits, {', '.join(KINDS.values())}{hint}")
