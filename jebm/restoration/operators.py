"""Linear degradations ``y = A x`` of one image, each with its adjoint and its exact Moore-Penrose pseudo-inverse.

Every operator here satisfies ``A A⁺ A = A``, so that ``A⁺y + (I - A⁺A) x`` has the measurement ``y`` for any ``x``
whenever ``y`` lies in the range of A. Images are float32 [H, W, C] in [-1, 1], one at a time (`jax.vmap` for batches).
Operators are pytrees: their arrays are leaves, and a program compiled for one serves any other of the same shapes.

The list of tasks and their constants are those of the null-space restoration literature (DDNM, Wang et al., arXiv
2212.00490); that EC-VAE's authors use the same ones is not known [inferred].
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.errors import ConfigError

__all__ = [
    "Colorization", "Inpainting", "Matrix", "Operator", "Separable", "WalshHadamard", "average_pooling",
    "bicubic", "blur", "box_mask", "gaussian_kernel", "random_mask", "uniform_kernel",
]  # fmt: skip

Shape = tuple[int, int, int]
THRESHOLD = 3e-2  # singular values of a blur's or bicubic's one-dimensional matrix below it count as 0


class Operator(abc.ABC):
    """A linear map of images [H, W, C] with what restoration needs of it."""

    @abc.abstractmethod
    def apply(self, x: Array) -> Array:
        """``A x``: an image to a measurement."""

    @abc.abstractmethod
    def adjoint(self, y: Array) -> Array:
        """``Aᵀ y``: a measurement to an image, ``⟨A x, y⟩ = ⟨x, Aᵀ y⟩``."""

    @abc.abstractmethod
    def pseudo_inverse(self, y: Array) -> Array:
        """``A⁺ y``: the smallest image of those whose measurement is nearest to ``y``."""

    def range_part(self, x: Array) -> Array:
        """``A⁺ A x``: what the measurement determines of ``x``."""
        return self.pseudo_inverse(self.apply(x))

    def null_part(self, x: Array) -> Array:
        """``(I - A⁺ A) x``: what the measurement does not see."""
        return x - self.range_part(x)

    def consistent(self, x: Array, y: Array) -> Array:
        """``A⁺ y + (I - A⁺ A) x``: the image nearest to ``x`` with the measurement ``y``."""
        return self.pseudo_inverse(y) + self.null_part(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Separable(Operator):
    """``y[:, :, c] = R x[:, :, c] Kᵀ`` per channel; ``(R ⊗ K)⁺ = R⁺ ⊗ K⁺`` makes the pseudo-inverse exact.

    Attributes:
        rows: R [h, H].
        columns: K [w, W].
        rows_inverse: R⁺ [H, h].
        columns_inverse: K⁺ [W, w].
        rows_range: R⁺R [H, H], kept apart: multiplied out in float32 it would lose the digits that R⁺ amplifies.
        columns_range: K⁺K [W, W].
    """

    rows: Array
    columns: Array
    rows_inverse: Array
    columns_inverse: Array
    rows_range: Array
    columns_range: Array

    @classmethod
    def of(cls, rows: np.ndarray, columns: np.ndarray, threshold: float = 1e-6) -> "Separable":
        """From two matrices. Singular values below ``threshold`` are set to 0, in A as well as in A⁺."""
        factors = []
        for matrix in (rows, columns):
            left, left_inverse, right = _truncated(matrix, threshold)
            factors.append((left @ right.T, right @ left_inverse, right @ right.T))
        return cls(*(jnp.asarray(one[i], jnp.float32) for i in range(3) for one in factors))

    def apply(self, x: Array) -> Array:
        """[H, W, C] -> [h, w, C]."""
        return _both(self.rows, x, self.columns)

    def adjoint(self, y: Array) -> Array:
        """[h, w, C] -> [H, W, C]."""
        return _both(self.rows.T, y, self.columns.T)

    def pseudo_inverse(self, y: Array) -> Array:
        """[h, w, C] -> [H, W, C]."""
        return _both(self.rows_inverse, y, self.columns_inverse)

    def range_part(self, x: Array) -> Array:
        """[H, W, C] -> [H, W, C]."""
        return _both(self.rows_range, x, self.columns_range)


def _truncated(matrix: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``U S``, ``S⁻¹ Uᵀ`` and V of ``matrix = U S Vᵀ``, without the small singular values; float64."""
    u, s, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    keep = s >= threshold
    u, s, v = u[:, keep], s[keep], v[keep]
    return u * s, u.T / s[:, None], v.T


def _both(rows: Array, x: Array, columns: Array) -> Array:
    return jnp.einsum("ij,jkc,lk->ilc", rows, x, columns, precision="highest")


def average_pooling(size: int, factor: int) -> Separable:
    """Super-resolution: means of ``factor`` x ``factor`` blocks of a square image; A⁺ repeats each value.

    Raises:
        ValueError: a factor below 2 or one that does not divide the image size.

    Examples:
        >>> operator = jebm.restoration.average_pooling(4, 2)
        >>> y = operator.apply(jnp.arange(16.0).reshape(4, 4, 1))
        >>> y[..., 0]
        Array([[ 2.5,  4.5],
               [10.5, 12.5]], dtype=float32)
    """
    _check_factor(size, factor)
    matrix = np.kron(np.eye(size // factor), np.full((1, factor), 1.0 / factor))
    return Separable.of(matrix, matrix)


def bicubic(size: int, factor: int) -> Separable:
    """Super-resolution: the cubic kernel (a = -1/2) of ``4 factor`` taps at stride ``factor``, borders mirrored.

    One-dimensional singular values below 0.03 are set to 0.

    Raises:
        ValueError: as `average_pooling`.
    """
    _check_factor(size, factor)
    matrix = np.zeros((size // factor, size))
    positions = np.arange(-2 * factor, size + 2 * factor)
    for i, row in enumerate(matrix):
        t = np.abs(positions - ((i + 0.5) * factor - 0.5)) / factor
        near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        taps = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        np.add.at(row, _mirrored(positions, size), taps / taps.sum())
    return Separable.of(matrix, matrix, THRESHOLD)


def _mirrored(position: np.ndarray, size: int) -> np.ndarray:
    """Reflection with the edge pixel repeated."""
    position = position % (2 * size)
    return np.minimum(position, 2 * size - 1 - position)


def _check_factor(size: int, factor: int) -> None:
    if factor < 2 or size % factor:
        raise ConfigError(f"factor {factor}: it must be at least 2 and divide the image size {size}")


def uniform_kernel(taps: int = 9) -> np.ndarray:
    """``taps`` equal weights that sum to 1.

    Raises:
        ValueError: fewer than one tap, or an even number.

    Examples:
        >>> jebm.restoration.uniform_kernel(5)
        array([0.2, 0.2, 0.2, 0.2, 0.2])
    """
    _check_taps(taps)
    return np.full(taps, 1.0 / taps)


def gaussian_kernel(deviation: float, taps: int = 5) -> np.ndarray:
    """Weights ``exp(-t²/(2 deviation²))`` at ``taps`` (odd) pixels round 0, their sum 1.

    Raises:
        ValueError: a deviation that is not above 0 and finite, fewer than one tap, or an even number.

    Examples:
        >>> jebm.restoration.gaussian_kernel(1.0, 3).round(3)
        array([0.274, 0.452, 0.274])
    """
    if not 0 < deviation < np.inf:
        raise ValueError(f"deviation {deviation}: it must be above 0 and finite")
    _check_taps(taps)
    distance = np.arange(taps) - taps // 2
    weights = np.exp(-(distance**2) / (2.0 * deviation**2))
    return weights / weights.sum()


def _check_taps(taps: int) -> None:
    if taps < 1 or taps % 2 != 1:
        raise ValueError(f"{taps} taps: a kernel has an odd number of them, 1 or more")


def blur(size: int, rows: np.ndarray, columns: np.ndarray | None = None) -> Separable:
    """Deblurring: convolution of a square image along its height, then its width; black (0) beyond the border.

    Gaussian: ``blur(size, gaussian_kernel(10.0))``; uniform: ``blur(size, uniform_kernel())``; anisotropic:
    ``blur(size, gaussian_kernel(20.0, 9), gaussian_kernel(1.0, 9))``. One-dimensional singular values below 0.03
    are set to 0, in A too: a picture blurred by the full kernel lies near its range, not in it.

    Args:
        size: height and width.
        rows: taps along the height, an odd number.
        columns: taps along the width; None: as ``rows``.

    Raises:
        ValueError: a kernel with an even number of taps, or none.
    """
    return Separable.of(_band(size, rows), _band(size, rows if columns is None else columns), THRESHOLD)


def _band(size: int, taps: np.ndarray) -> np.ndarray:
    if taps.ndim != 1 or len(taps) % 2 == 0:
        raise ValueError(f"a blur takes a vector with an odd number of taps, got shape {taps.shape}")
    offset = np.arange(size)[None, :] - np.arange(size)[:, None] + len(taps) // 2
    inside = (offset >= 0) & (offset < len(taps))
    return np.where(inside, taps[::-1][np.clip(offset, 0, len(taps) - 1)], 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inpainting(Operator):
    """``y = m x`` with m 1 where a pixel is known, 0 where it is missing; ``A = Aᵀ = A⁺``.

    Attributes:
        mask: [H, W, 1], 0 or 1.

    Examples:
        >>> operator = jebm.restoration.Inpainting.of(jebm.restoration.box_mask(4))
        >>> float(operator.apply(jnp.ones((4, 4, 1))).sum())
        12.0
    """

    mask: Array

    @classmethod
    def of(cls, known: np.ndarray) -> "Inpainting":
        """From [H, W] of booleans, True where the pixel is known.

        Raises:
            ValueError: another shape, or no known pixel.
        """
        known = np.asarray(known)
        if known.ndim != 2 or known.dtype != bool or not known.any():
            raise ValueError(f"a mask is a boolean array [H, W] with a known pixel, got {known.dtype} {known.shape}")
        return cls(jnp.asarray(known, jnp.float32)[..., None])

    def apply(self, x: Array) -> Array:
        """[H, W, C] -> [H, W, C], missing pixels 0 (mid-grey)."""
        return self.mask * x

    def adjoint(self, y: Array) -> Array:
        """As `apply`."""
        return self.mask * y

    def pseudo_inverse(self, y: Array) -> Array:
        """As `apply`."""
        return self.mask * y


def box_mask(size: int, side: int | None = None) -> np.ndarray:
    """Known pixels [size, size] outside a central square of ``side`` pixels (default: half the size).

    Raises:
        ValueError: a side that leaves no pixel, or no hole.

    Examples:
        >>> jebm.restoration.box_mask(4).astype(int)
        array([[1, 1, 1, 1],
               [1, 0, 0, 1],
               [1, 0, 0, 1],
               [1, 1, 1, 1]])
    """
    side = size // 2 if side is None else side
    if not 1 <= side < size:
        raise ConfigError(f"box of {side} pixels: it must have 1 to {size - 1} in an image of {size}")
    known, start = np.ones((size, size), bool), (size - side) // 2
    known[start : start + side, start : start + side] = False
    return known


def random_mask(size: int, fraction: float = 0.5, seed: int = 0) -> np.ndarray:
    """Known pixels [size, size], a ``fraction`` of all chosen at random.

    Raises:
        ValueError: a fraction outside (0, 1).

    Examples:
        >>> int(jebm.restoration.random_mask(8, fraction=0.25).sum())  # of 64 pixels
        16
    """
    known = np.zeros(size * size, bool)
    known[_chosen(size * size, fraction, seed)] = True
    return known.reshape(size, size)


def _chosen(count: int, fraction: float, seed: int) -> np.ndarray:
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction {fraction}: it must lie between 0 and 1")
    return np.sort(np.random.default_rng(seed).permutation(count)[: max(1, round(fraction * count))])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Colorization(Operator):
    """``y`` is the mean over ``channels`` colours; A⁺ makes all of them that grey."""

    channels: int = dataclasses.field(default=3, metadata={"static": True})

    def apply(self, x: Array) -> Array:
        """[H, W, C] -> [H, W, 1]."""
        return x.mean(-1, keepdims=True)

    def adjoint(self, y: Array) -> Array:
        """[H, W, 1] -> [H, W, C]."""
        return self.pseudo_inverse(y) / self.channels

    def pseudo_inverse(self, y: Array) -> Array:
        """[H, W, 1] -> [H, W, C]."""
        return jnp.broadcast_to(y, (*y.shape[:-1], self.channels))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WalshHadamard(Operator):
    """Compressed sensing: some coefficients of the orthonormal Walsh-Hadamard transform, per channel; ``A⁺ = Aᵀ``.

    Attributes:
        rows: int32 [m], which coefficients, in the natural (Hadamard) order.
        size: height and width of the image; ``size²`` must be a power of two.
    """

    rows: Array
    size: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, size: int, fraction: float = 0.25, seed: int = 0) -> "WalshHadamard":
        """A random ``fraction`` of the coefficients of a square image.

        Raises:
            ValueError: a size that is no power of two, or a fraction outside (0, 1).
        """
        if size < 2 or size & (size - 1):
            raise ConfigError(f"compressed sensing takes images whose size is a power of two, got {size}")
        return cls(jnp.asarray(_chosen(size * size, fraction, seed), jnp.int32), size)

    def apply(self, x: Array) -> Array:
        """[H, W, C] -> [m, C]."""
        return _walsh_hadamard(x.reshape(self.size**2, -1))[self.rows]

    def adjoint(self, y: Array) -> Array:
        """[m, C] -> [H, W, C]."""
        coefficients = jnp.zeros((self.size**2, y.shape[-1]), y.dtype).at[self.rows].set(y)
        return _walsh_hadamard(coefficients).reshape(self.size, self.size, -1)

    def pseudo_inverse(self, y: Array) -> Array:
        """As `adjoint`."""
        return self.adjoint(y)


def _walsh_hadamard(x: Array) -> Array:
    """The orthonormal transform along the first axis, its own inverse."""
    length = x.shape[0]
    step = 1
    while step < length:
        pairs = x.reshape(-1, 2, step, x.shape[-1])
        x = jnp.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(length, -1)
        step *= 2
    return x / jnp.sqrt(jnp.asarray(length, x.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix(Operator):
    """Any matrix ``M = U S Vᵀ`` on the image's entries in row-major order.

    Attributes:
        left: ``U S`` [m, r], r the rank.
        left_inverse: ``S⁻¹ Uᵀ`` [r, m].
        right: V [H W C, r].
        shape: (H, W, C).
        measured: shape of the measurement, of m entries.
    """

    left: Array
    left_inverse: Array
    right: Array
    shape: Shape = dataclasses.field(metadata={"static": True})
    measured: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls, matrix: np.ndarray, shape: Shape, measured: tuple[int, ...] | None = None, threshold: float = 1e-3
    ) -> "Matrix":
        """From M; singular values below ``threshold`` times the largest are set to 0, in A as well as in A⁺."""
        largest = float(np.linalg.norm(np.asarray(matrix, np.float64), 2))
        left, left_inverse, right = (jnp.asarray(a, jnp.float32) for a in _truncated(matrix, threshold * largest))
        return cls(left, left_inverse, right, shape, (len(matrix),) if measured is None else measured)

    def apply(self, x: Array) -> Array:
        """[H, W, C] -> the measurement."""
        return _product(self.left, _product(self.right.T, x)).reshape(self.measured)

    def adjoint(self, y: Array) -> Array:
        """The measurement -> [H, W, C]."""
        return _product(self.right, _product(self.left.T, y)).reshape(self.shape)

    def pseudo_inverse(self, y: Array) -> Array:
        """The measurement -> [H, W, C]."""
        return _product(self.right, _product(self.left_inverse, y)).reshape(self.shape)

    def range_part(self, x: Array) -> Array:
        """[H, W, C] -> [H, W, C]."""
        return _product(self.right, _product(self.right.T, x)).reshape(self.shape)


def _product(matrix: Array, x: Array) -> Array:
    return jnp.dot(matrix, x.reshape(-1), precision="highest")
