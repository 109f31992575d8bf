"""Toy problems: energies in few dimensions with their exact answers, and two-dimensional data sets.

    problem = jebm.problems.banana()
    state, info = jebm.sample_chains(key, jebm.nuts(problem.energy, 0.3), problem.sample(other_key, 100), 500)
    np.cov(state.position.T), problem.covariance

Every `Problem` says its normaliser and first two moments, in closed form or by quadrature; exact draws come with all
but the lattice. A data set is a problem as well: its draws are the data, its energy what a model should find.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jax import Array
from jax.tree_util import Partial

from jebm.energy import bind, require, require_int

__all__ = [
    "PROBLEMS", "Problem", "banana", "checkerboard", "double_well", "eight_gaussians", "funnel", "gaussian_mixture",
    "lattice_phi4", "many_wells", "rings", "spiral", "two_moons",
]  # fmt: skip

HALF_LOG_TWO_PI = 0.5 * float(np.log(2.0 * np.pi))


@dataclasses.dataclass(frozen=True)
class Problem:
    """An energy and what is known of ``p(x) = exp(-E(x)) / Z``.

    Attributes:
        energy: E of one example, float [d].
        log_normalizer: log Z, a float.
        mean: float64 [d].
        covariance: float64 [d, d].
        draw: ``key -> x``, one exact draw, float32 [d]; None where there is no sampler.
        extent: half the side of a square about the mean that holds all but about 1e-4 of the mass, for pictures.
    """

    energy: Partial
    log_normalizer: float
    mean: np.ndarray
    covariance: np.ndarray
    draw: Callable[[Array], Array] | None
    extent: float

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mean)

    def sample(self, key: Array, n: int) -> Array:
        """``n`` exact draws, float32 [n, d]; draw i does not depend on n.

        Raises:
            ValueError: a problem without a sampler, or a number that is negative or no int.

        Examples:
            >>> problem = jebm.problems.banana()
            >>> a, b = (problem.sample(jax.random.key(0), n) for n in (2, 5))
            >>> a.shape, bool((a == b[:2]).all())
            ((2, 2), True)
        """
        if self.draw is None:
            raise ValueError("this problem has no exact sampler: take a long chain, such as jebm.nuts")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(require_int(n, "n", 0)))
        return jax.jit(jax.vmap(self.draw))(keys)


def double_well(barrier: float = 8.0, tilt: float = 0.0) -> Problem:
    """``E(x) = b (x² - 1)² + c x`` on a line: wells near ±1, a barrier of height b between them. x is [1].

    Raises:
        ValueError: a barrier that is not above 0.

    Examples:
        >>> problem = jebm.problems.double_well(barrier=8.0)
        >>> [float(problem.energy(jnp.array([x]))) for x in (-1.0, 0.0, 1.0)]
        [0.0, 8.0, 0.0]
        >>> round(problem.log_normalizer, 4)
        -0.4396
    """
    require(barrier, lambda a: a > 0, "barrier", "must be above 0")
    reach = 2.0 + 3.0 / barrier**0.25 + abs(tilt) / barrier
    energy = lambda x: barrier * (x**2 - 1) ** 2 + tilt * x  # noqa: E731
    log_normalizer, mean, variance = _moments(energy, reach)
    cumulative = _cumulative(energy, -reach, reach)
    return Problem(
        bind(_double_well, barrier, tilt), log_normalizer, np.array([mean]), np.array([[variance]]),
        bind(_draw_well, cumulative), 2.5,
    )  # fmt: skip


def _double_well(barrier: float, tilt: float, x: Array) -> Array:
    return jnp.sum(barrier * jnp.square(jnp.square(x) - 1.0) + tilt * x)


def _draw_well(cumulative: Array, key: Array) -> Array:
    return _draw_from(cumulative, key, (1,))


def gaussian_mixture(
    means: Any = ((-2.0, 0.0), (1.5, 1.5), (1.0, -2.0)),
    deviations: Any = (0.4, 0.7, 0.3),
    weights: Any = (0.5, 0.3, 0.2),
) -> Problem:
    """``p(x) = Σ_i w_i N(x; μ_i, s_i² I)``, normalised: Z = 1.

    Args:
        means: μ_i, [k, d].
        deviations: s_i > 0, [k].
        weights: w_i > 0 up to a factor, [k].

    Raises:
        ValueError: shapes that differ, or a deviation or weight that is not above 0.

    Examples:
        >>> jebm.problems.gaussian_mixture().mean
        array([-0.35,  0.05])
    """
    means, deviations, weights = (np.asarray(a, np.float64) for a in (means, deviations, weights))
    if means.ndim != 2 or not means.shape[:1] == deviations.shape == weights.shape:
        shapes = [a.shape for a in (means, deviations, weights)]
        raise ValueError(f"gaussian_mixture needs means [k, d], deviations [k] and weights [k], got shapes {shapes}")
    require(deviations, lambda a: a > 0, "deviations", "must be above 0")
    require(weights, lambda a: a > 0, "weights", "must be above 0")
    weights = weights / weights.sum()
    mean = weights @ means
    centred = means - mean
    covariance = (weights * deviations**2).sum() * np.eye(means.shape[1]) + (weights * centred.T) @ centred
    given = [jnp.asarray(a, jnp.float32) for a in (means, deviations, weights)]
    extent = float(np.max(np.abs(centred) + 4.5 * deviations[:, None]))
    return Problem(bind(_mixture, *given), 0.0, mean, covariance, bind(_draw_mixture, *given), extent)


def _mixture(means: Array, deviations: Array, weights: Array, x: Array) -> Array:
    if x.size <= 8:  # written out: a CPU is slow at so short a reduction
        distances = functools.reduce(jnp.add, [jnp.square(x[i] - means[:, i]) for i in range(x.size)])
    else:
        distances = jnp.sum(jnp.square(x[None] - means), 1)
    squared = distances / jnp.square(deviations)
    log_scale = x.size * (jnp.log(deviations) + HALF_LOG_TWO_PI)
    return -jax.nn.logsumexp(jnp.log(weights) - 0.5 * squared - log_scale)


def _draw_mixture(means: Array, deviations: Array, weights: Array, key: Array) -> Array:
    which_key, noise_key = jax.random.split(key)
    i = jax.random.categorical(which_key, jnp.log(weights))
    return means[i] + deviations[i] * jax.random.normal(noise_key, means.shape[1:])


def eight_gaussians(radius: float = 2.0, deviation: float = 0.2) -> Problem:
    """Eight Gaussians of equal weight on a circle; Z = 1."""
    angles = np.arange(8) * np.pi / 4
    means = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    return gaussian_mixture(means, np.full(8, deviation), np.ones(8))


def rings(radii: Sequence[float] = (1.0, 2.2), width: float = 0.15, weights: Sequence[float] = (0.3, 0.7)) -> Problem:
    """``E(x) = -log Σ_i w_i exp(-(‖x‖ - R_i)² / (2 s²))`` in the plane: rings about 0.

    Raises:
        ValueError: not as many weights as radii, or a radius, width or weight that is not above 0.
    """
    if len(radii) != len(weights):
        raise ValueError(f"rings of {len(radii)} radii need as many weights, got {len(weights)}")
    for name, given in (("radii", radii), ("width", width), ("weights", weights)):
        require(given, lambda a: a > 0, name, "must be above 0")
    outer = max(radii) + 8.0 * width

    def of_radius(r: np.ndarray) -> np.ndarray:
        log_terms = np.log(weights)[:, None] - 0.5 * ((r - np.asarray(radii)[:, None]) / width) ** 2
        return -scipy.special.logsumexp(log_terms, 0) - np.log(np.maximum(r, 1e-300))

    r, step = np.linspace(0.0, outer, 20_001, retstep=True)
    energy = of_radius(r)
    log_normalizer = float(scipy.special.logsumexp(-energy) + np.log(2 * np.pi * step))
    second = np.average(r**2, weights=np.exp(-energy - scipy.special.logsumexp(-energy)))
    arrays = [jnp.asarray(a, jnp.float32) for a in (radii, width, weights)]
    return Problem(
        bind(_rings, *arrays), log_normalizer, np.zeros(2), 0.5 * second * np.eye(2),
        bind(_draw_ring, _cumulative(of_radius, 0.0, outer)), max(radii) + 4.5 * width,
    )  # fmt: skip


def _rings(radii: Array, width: Array, weights: Array, x: Array) -> Array:
    radius = jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-12)  # with a gradient at 0
    return -jax.nn.logsumexp(jnp.log(weights) - 0.5 * jnp.square((radius - radii) / width))


def _draw_ring(cumulative: Array, key: Array) -> Array:
    radius_key, angle_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, maxval=2.0 * jnp.pi)
    radius = _draw_from(cumulative, radius_key)
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def funnel(dimension: int = 10, scale: float = 3.0) -> Problem:
    """Neal's funnel: ``v ~ N(0, s²)``, then ``x_i ~ N(0, e^v)``, i = 1, ..., d - 1; normalised, Z = 1. x is [v, x_i].

    With the scale 3 of Neal (Annals of Statistics 31, 2003, section 8), ``E x_i² = e^4.5``.

    Raises:
        ValueError: fewer than two dimensions, or a scale that is not above 0.

    Examples:
        >>> problem = jebm.problems.funnel(dimension=3)
        >>> problem.covariance.diagonal().round(2)
        array([ 9.  , 90.02, 90.02])
    """
    dimension = require_int(dimension, "dimension", 2)
    require(scale, lambda a: a > 0, "scale", "must be above 0")
    variances = np.full(dimension, np.exp(0.5 * scale**2))
    variances[0] = scale**2
    draw = bind(_draw_funnel, scale, jnp.zeros(dimension))
    return Problem(bind(_funnel, scale), 0.0, np.zeros(dimension), np.diag(variances), draw, 4.0 * scale)


def _funnel(scale: float, x: Array) -> Array:
    v, rest = x[0], x[1:]
    of_v = 0.5 * jnp.square(v / scale) + jnp.log(scale) + HALF_LOG_TWO_PI
    return of_v + 0.5 * jnp.sum(jnp.square(rest)) * jnp.exp(-v) + rest.size * (0.5 * v + HALF_LOG_TWO_PI)


def _draw_funnel(scale: float, like: Array, key: Array) -> Array:
    z = jax.random.normal(key, like.shape)
    v = scale * z[0]
    return z.at[0].set(v).at[1:].multiply(jnp.exp(0.5 * v))


def banana(scale: float = 1.5, curvature: float = 0.5) -> Problem:
    """A bent Gaussian: ``x ~ N(0, s²)``, ``y = b (x² - s²) + N(0, 1)``; normalised, Z = 1.

    Raises:
        ValueError: a scale that is not above 0.
    """
    require(scale, lambda a: a > 0, "scale", "must be above 0")
    covariance = np.diag([scale**2, 1.0 + 2.0 * curvature**2 * scale**4])
    extent = max(4.0 * scale, 15.0 * abs(curvature) * scale**2 + 3.0)
    draw = bind(_draw_banana, scale, curvature)
    return Problem(bind(_banana, scale, curvature), 0.0, np.zeros(2), covariance, draw, extent)


def _banana(scale: float, curvature: float, x: Array) -> Array:
    straight = x[1] - curvature * (jnp.square(x[0]) - scale**2)
    return 0.5 * (jnp.square(x[0] / scale) + jnp.square(straight)) + jnp.log(scale) + 2.0 * HALF_LOG_TWO_PI


def _draw_banana(scale: float, curvature: float, key: Array) -> Array:
    x, y = jax.random.normal(key, (2,))
    x = scale * x
    return jnp.stack([x, y + curvature * (jnp.square(x) - scale**2)])


def many_wells(pairs: int = 16) -> Problem:
    """``Σ_i (x_i⁴ - 6 x_i² - x_i/2) + ½ y_i²``: 2^pairs modes of unequal weight in ``2 pairs`` dimensions.

    x is [x_1, y_1, x_2, y_2, ...]. From Noé et al., "Boltzmann generators", Science 365 (2019).

    Raises:
        ValueError: fewer than one pair.
    """
    pairs = require_int(pairs, "pairs", 1)
    energy = lambda x: x**4 - 6 * x**2 - 0.5 * x  # noqa: E731
    log_normalizer, mean, variance = _moments(energy, 4.0)
    draw = bind(_draw_wells, _cumulative(energy, -4.0, 4.0), jnp.zeros(pairs))
    return Problem(
        bind(_wells), pairs * (log_normalizer + HALF_LOG_TWO_PI), np.tile([mean, 0.0], pairs),
        np.diag(np.tile([variance, 1.0], pairs)), draw, 5.0,
    )  # fmt: skip


def _wells(x: Array) -> Array:
    x, y = x[0::2], x[1::2]
    return jnp.sum(x**4 - 6.0 * jnp.square(x) - 0.5 * x + 0.5 * jnp.square(y))


def _draw_wells(cumulative: Array, like: Array, key: Array) -> Array:
    x_key, y_key = jax.random.split(key)
    x = _draw_from(cumulative, x_key, like.shape)
    return jnp.stack([x, jax.random.normal(y_key, like.shape)], 1).ravel()


def lattice_phi4(size: int = 16, mass_squared: float = -2.0, coupling: float = 1.0) -> Problem:
    """φ⁴ theory on a ring of sites: ``Σ_n ½ (φ_{n+1} - φ_n)² + ½ m² φ_n² + g φ_n⁴``.

    With ``m² < 0`` the field has two vacua that are far apart for long rings. Normaliser and covariance are exact, by
    the transfer matrix: ``Z = tr T^L`` and ``⟨φ_0 φ_k⟩ = tr(φ T^k φ T^(L-k)) / Z``. There is no exact sampler.

    Raises:
        ValueError: fewer than two sites, or a coupling that is not above 0.

    Examples:
        >>> problem = jebm.problems.lattice_phi4(size=4)
        >>> problem.dimension, problem.draw is None
        (4, True)
    """
    size = require_int(size, "size", 2)
    require(coupling, lambda a: a > 0, "coupling", "must be above 0")
    half = 0.5 * mass_squared
    reach = np.sqrt((-half + np.sqrt(half**2 + 160.0 * coupling)) / (2.0 * coupling))  # where a site's energy is 40
    phi, weights = _grid(float(reach))
    site = 0.25 * mass_squared * phi**2 + 0.5 * coupling * phi**4  # half of a site's own energy
    bond = 0.5 * (phi[:, None] - phi) ** 2 + site[:, None] + site
    values, vectors = scipy.linalg.eigh(np.sqrt(weights)[:, None] * np.exp(-bond) * np.sqrt(weights))
    largest = values[-1]
    ratios = np.clip(values / largest, 0.0, 1.0)
    elements = vectors.T @ (phi[:, None] * vectors)
    total = (ratios**size).sum()
    lags = [np.einsum("i,ij,j,ji->", ratios ** (size - k), elements, ratios**k, elements) / total for k in range(size)]
    return Problem(
        bind(_phi4, mass_squared, coupling), float(size * np.log(largest) + np.log(total)), np.zeros(size),
        scipy.linalg.toeplitz(lags), None, float(reach),
    )  # fmt: skip


def _phi4(mass_squared: float, coupling: float, x: Array) -> Array:
    squared = jnp.square(x)
    bonds = 0.5 * jnp.square(jnp.roll(x, -1) - x)
    return jnp.sum(bonds + 0.5 * mass_squared * squared + coupling * jnp.square(squared))


def checkerboard(squares: int = 4) -> Problem:
    """Uniform on every other square of a board of side 4 about 0; E is infinite outside. Z = 1.

    Raises:
        ValueError: a number of squares a side that is odd.

    Examples:
        >>> problem = jebm.problems.checkerboard()
        >>> x = problem.sample(jax.random.key(0), 1000)
        >>> bool(jnp.isfinite(jax.vmap(problem.energy)(x)).all())
        True
    """
    squares = require_int(squares, "squares", 2)
    if squares % 2:
        raise ValueError(f"squares must be even, or the board has no centre, got {squares}")
    side = 4.0 / squares
    i, j = np.nonzero((np.add.outer(np.arange(squares), np.arange(squares)) % 2) == 0)
    corners = np.stack([i, j], 1) * side - 2.0
    centres = corners + side / 2
    covariance = centres.T @ centres / len(centres) + side**2 / 12 * np.eye(2)
    return Problem(
        bind(_checkerboard, side), 0.0, np.zeros(2), covariance,
        bind(_draw_checkerboard, jnp.asarray(corners, jnp.float32), side), 2.5,
    )  # fmt: skip


def _checkerboard(side: float, x: Array) -> Array:
    cells = jnp.floor((x + 2.0) / side)
    inside = jnp.all((x >= -2.0) & (x < 2.0)) & (jnp.sum(cells) % 2 == 0)
    return jnp.where(inside, jnp.log(8.0), jnp.inf)


def _draw_checkerboard(corners: Array, side: float, key: Array) -> Array:
    square_key, place_key = jax.random.split(key)
    return corners[jax.random.randint(square_key, (), 0, len(corners))] + side * jax.random.uniform(place_key, (2,))


def two_moons(deviation: float = 0.1) -> Problem:
    """Two half circles that reach into each other, blurred by N(0, s² I); Z = 1."""
    angles = np.pi * (np.arange(256) + 0.5) / 256
    upper = np.stack([np.cos(angles), np.sin(angles)], 1)
    lower = np.stack([1.0 - np.cos(angles), 0.5 - np.sin(angles)], 1)
    return _blurred(np.concatenate([upper, lower]), deviation)


def spiral(turns: float = 2.0, deviation: float = 0.1) -> Problem:
    """Points of uniform angle on an Archimedean spiral of radius 2, blurred by N(0, s² I); Z = 1."""
    t = (np.arange(512) + 0.5) / 512
    angles = 2 * np.pi * turns * t
    return _blurred(2.0 * t[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1), deviation)


def _blurred(points: np.ndarray, deviation: float) -> Problem:
    """A curve through points that lie closer than the blur, which is then a mixture."""
    return gaussian_mixture(points, np.full(len(points), deviation), np.ones(len(points)))


def _grid(reach: float) -> tuple[np.ndarray, np.ndarray]:
    x, weights = np.polynomial.legendre.leggauss(400)
    return reach * x, reach * weights


def _moments(energy: Callable[[np.ndarray], np.ndarray], reach: float) -> tuple[float, float, float]:
    """Normaliser (its logarithm), mean and variance of a density on a line by quadrature."""
    grid, weights = _grid(reach)
    log_normalizer = scipy.special.logsumexp(-energy(grid), b=weights)
    density = weights * np.exp(-energy(grid) - log_normalizer)
    mean = density @ grid
    return float(log_normalizer), float(mean), float(density @ (grid - mean) ** 2)


def _cumulative(energy: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> Array:
    """The distribution function at 4001 points of a line, float32 [2, 4001]: its values, and the points."""
    x = np.linspace(low, high, 4001)
    density = np.exp(energy(x).min() - energy(x))
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return jnp.asarray(np.stack([mass / mass[-1], x]), jnp.float32)


def _draw_from(cumulative: Array, key: Array, shape: tuple[int, ...] = ()) -> Array:
    return jnp.interp(jax.random.uniform(key, shape), *cumulative)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "banana": banana, "checkerboard": checkerboard, "double_well": double_well, "eight_gaussians": eight_gaussians,
    "funnel": funnel, "gaussian_mixture": gaussian_mixture, "lattice_phi4": lattice_phi4, "many_wells": many_wells,
    "rings": rings, "spiral": spiral, "two_moons": two_moons,
}  # fmt: skip
