"""Draws any number of samples of a trained model in batches over all devices, resumed after a break.

Memory holds one batch at a time, on the devices and on the host, for any number of samples. Each batch is a file in
``<out>.parts`` until all are complete; the same call after a kill draws only the missing ones. The draws of a batch
are a function of (seed, its number), so a kill changes no sample, and the number of devices changes samples only by
rounding. Nothing but such parts is deleted: a folder of that name with other files is refused.
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jebm import files, images, paths, sharding
from jebm.config import config_hash
from jebm.errors import ConfigError, DataError
from jebm.runs.drawing import Draw, batches
from jebm.runs.run import Run

__all__ = ["KINDS", "draw_to"]

KINDS = (".png", ".npz", "")


def draw_to(
    out: paths.Path, run: Run, num: int, *, seed: int = 0, batch_size: int = 256,
    progress: Callable[[int], Any] = lambda n: None, draw: Draw | None = None,
) -> None:  # fmt: skip
    """Writes ``num`` samples to ``out``: a grid (``.png``), the uint8 array ``x`` (``.npz``), or a folder of PNGs.

    An archive also has ``network_evaluations_per_image``, of `jebm.methods.base.Method`.

    Args:
        out: its suffix is one of `KINDS`.
        run: the trained model.
        num: how many samples.
        seed: of the draws.
        batch_size: samples per call over all devices, which bounds the memory; devices that do not divide it draw a
            few more, which are dropped.
        progress: called with 0 when the first batch begins (it compiles), then with the size of each finished batch.
        draw: how a batch is generated; None: by the devices of this process.

    Raises:
        DataError: samples that are not finite.
        ConfigError: a batch too large; an ``out`` or ``<out>.parts`` with other files.
    """
    batch_size = min(batch_size, num)
    parts = out.with_name(out.name + ".parts")
    request = {"config": config_hash(run.config), "step": run.step, "seed": seed, "batch_size": batch_size, "num": num}
    devices = jax.device_count()
    rows = -(-batch_size // devices) * devices
    if rows * math.prod(run.method.image_shape) >= 2**31:
        raise ConfigError(f"batches of {batch_size:,} images hold more than 2**31 numbers: make the batch smaller")
    _prepare(out, parts, request)
    draw = batches(run.method, run.state, sharding.local_mesh()) if draw is None else draw
    numbers = range(-(-num // batch_size))
    progress(0)
    for number in numbers:
        count, path = min(batch_size, num - number * batch_size), _part(parts, number)
        if not path.exists():
            floating = draw(jax.random.key(seed), number, batch_size)[:count]
            try:
                drawn = images.to_uint8(floating)
            except DataError:  # not finite: no batch of this model is worth keeping
                _discard(parts)
                raise
            images.warn_of_strays(floating)
            with files.whole(path) as temporary, temporary.open("wb") as file:
                np.save(file, drawn)
        progress(count)
    kept = (_read(_part(parts, number)) for number in numbers)
    if out.suffix.lower() == ".npz":
        _write_array(out, num, kept, run.method.evaluations_per_image)
    else:
        {".png": _write_grid, "": _write_folder}[out.suffix.lower()](out, num, kept)
    _discard(parts)


def _part(parts: paths.Path, number: int) -> paths.Path:
    return parts / f"{number:06d}.npy"


def _read(path: paths.Path) -> np.ndarray:
    with path.open("rb") as file:
        batch: np.ndarray = np.load(file)
    return batch


NOTE = "request.json"  # the mark of a folder that this module made
OURS = re.compile(r"(request\.json|\d{6,}\.npy)(\.\w+\.tmp)?")


def _prepare(out: paths.Path, parts: paths.Path, request: dict[str, Any]) -> None:
    """Keeps the parts of the same request and discards those of another; refuses files of others."""
    folder = not out.suffix
    if out.is_dir() and not folder:
        raise ConfigError(f"{out} is a folder; give another name")
    if out.exists() and not out.is_dir() and folder:
        raise ConfigError(f"{out} is a file, not a folder; give another name")
    found = _request(parts)
    if found == request:
        return
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} holds files already; give another name, or empty it")
    if found is not None:
        _discard(parts)
    with files.whole(parts / NOTE) as temporary:
        temporary.write_text(json.dumps(request))


def _request(parts: paths.Path) -> dict[str, Any] | None:
    """The request that the parts in a folder belong to; None where there is no such folder, or an empty one.

    Raises:
        ConfigError: a folder that holds anything but parts, or a file.
    """
    foreign = f"{parts} is not a folder of 'jebm sample', which needs that name for its parts: move it, or give another"
    if not parts.exists():
        return None
    names = [path.name for path in parts.iterdir()] if parts.is_dir() else [""]
    if all(name.startswith(NOTE + ".") and OURS.fullmatch(name) for name in names):  # a kill before the note was whole
        return None
    if NOTE not in names or not all(OURS.fullmatch(name) for name in names):
        raise ConfigError(f"{foreign} --out")
    try:
        request = json.loads((parts / NOTE).read_text())
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not request.keys() & {"config", "step", "seed"}:
        raise ConfigError(f"{foreign} --out")
    return request


def _discard(parts: paths.Path) -> None:
    """Deletes the parts, the note that marks them last."""
    for path in parts.iterdir():
        if OURS.fullmatch(path.name) and path.name != NOTE:
            path.unlink()
    (parts / NOTE).unlink()
    if parts.is_dir():  # in an object store it has gone with the last file
        parts.rmdir()


def _write_grid(out: paths.Path, num: int, batches: Iterator[np.ndarray]) -> None:
    images.save_png(out, images.grid(np.concatenate(list(batches))))


def _write_array(out: paths.Path, num: int, batches: Iterator[np.ndarray], evaluations: int) -> None:
    first = next(batches)
    with files.whole(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (num, *first.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(first.tobytes())
            for batch in batches:
                file.write(batch.tobytes())
        with archive.open("network_evaluations_per_image.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(evaluations))


def _write_folder(out: paths.Path, num: int, batches: Iterator[np.ndarray]) -> None:
    number = 0
    for batch in batches:
        for image in batch:
            images.save_png(out / f"{number:06d}.png", image, smallest_side=1)
            number += 1
