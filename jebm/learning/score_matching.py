"""Score matching: the energy's gradient is fitted to that of the data's log-density; no chains, no normaliser."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm.energy import Energy, PyTree, as_partial, require_int, value
from jebm.learning.noise import add_normals, row

__all__ = [
    "Scores", "denoising_score_matching", "multilevel_denoising_score_matching", "sliced_score_matching",
]  # fmt: skip


class Scores(NamedTuple):
    """What score matching knows beside its loss.

    Attributes:
        energy: mean energy where the scores were taken.
        score_norm: mean Euclidean norm of the scores ``-∇E``.
    """

    energy: Array
    score_norm: Array


def denoising_score_matching(
    key: Array, energy: Energy, batch: PyTree, noise_scale: Array | float
) -> tuple[Array, Scores]:
    """``σ²/2 E ‖s(x̃) + (x̃ - x)/σ²‖²`` with ``x̃ = x + σ ξ`` and the score ``s = -∇E``.

    Its optimum is the energy of the data's law *smoothed* by N(0, σ² I): on a Gaussian of covariance Σ the precision
    ``(Σ + σ² I)⁻¹``.

    Args:
        key: a typed PRNG key.
        energy: of one example; differentiate through its parameters (see `jebm.learning`).
        batch: data, leaves [B, ...].
        noise_scale: σ.

    Returns:
        The loss, and `Scores`.

    References:
        Vincent, "A connection between score matching and denoising autoencoders", Neural Computation 23 (2011).

    Examples:
        >>> x = jax.random.normal(jax.random.key(0), (512, 1))
        >>> loss = lambda k: jebm.learning.denoising_score_matching(
        ...     jax.random.key(1), jebm.energy.gaussian(jnp.zeros(1), jnp.array([k])), x, 1.0)[0]
        >>> bool(loss(0.5) < min(loss(0.25), loss(1.0)))  # N(0, 1) smoothed by N(0, 1) has precision 1/2
        True
    """
    energy = as_partial(energy)
    scales = jnp.broadcast_to(jnp.asarray(noise_scale, jnp.float32), (len(jax.tree.leaves(batch)[0]),))
    return _denoise(key, lambda _, x: value(energy, x), batch, scales, scales)


def multilevel_denoising_score_matching(
    key: Array, energy: Callable[[Array, PyTree], Array], batch: PyTree, noise_scales: Array
) -> tuple[Array, Scores]:
    """Denoising score matching at many levels: ``E_l [σ_l²/2 E ‖s_l(x̃) + (x̃ - x)/σ_l²‖²]``, l uniform.

    The weights σ² make the levels' losses of one size.

    Args:
        key: as in `denoising_score_matching`.
        energy: ``(level, x) -> energy``, of an int32 level in 0..L-1 and one example; its optimum at each level is the
            energy of the data smoothed by that level's noise.
        batch: as there; each example draws a level of its own.
        noise_scales: σ_l, [L].

    Returns:
        The loss, and `Scores`.

    References:
        Song and Ermon, "Generative modeling by estimating gradients of the data distribution", arXiv 1907.05600.
    """
    level_key, noise_key = jax.random.split(key)
    noise_scales = jnp.asarray(noise_scales)
    levels = jax.random.randint(level_key, (len(jax.tree.leaves(batch)[0]),), 0, len(noise_scales))
    return _denoise(noise_key, as_partial(energy), batch, levels, noise_scales[levels])


def _denoise(
    key: Array, energy: Callable[[Array, PyTree], Array], batch: PyTree, levels: Array, scales: Array
) -> tuple[Array, Scores]:
    """``‖σ s(x̃) + ξ‖²/2``: at no noise level is a small number divided by another."""
    noisy = add_normals(key, batch, scales)
    values, gradients = jax.vmap(jax.value_and_grad(energy, 1))(levels, noisy)
    residuals = jax.tree.map(
        lambda g, x, clean: (x - clean) / row(scales, x) - row(scales, g) * g, gradients, noisy, batch
    )
    return 0.5 * jnp.mean(_squares(residuals)), _scores(values, gradients)


def sliced_score_matching(key: Array, energy: Energy, batch: PyTree, *, num_slices: int = 1) -> tuple[Array, Scores]:
    """``E [½ ‖s(x)‖² + vᵀ ∇s(x) v]`` with random directions v (variance reduced) and the score ``s = -∇E``.

    Its optimum is the energy of the data themselves. It needs an energy that is smooth (no ReLU), and data that have a
    density: add a little noise to images of few levels.

    Args:
        key: as in `denoising_score_matching`.
        energy: as there.
        batch: as there.
        num_slices: directions v for each example, each of signs ±1.

    Returns:
        The loss, and `Scores`.

    References:
        Song et al., "Sliced score matching: a scalable approach to density and score estimation", arXiv 1905.07088,
        equation 8.
    """
    energy, num_slices = as_partial(energy), require_int(num_slices, "num_slices", 1)
    of_example = lambda x: value(energy, x)  # noqa: E731

    def curvature(key: Array, x: PyTree) -> Array:
        direction = optax.tree.random_like(key, x, jax.random.rademacher)
        bent = jax.jvp(jax.grad(of_example), (x,), (direction,))[1]
        return optax.tree.vdot(direction, bent)

    def of_one(key: Array, x: PyTree) -> tuple[Array, Array, PyTree]:
        energy, gradient = jax.value_and_grad(of_example)(x)
        curvatures = jax.vmap(curvature, (0, None))(jax.random.split(key, num_slices), x)
        return jnp.mean(curvatures), energy, gradient

    keys = jax.random.split(key, len(jax.tree.leaves(batch)[0]))
    curvatures, values, gradients = jax.vmap(of_one)(keys, batch)
    return jnp.mean(0.5 * _squares(gradients) - curvatures), _scores(values, gradients)


def _squares(tree: PyTree) -> Array:
    """Sums of squares over each example, [B]."""
    return jax.vmap(lambda x: optax.tree.norm(x, squared=True))(tree)


def _scores(values: Array, gradients: PyTree) -> Scores:
    return Scores(jnp.mean(values), jnp.mean(jnp.sqrt(jax.lax.stop_gradient(_squares(gradients)))))
