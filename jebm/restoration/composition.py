"""Composition of degradation operators."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jebm.restoration.operators import Matrix, Operator, Shape

__all__ = ["Composition", "compose"]

LARGEST_MATRIX = 3072  # entries of an image whose composition is still inverted as one dense matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Composition(Operator):
    """``A = A_n ... A_1`` of operators for which ``A⁺ = A_1⁺ ... A_n⁺``; `compose` checks that."""

    parts: tuple[Operator, ...]

    def apply(self, x: Array) -> Array:
        """The first part first."""
        for part in self.parts:
            x = part.apply(x)
        return x

    def adjoint(self, y: Array) -> Array:
        """The last part first."""
        for part in reversed(self.parts):
            y = part.adjoint(y)
        return y

    def pseudo_inverse(self, y: Array) -> Array:
        """The last part first."""
        for part in reversed(self.parts):
            y = part.pseudo_inverse(y)
        return y


def compose(operators: Sequence[Operator], shape: Shape) -> Operator:
    """Composition of degradations: ``operators[0]`` is applied first.

    ``(B A)⁺ = A⁺ B⁺`` holds for some pairs only (grey after pooling, but no mask after a blur). Where it holds, the
    parts do the work; elsewhere the product becomes one dense matrix, inverted by its singular values, of which
    those below 1e-3 of the largest count as 0.

    Args:
        operators: one or more.
        shape: (H, W, C) of the image.

    Raises:
        ValueError: no operator, or a product to be inverted densely that is larger than 3,072 entries.

    Examples:
        >>> grey = jebm.restoration.compose(
        ...     [jebm.restoration.average_pooling(4, 2), jebm.restoration.Colorization()], (4, 4, 3))
        >>> grey.apply(jnp.ones((4, 4, 3))).shape
        (2, 2, 1)
    """
    if not operators:
        raise ValueError("compose needs at least one operator")
    chain = Composition(tuple(operators))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    y = chain.apply(x)
    if _is_inverse(chain, x, y):
        return chain
    size = int(np.prod(shape))
    if size > LARGEST_MATRIX:
        raise ValueError(
            f"this composition has no pseudo-inverse made of its parts', and an image of {size} entries is too large "
            f"for a dense one (at most {LARGEST_MATRIX}): use smaller images or another order"
        )
    basis = jnp.eye(size).reshape(size, *shape)
    matrix = jax.lax.map(chain.apply, basis, batch_size=256).reshape(size, -1).T
    return Matrix.of(np.asarray(matrix), shape, y.shape)


def _is_inverse(chain: Composition, x: Array, y: Array) -> bool:
    """Moore and Penrose's conditions on random vectors: ``A A⁺ A = A``, ``A⁺ A A⁺ = A⁺``, both products symmetric."""
    rng = np.random.default_rng(1)
    x2 = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    y2 = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    inner = lambda a, b: jnp.vdot(a, b, precision="highest") / x.size  # noqa: E731
    inverse = chain.pseudo_inverse(y2)
    near = lambda a, b: bool(jnp.allclose(a, b, rtol=1e-3, atol=1e-4))  # noqa: E731
    return (
        near(chain.apply(chain.pseudo_inverse(y)), y)
        and near(chain.pseudo_inverse(chain.apply(inverse)), inverse)
        and near(inner(chain.range_part(x), x2), inner(x, chain.range_part(x2)))
        and near(inner(chain.apply(inverse), y), inner(y2, chain.apply(chain.pseudo_inverse(y))))
    )
