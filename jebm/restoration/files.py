"""Restoration of files."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm import files, images, losses, paths
from jebm.data import DataError
from jebm.metrics.image_quality import psnr
from jebm.restoration.images import read_images
from jebm.restoration.operators import Operator
from jebm.restoration.run_prior import prior
from jebm.restoration.sampler import RestorationConfig, Restored, restore
from jebm.restoration.tasks import Task
from jebm.runs.run import Run

__all__ = ["measure", "restore_files"]


BATCH_SIZE = 64  # images restored at once, times the restarts


def measure(restored: Restored, operator: Operator, y: Array, original: Array | None = None) -> dict[str, np.ndarray]:
    """Per image [B]: ``consistency_error``, mean ``|A x̂ - y|`` of the image as returned, clipped to [-1, 1]; with
    the ``original`` also ``psnr`` in dB and ``ssim`` of the restored image, and ``psnr_pseudo_inverse`` of ``A⁺y``.
    """  # fmt: skip
    measured = jax.vmap(operator.apply)(restored.images)
    errors = jnp.abs(measured - y).reshape(len(y), -1).mean(1)
    scores = {"consistency_error": np.asarray(errors)}
    if original is not None:
        plain = jnp.clip(jax.vmap(operator.pseudo_inverse)(y), -1.0, 1.0)
        scores["psnr"] = psnr(np.asarray(restored.images), np.asarray(original))
        scores["ssim"] = np.asarray(1.0 - jax.vmap(losses.ssim_loss)(restored.images, original))
        scores["psnr_pseudo_inverse"] = psnr(np.asarray(plain), np.asarray(original))
        scores["ssim_pseudo_inverse"] = np.asarray(1.0 - jax.vmap(losses.ssim_loss)(plain, original))
    return scores


def restore_files(
    run: Run,
    task: Task,
    path: paths.Path,
    out: paths.Path,
    *,
    config: RestorationConfig,
    original: paths.Path | None = None,
    degrade: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], Any] = lambda n, num: None,
) -> dict[str, Any]:
    """Restores pictures or arrays and writes them: the images to ``out``, the scores to a JSON file beside them.

    Args:
        run: the prior.
        task: the degradation.
        path: degraded pictures (or, with ``degrade``, undamaged ones): a picture, a folder, or an array.
        out: a ``.png`` (one image), an ``.npz`` (array 'x', uint8), or a folder.
        config: of the sampler.
        original: the undamaged pictures, to be compared with.
        degrade: degrade the input first, with noise of ``config.noise_std``; it is the original then.
        seed: of the sampler and of that noise.
        progress: called with 0 when the work begins, then after each batch: its images, and how many there are.

    Returns:
        What the JSON file holds.

    Raises:
        DataError, ConfigError, ValueError: input that does not fit; nothing has been written.
    """
    kind = out.suffix.lower()
    if kind not in (".png", ".npz", ""):
        raise DataError(f"{out}: give a .png (one image), an .npz, or a folder (a name without a suffix)")
    if kind and out.is_dir():
        raise DataError(f"{out}: a folder of that name is there; give another name")
    if not kind and out.is_file():
        raise DataError(f"{out}: a file of that name is there; a folder is to be written")
    if out.exists() and any(given and given.exists() and _same(out, given) for given in (path, original)):
        raise DataError(f"{out}: is the input, which would be overwritten; give another place")
    if degrade and original:
        raise DataError(f"{original}: an input that is degraded first is its own original; leave --original out")
    shape = run.method.image_shape
    operator = task.operator(shape)
    measured = jax.eval_shape(operator.apply, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    if degrade:
        names, given = read_images(path, shape, "the image")
    else:
        hint = "" if measured == shape else "; with --degrade give undamaged images"
        names, given = read_images(path, measured, "the measurement", hint)
    truth = given if degrade else read_images(original, shape, "the original")[1] if original else None
    if truth is not None and len(truth) != len(given):
        raise DataError(f"{original}: {len(truth)} originals for {len(given)} measurements")
    if kind == ".png" and len(given) > 1:
        raise DataError(f"{out}: one picture cannot hold {len(given)} images; give an .npz or a folder")
    y = jnp.asarray(given)
    noise_key, chain_key = jax.random.split(jax.random.key(seed))
    if degrade:
        y = jax.vmap(operator.apply)(y)
        y += config.noise_std * jax.random.normal(noise_key, y.shape)
    elif task.name == "inpaint":
        y = jax.vmap(operator.apply)(y)  # ignore the values of missing pixels
    count = lambda n: progress(n, len(y))  # noqa: E731
    restored = restore(chain_key, prior(run), operator, y, config, batch_size=BATCH_SIZE, progress=count)
    scores = measure(restored, operator, y, None if truth is None else jnp.asarray(truth))
    about = {
        "task": dataclasses.asdict(task), "settings": dataclasses.asdict(config), "seed": seed, "step": run.step,
        "images": names, **{name: [round(float(v), 6) for v in values] for name, values in scores.items()},
    }  # fmt: skip
    _write(out, names, images.to_uint8(restored.images), about)
    return about


def _same(one: paths.Path, other: paths.Path) -> bool:
    if paths.is_remote(one) or paths.is_remote(other):
        return one == other
    return one.samefile(other)


def _write(out: paths.Path, names: list[str], x: np.ndarray, about: dict[str, Any]) -> None:
    """The pictures, each file whole or not at all, and the scores last."""
    if out.suffix.lower() == ".png":
        images.save_png(out, x[0], smallest_side=1)
    elif out.suffix.lower() == ".npz":
        files.write_arrays(out, {"x": x})
    else:
        for name, image in zip(names, x, strict=True):
            images.save_png((out / name).with_suffix(".png"), image, smallest_side=1)
    scores = out.with_suffix(".json") if out.suffix else out / "restoration.json"
    with files.whole(scores) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n")
