"""Reconstruction losses: how far an image is from its target.

A loss is a pure function ``loss(image, target) -> scalar`` (float32) of ONE pair of images, [H, W, C] in
[-1, 1]; batches are `jax.vmap`. Parameters are keyword arguments, bound as pytree leaves:

    loss = jax.tree_util.Partial(losses.watson_dft, parameters=losses.watson_dft_parameters())

The functions whose names end in ``_unit`` are the same for images in [0, 1], the literature's range.
"""

import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jebm.energy import as_partial
from jebm.losses.robust import RobustParameters, robust_loss, robust_unit
from jebm.losses.ssim import ssim_loss, ssim_unit
from jebm.losses.transforms import image_pair
from jebm.losses.watson import (
    WatsonParameters,
    mean_luminance_dct,
    mean_luminance_dft,
    watson_dct,
    watson_dct_parameters,
    watson_dct_unit,
    watson_dft,
    watson_dft_parameters,
    watson_dft_unit,
)

__all__ = [
    "Loss", "RobustParameters", "WatsonParameters", "get", "mean_luminance_dct", "mean_luminance_dft",
    "robust_loss", "robust_unit", "shifted", "squared_error", "ssim_loss", "ssim_unit", "watson_dct",
    "watson_dct_parameters", "watson_dct_unit", "watson_dft", "watson_dft_parameters", "watson_dft_unit",
]  # fmt: skip

Loss = Callable[[Array, Array], Array]


def squared_error(image: Array, target: Array) -> Array:
    """``Σ (image - target)²`` over pixels and channels: the default of the library.

    Args:
        image: [H, W, C] in [-1, 1].
        target: as ``image``.

    Raises:
        ValueError: shapes that differ.

    Examples:
        >>> float(jebm.losses.squared_error(jnp.full((8, 8, 1), 0.5), jnp.zeros((8, 8, 1))))
        16.0
    """
    image, target = image_pair(image, target)
    return jnp.sum(jnp.square(image - target))


LOSSES: dict[str, Loss] = {
    "squared_error": squared_error,
    "watson_dft": watson_dft,
    "watson_dct": watson_dct,
    "robust": robust_loss,
    "ssim": ssim_loss,
}


def get(name: str) -> Loss:
    """The loss of that name, with its default parameters.

    Raises:
        ValueError: no such loss.
    """
    if name not in LOSSES:
        near = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no loss is called {name!r}: choose one of {', '.join(LOSSES)}{hint}")
    return LOSSES[name]


def shifted(loss: Loss, offset: Array) -> Partial:
    """``loss`` of both images moved by ``4 - offset`` pixels, edges repeated.

    With ``offset = jax.random.randint(key, (2,), 0, 8)`` the grid of 8x8 blocks of the Watson distances falls
    elsewhere each time, so that no image can be fitted to it. ``offset`` is int32 [2] (rows, columns) in
    0..8, a pytree leaf.
    """
    return Partial(_shifted, as_partial(loss), offset)


def _shifted(loss: Loss, offset: Array, image: Array, target: Array) -> Array:
    def move(a: Array) -> Array:
        padded = jnp.pad(a, ((4, 4), (4, 4), (0, 0)), mode="edge")
        return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), a.shape)

    return loss(move(image), move(target))
