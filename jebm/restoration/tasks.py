"""Restoration with a trained run: its prior, the tasks by name, pictures in and out."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jebm import energy as energies
from jebm import images, losses
from jebm.data import DataError
from jebm.data.image_set import IMAGE_MODES
from jebm.methods import FAMILIES, family_of
from jebm.networks.hat_ebm import code_shape
from jebm.restoration import operators
from jebm.restoration.operators import Operator
from jebm.restoration.sampler import Prior, RestorationConfig, Restored, restore
from jebm.runs import Run, load

__all__ = [
    "TASKS", "Task", "image_shape", "measure", "prior_of", "psnr", "read_images", "read_mask", "restore_files",
]  # fmt: skip

TaskName = Literal["inpaint", "superres", "colorize", "deblur", "compressed"]
TASKS: tuple[str, ...] = get_args(TaskName)
BATCH_SIZE = 64  # images restored at once, times the restarts
SAMPLES = 64  # generated samples over which the energy's standard deviation is taken


@dataclasses.dataclass(frozen=True)
class Task:
    """A degradation by name.

    Attributes:
        name: one of `TASKS`.
        mask: of ``inpaint``: ``"box"`` (the central square), ``"random"``, or a picture's path: white is known.
        factor: of ``superres``.
        downsampling: of ``superres``: ``"average"`` or ``"bicubic"``.
        kernel: of ``deblur``: ``"gaussian"`` (5 taps, deviation 10), ``"uniform"`` (9 taps), or ``"anisotropic"``
            (9 taps, deviations 20 along the height and 1 along the width).
        fraction: of the pixels that ``inpaint`` with a random mask knows (0.5 by default), or of the coefficients
            that ``compressed`` measures (0.25 by default).
        seed: of the random mask and of the choice of coefficients.
    """

    name: TaskName
    mask: str = "box"
    factor: int = 2
    downsampling: Literal["average", "bicubic"] = "average"
    kernel: Literal["gaussian", "uniform", "anisotropic"] = "gaussian"
    fraction: float | None = None
    seed: int = 0

    def operator(self, shape: tuple[int, int, int]) -> Operator:
        """The operator for square images of ``shape``.

        Raises:
            ValueError: a setting that does not fit the shape.
            DataError: a mask that cannot be read or is of another size.
        """
        size, _, channels = shape
        if self.name == "superres":
            build = operators.average_pooling if self.downsampling == "average" else operators.bicubic
            return build(size, self.factor)
        if self.name == "colorize":
            if channels == 1:
                raise ValueError("colorize: this model makes grey images")
            return operators.Colorization(channels)
        if self.name == "deblur":
            return operators.blur(size, *KERNELS[self.kernel])
        if self.name == "compressed":
            return operators.WalshHadamard.of(size, 0.25 if self.fraction is None else self.fraction, self.seed)
        if self.mask == "box":
            return operators.Inpainting.of(operators.box_mask(size))
        if self.mask == "random":
            fraction = 0.5 if self.fraction is None else self.fraction
            return operators.Inpainting.of(operators.random_mask(size, fraction, self.seed))
        return operators.Inpainting.of(read_mask(pathlib.Path(self.mask), size))


KERNELS = {
    "gaussian": (operators.gaussian_kernel(10.0),),
    "uniform": (operators.uniform_kernel(),),
    "anisotropic": (operators.gaussian_kernel(20.0, 9), operators.gaussian_kernel(1.0, 9)),
}


def prior_of(run: Run) -> Prior:
    """The prior that a trained run is: its generator, where its family has one, and its energy.

    E of the latent chain is divided by its standard deviation over 64 generated images [ours], so that an energy
    weight means the same for every family; the refinement's is E as the family has it, over its temperature.

    A Denoising-EBM has a generator where its chains walk latents: the decoder, with latents of N(0, I).

    Raises:
        ConfigError: the generator belongs to another run that is not there.
    """
    config, method = run.config.method, run.method
    one = Partial(lambda state, x: method.energy(state, x[None])[0], run.state)
    native = energies.temper(one, config.temperature) if family_of(config) == "hat_ebm" else one
    path = getattr(config, "generator", "")
    other = run if path in ("", "network") else load(path)
    generator = FAMILIES[family_of(other.config.method)].generator(other.config.method, other.state)
    if generator is None:
        return Prior(None, native, jnp.zeros(image_shape(run)))
    latent = jnp.zeros(_latent_shape(config))
    z = jax.random.normal(jax.random.key(0), (SAMPLES, *latent.shape))
    deviation = jax.jit(lambda generator, z: jnp.std(jax.lax.map(lambda z: one(generator(z)), z)))(generator, z)
    return Prior(generator, energies.scale(one, 1.0 / jnp.maximum(deviation, 1e-12)), latent, native)


def _latent_shape(config: Any) -> tuple[int, ...]:
    if family_of(config) == "hat_autoencoder" or getattr(config, "application", "") == "retrofit":
        return code_shape(config.image_size)
    return (config.latent_size,)


def image_shape(run: Run) -> tuple[int, int, int]:
    """(H, W, C) of the run's images."""
    method = run.config.method
    return (method.image_size, method.image_size, method.channels)


def measure(restored: Restored, operator: Operator, y: Array, original: Array | None = None) -> dict[str, np.ndarray]:
    """Per image [B]: ``consistency_error``, mean ``|A x̂ - y|`` of the image as returned, clipped to [-1, 1]; with
    the ``original`` also ``psnr`` in dB and ``ssim`` of the restored image, and ``psnr_pseudo_inverse`` of ``A⁺y``.
    """  # fmt: skip
    measured = jax.vmap(operator.apply)(restored.images)
    errors = jnp.abs(measured - y).reshape(len(y), -1).mean(1)
    scores = {"consistency_error": np.asarray(errors)}
    if original is not None:
        plain = jnp.clip(jax.vmap(operator.pseudo_inverse)(y), -1.0, 1.0)
        scores["psnr"] = np.asarray(psnr(restored.images, original))
        scores["ssim"] = np.asarray(1.0 - jax.vmap(losses.ssim)(restored.images, original))
        scores["psnr_pseudo_inverse"] = np.asarray(psnr(plain, original))
        scores["ssim_pseudo_inverse"] = np.asarray(1.0 - jax.vmap(losses.ssim)(plain, original))
    return scores


def restore_files(
    run: Run,
    task: Task,
    path: pathlib.Path,
    out: pathlib.Path,
    *,
    config: RestorationConfig,
    original: pathlib.Path | None = None,
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
        progress: is told of 0 when the work begins, then of each batch that is done: how many images, of how many.

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
    if out.exists() and any(given and given.exists() and out.samefile(given) for given in (path, original)):
        raise DataError(f"{out}: is the input, which would be overwritten; give another place")
    if degrade and original:
        raise DataError(f"{original}: an input that is degraded first is its own original; leave --original out")
    shape = image_shape(run)
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
        y = jax.vmap(operator.apply)(y)  # whatever stands in the missing pixels
    tell = lambda n: progress(n, len(y))  # noqa: E731
    restored = restore(chain_key, prior_of(run), operator, y, config, batch_size=BATCH_SIZE, progress=tell)
    scores = measure(restored, operator, y, None if truth is None else jnp.asarray(truth))
    about = {
        "task": dataclasses.asdict(task), "settings": dataclasses.asdict(config), "seed": seed, "step": run.step,
        "images": names, **{name: [round(float(v), 6) for v in values] for name, values in scores.items()},
    }  # fmt: skip
    _write(out, names, images.to_uint8(restored.images), about)
    return about


def _write(out: pathlib.Path, names: list[str], x: np.ndarray, about: dict[str, Any]) -> None:
    """The pictures, each file whole or not at all, and the scores last."""
    if out.suffix.lower() == ".png":
        images.save_png(out, x[0], smallest_side=1)
    elif out.suffix.lower() == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(out.name + ".tmp.npz")
        np.savez(temporary, x=x)
        temporary.replace(out)
    else:
        for name, image in zip(names, x, strict=True):
            images.save_png((out / name).with_suffix(".png"), image, smallest_side=1)
    scores = out.with_suffix(".json") if out.suffix else out / "restoration.json"
    temporary = scores.with_name(scores.name + ".tmp")
    temporary.write_text(json.dumps(about, indent=2) + "\n")
    temporary.replace(scores)


def psnr(x: Array, original: Array) -> Array:
    """``10 log10(4 / mean (x - original)²)`` of each image [B, H, W, C] in [-1, 1], in dB."""
    error = jnp.mean(jnp.square(x - original), (-3, -2, -1))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-12))


def read_images(
    path: pathlib.Path, shape: tuple[int, ...], what: str, hint: str = ""
) -> tuple[list[str], np.ndarray]:
    """Names and float32 images [n, *shape] of a picture, a folder of pictures, or an array (.npy, or 'x' of .npz).

    uint8 images become [-1, 1]; arrays of floats must lie there, up to what noise adds (1.5), unless they are no images
    (``shape`` of two axes).

    Args:
        path: what to read.
        shape: the shape that each must have.
        what: words for it in errors, such as "the original".
        hint: what to add where the shape is another.

    Raises:
        DataError: nothing there, a file that is no picture, another shape, or values out of range.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise DataError(f"{path}: no picture ({', '.join(PICTURES)}) in this folder")
        stems = collections.Counter(file.stem for file in files)  # what their restored pictures are called
        if stems.most_common(1)[0][1] > 1:
            raise DataError(f"{path}: two pictures are called {stems.most_common(1)[0][0]!r}; rename one of them")
        arrays = [_checked(file, read_picture(file)[None], shape, what, hint)[0] for file in files]
        return [file.name for file in files], np.stack(arrays)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix.lower() in PICTURES:
        return [path.name], _checked(path, read_picture(path)[None], shape, what, hint)
    x = _checked(path, _read_array(path), shape, what, hint)
    return [f"{i:06d}.png" for i in range(len(x))], x


LARGEST = 1.5  # of an image's absolute values: noise and the bicubic kernel overshoot 1
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


def read_picture(path: pathlib.Path) -> np.ndarray:
    """uint8 [H, W, 1] of a grey picture, [H, W, 3] of a coloured one."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode not in IMAGE_MODES:
                raise DataError(f"{path}: pixels of mode {picture.mode}; give 8 bits per channel")
            if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
                raise DataError(f"{path}: pixels are transparent; put the picture on a background first")
            grey = picture.mode in ("1", "L", "LA")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
            if picture.mode == "P" and (pixels == pixels[..., :1]).all():
                grey, pixels = True, pixels[..., 0]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a picture that can be read, or one too large") from None
    return pixels[..., None] if grey else pixels


def read_mask(path: pathlib.Path, size: int) -> np.ndarray:
    """Known pixels, bool [size, size]: white (128 or more) in the picture.

    Raises:
        DataError: no such picture, one of another size, or one without white.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such mask; give box, random or a picture")
    mask = read_picture(path).mean(-1) >= 127.5
    if mask.shape != (size, size):
        raise DataError(f"{path}: the mask is {mask.shape[0]}x{mask.shape[1]} pixels, the images are {size}x{size}")
    if not mask.any():
        raise DataError(f"{path}: no pixel of the mask is white, so nothing would be known")
    return mask


def _read_array(path: pathlib.Path) -> np.ndarray:
    try:
        with path.open("rb") as file:  # numpy leaves damaged archives open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if "x" not in loaded.files:
                raise DataError(f"{path}: holds {', '.join(loaded.files) or 'nothing'}, but no array 'x'")
            return loaded["x"]
    except DataError:
        raise
    except Exception:
        raise DataError(f"{path}: neither a picture nor a numpy array that can be read") from None


def _checked(path: pathlib.Path, x: np.ndarray, shape: tuple[int, ...], what: str, hint: str) -> np.ndarray:
    if x.ndim == len(shape) and len(shape) == 3 and shape[-1] == 1:  # grey images without their last axis
        x = x[..., None]
    if x.shape[1:] != shape or len(x) == 0:
        given = f"{len(x)} of {x.shape[1:]}" if x.ndim else "a single number"
        raise DataError(f"{path}: {what} must have the shape {shape}, got {given}{hint}")
    if x.dtype == np.uint8 and len(shape) == 3:
        return images.from_uint8(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{path}: {what} is {x.dtype}; give uint8 in 0..255, or floats in [-1, 1]")
    x = x.astype(np.float32)
    if not np.isfinite(x).all() or (len(shape) == 3 and np.abs(x).max() > LARGEST):
        raise DataError(f"{path}: {what} has values that are not in [-1, 1]; scale it, or give uint8 in 0..255")
    return x
