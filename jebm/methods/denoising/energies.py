"""Energies and noise ladders of Denoising-EBM (Zeng, arXiv 2303.03887).

The paper says: the energy of an image has a *semantic* part in the latent space of a denoising autoencoder and a
*texture* part, the pixel-level reconstruction error of denoising; the network's output is a vector. It was read in
its abstract and introduction alone, so **every formula here is our reconstruction**, and none claims to be the
paper's. Per noise level σ, with low energy meaning likely:

    E(x̃, σ) = E_sem(x̃, σ) + λ E_tex(x̃, σ)

    E_tex(x̃, σ) = ‖x̃ - D(x̃, σ)‖²/(2σ²) = ½‖u(x̃, σ)‖²,      D(x̃, σ) = x̃ + σ u(x̃, σ)

    E_sem: an entry of `SEMANTIC_ENERGIES`

At its optimum ``u/σ`` is the score ∇log p_σ (Tweedie), hence ``E_tex = (σ²/2)‖∇log p_σ‖²``: it vanishes between modes
as well as at them. To sample, follow the *detached* drift ``(x̃ - D)/σ² = -u/σ`` (the default); the full gradient of
E_tex, an ablation, has another law: on N(0, s²) noised by σ, variance ``(s² + σ²)²/σ²`` instead of ``s² + σ²``.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from jebm import energy as energies
from jebm.energy import Energy, bind
from jebm.errors import ConfigError, nearest

__all__ = [
    "SEMANTIC_ENERGIES", "SemanticEnergy", "denoise", "denoising_loss", "flow_ladder", "ladder_ratio",
    "ladder_step_size", "noise_ladder", "optimal_ladder", "semantic_energy", "texture", "total",
]  # fmt: skip

NoisePredictor = Callable[[Array, Array], Array]
"""``(x̃, σ) -> u``, of the shape of x̃."""


def denoise(predictor: NoisePredictor, x: Array, sigma: Array | float) -> Array:
    """``D(x̃, σ) = x̃ + σ u(x̃, σ)``, at the optimum the posterior mean E[x | x̃] (Tweedie's formula)."""
    return x + sigma * predictor(x, jnp.asarray(sigma, jnp.float32))


def denoising_loss(predictor: NoisePredictor, x: Array, sigma: Array, noise: Array) -> Array:
    """``½ mean (u(x + σ n, σ) + n)²`` over a batch of clean images [B, ...] with levels [B] and standard normals n.

    Denoising score matching weighted by σ²: at the optimum ``u/σ`` is the score of the noised data, where the loss is
    ``½ (1 - σ² E‖∇log p_σ‖²/D)`` at each level.
    """
    wide = sigma.reshape(-1, *(1,) * (x.ndim - 1))
    return 0.5 * jnp.mean(jnp.square(predictor(x + wide * noise, sigma) + noise))


def texture(predictor: NoisePredictor, sigma: Array | float, *, detach: bool = True) -> Partial:
    """``E_tex(x̃) = ½‖u(x̃, σ)‖²`` of one image.

    Args:
        predictor: u.
        sigma: σ, a scalar.
        detach: the gradient is the drift ``(x̃ - D)/σ² = -u/σ``, in which D counts as constant: no backward pass, and
            the sampler's law. Else the true gradient of the value.
    """
    function = _detached_texture if detach else _texture
    return bind(function, Partial(predictor), jnp.asarray(sigma, jnp.float32))


def _texture(predictor: NoisePredictor, sigma: Array, x: Array) -> Array:
    return energies.standard_normal(predictor(x, sigma))


def _detached_texture(predictor: NoisePredictor, sigma: Array, x: Array) -> Array:
    # x̃ - D without rounding σ u against x̃: the first difference is 0, and its gradient is 1
    residual = (x - jax.lax.stop_gradient(x)) / sigma - jax.lax.stop_gradient(predictor(x, sigma))
    return energies.standard_normal(residual)


class SemanticEnergy(NamedTuple):
    """A semantic energy F, in units of the network: the Gibbs energy at level σ is ``F/τ(σ)``.

    Attributes:
        function: ``(output, latent, again) -> F`` of one image: the head's output, the latent f(x̃, σ), and a function
            that gives f(D(x̃, σ), σ), the latent of the denoised image.
        head: which network makes the output: a vector, one number, a quadratic form of the latent, or none.
        latent_chain: whether it can drive a chain on compact latents.
    """

    function: Callable[[Array | None, Array, Callable[[], Array]], Array]
    head: Literal["vector", "scalar", "quadratic", "none"]
    latent_chain: bool


def _half_squared_norm(output: Array | None, latent: Array, again: Callable[[], Array]) -> Array:
    return energies.standard_normal(output)


def _output(output: Array | None, latent: Array, again: Callable[[], Array]) -> Array:
    assert output is not None
    return output.reshape(())


def _latent_norm(output: Array | None, latent: Array, again: Callable[[], Array]) -> Array:
    return energies.standard_normal(latent)


def _latent_reconstruction(output: Array | None, latent: Array, again: Callable[[], Array]) -> Array:
    return 0.5 * energies.squared_distance(latent, again())


SEMANTIC_ENERGIES: dict[str, SemanticEnergy] = {
    "vec_norm": SemanticEnergy(_half_squared_norm, "vector", True),
    "scalar": SemanticEnergy(_output, "scalar", True),
    "quadratic": SemanticEnergy(_output, "quadratic", True),
    "latent_norm": SemanticEnergy(_latent_norm, "none", False),
    "latent_recon": SemanticEnergy(_latent_reconstruction, "none", False),
}
"""Readings of "an energy in latent space, with a vector output" (the paper's formula is unknown to us):

* ``vec_norm``: ``½‖h(f)‖²`` of a head h, as in CLEL; bounded below, so energies of data cannot run away. The default.
* ``scalar``: one number of the same head: the ablation of the vector.
* ``quadratic``: ``(aᵀf)(bᵀf) + cᵀf²``, as in MDSM.
* ``latent_norm``: ``½‖f‖²`` of the bottleneck itself.
* ``latent_recon``: ``½‖f(x̃) - f(D(x̃))‖²``, the latent twin of the texture energy.

The last two are nothing on compact latents, whose length is fixed and which have no denoised image of their own.
"""


def semantic_energy(name: str) -> SemanticEnergy:
    """The entry of `SEMANTIC_ENERGIES`.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in SEMANTIC_ENERGIES:
        raise ConfigError(
            f"semantic_energy={name!r} is unknown{nearest(name, SEMANTIC_ENERGIES)}: there are "
            f"{', '.join(SEMANTIC_ENERGIES)}"
        )
    return SEMANTIC_ENERGIES[name]


def total(
    semantic: Energy, texture: Energy, temperature: Array | float, texture_weight: Array | float = 1.0
) -> Partial:
    """``E_sem + λ E_tex`` with ``E_sem = F/τ``.

    Args:
        semantic: F.
        texture: E_tex.
        temperature: τ, above 0.
        texture_weight: λ.
    """
    return energies.sum(energies.temper(semantic, temperature), energies.scale(texture, texture_weight))


def noise_ladder(sigma_max: float, sigma_min: float, num_levels: int) -> np.ndarray:
    """``num_levels`` noise levels that fall geometrically from ``sigma_max`` to ``sigma_min``, float64.

    Raises:
        ConfigError: a level that is not above 0, a ladder that rises or stays, or no level. One level is
            ``sigma_max``, which must then be ``sigma_min``.
    """
    if num_levels < 1:
        raise ConfigError(f"a noise ladder of {num_levels} levels: it needs at least 1")
    falls = sigma_max > sigma_min if num_levels > 1 else sigma_max == sigma_min
    if not (sigma_min > 0 and math.isfinite(sigma_max) and falls):
        raise ConfigError(
            f"a noise ladder from {sigma_max} to {sigma_min} in {num_levels} levels: levels must fall and stay above "
            "0 (one level: both ends the same)"
        )
    return np.geomspace(sigma_max, sigma_min, num_levels)


def flow_ladder(sigma_max: float, sigma_min: float, num_levels: int, exponent: float = 7.0) -> np.ndarray:
    """``num_levels`` levels, evenly spaced in ``σ^(1/7)``: long steps where the flow is straight, float64.

    ``σ_i = (σ_max^(1/ρ) + i/(L-1) (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ`` (Karras et al., arXiv 2206.00364, equation 5).

    Raises:
        ConfigError: what `noise_ladder` refuses.
    """
    noise_ladder(sigma_max, sigma_min, num_levels)
    levels: np.ndarray = np.linspace(sigma_max ** (1 / exponent), sigma_min ** (1 / exponent), num_levels) ** exponent
    return levels


@functools.lru_cache
def ladder_ratio(dimension: int, overlap: float = 0.5) -> float:
    """The ratio γ of neighbouring levels at which their shells of noise in D dimensions overlap as much as asked.

        Φ(√(2D)(γ - 1) + 3γ) - Φ(√(2D)(γ - 1) - 3γ) = overlap

    (Song and Ermon, arXiv 2006.09011, technique 2.) For D = 3072 it is 1.040, for 12288 it is 1.0195.

    Raises:
        ConfigError: fewer than 5 dimensions, where every two levels overlap, or an overlap outside (0, 1).
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if dimension < 5 or not 0 < overlap < 1:
        raise ConfigError(
            f"no ratio of levels has overlap {overlap} in {dimension} dimensions: it needs at least 5 dimensions, and "
            "an overlap in (0, 1)"
        )
    root = math.sqrt(2 * dimension)
    gap = lambda g: ndtr(root * (g - 1) + 3 * g) - ndtr(root * (g - 1) - 3 * g) - overlap  # noqa: E731
    upper = 2.0
    while gap(upper) > 0:
        upper *= 2.0
    return float(brentq(gap, 1.0, upper))


@functools.lru_cache
def ladder_step_size(sigma_min: float, ratio: float, steps_per_level: int) -> float:
    """The step ε at σ_min that leaves the variance nearest to σ² after the steps of a level.

    A level's chain begins with variance (γσ)² and takes T steps ``η = ε (σ/σ_min)²`` on N(0, σ²); its variance over
    σ² is then ``(1 - h)^{2T} (γ² - v) + v``, with ``h = ε/σ_min²`` and ``v = 1/(1 - h/2)``, always above 1. The h in
    (0, 1) of the smallest is taken (Song and Ermon, arXiv 2006.09011, technique 4).

    Raises:
        ConfigError: a level or a ratio out of range, or no step.
    """
    from scipy.optimize import minimize_scalar

    if not (sigma_min > 0 and ratio > 1):
        raise ConfigError(f"sigma_min={sigma_min} and ratio={ratio}: levels must be above 0, their ratio above 1")
    if steps_per_level < 1:
        raise ConfigError(f"steps_per_level={steps_per_level} is out of range: a level needs at least 1 step")

    def variance(h: float) -> float:
        v = 1.0 / (1.0 - h / 2.0)
        return float((1.0 - h) ** (2 * steps_per_level) * (ratio**2 - v) + v)

    found = minimize_scalar(variance, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-9})
    return float(found.x) * sigma_min**2


def optimal_ladder(sigma_max: float, sigma_min: float, dimension: int) -> np.ndarray:
    """The `noise_ladder` whose ratio is the nearest below `ladder_ratio`: 120 levels from 1 to 0.01 at 32x32x3.

    Raises:
        ConfigError: what `noise_ladder` and `ladder_ratio` refuse.
    """
    noise_ladder(sigma_max, sigma_min, 2)
    steps = math.log(sigma_max / sigma_min) / math.log(ladder_ratio(dimension))
    return noise_ladder(sigma_max, sigma_min, math.ceil(steps - 1e-9) + 1)
