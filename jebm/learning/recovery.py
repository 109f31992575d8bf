"""Recovery likelihood: the energy of data learns from how it denoises them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jebm import mcmc, sharding
from jebm.energy import Energy, PyTree, as_partial, condition, value
from jebm.learning.likelihood import Contrast, contrastive_loss, still
from jebm.learning.noise import add_normals, row
from jebm.mcmc import Kernel

__all__ = ["diffusion_recovery_likelihood", "recovery_likelihood"]

NoisyKernelOf = Callable[[Energy, Array], Kernel]


def recovery_likelihood(
    key: Array,
    energy: Energy,
    batch: PyTree,
    kernel_of: NoisyKernelOf,
    num_steps: int,
    noise_scale: Array | float,
    *,
    regularization: float = 0.0,
) -> tuple[Array, Contrast]:
    """The likelihood of data given noisy copies of them, ``p(x | x̃) ∝ exp(-E(x) - ‖x̃ - x‖²/(2σ²))``.

    The conditional law is narrow, so that short chains from x̃ are near it, where those of the energy itself would not
    mix. Its optimum with exact samples is the data's energy, up to a constant, for any σ.

    Args:
        key: a typed PRNG key.
        energy: of one example; differentiate through its parameters (see `jebm.learning`).
        batch: data x, leaves [B, ...].
        kernel_of: makes the kernel of a conditional energy at a noise scale, as
            ``lambda energy, sigma: jebm.langevin(energy, 0.1 * sigma**2)``.
        num_steps: of each chain.
        noise_scale: σ.
        regularization: α of `jebm.learning.contrastive_loss`.

    Returns:
        The loss, and `jebm.learning.Contrast`; ``starts`` are the noisy copies.

    References:
        Gao et al., "Learning energy-based models by diffusion recovery likelihood", arXiv 2012.08125, section 3.1.
    """
    noise_key, chain_key = jax.random.split(key)
    noisy = add_normals(noise_key, batch, noise_scale)
    energy = as_partial(energy)
    scales = jnp.broadcast_to(jnp.asarray(noise_scale, jnp.float32), (len(jax.tree.leaves(batch)[0]),))
    return _recover(chain_key, lambda _, x: value(energy, x), lambda _: still(energy), batch, noisy, scales, scales,
                    kernel_of, num_steps, regularization)  # fmt: skip


def diffusion_recovery_likelihood(
    key: Array,
    energy: Callable[[Array, PyTree], Array],
    batch: PyTree,
    kernel_of: NoisyKernelOf,
    num_steps: int,
    noise_scales: Array,
    *,
    regularization: float = 0.0,
) -> tuple[Array, Contrast]:
    """Diffusion recovery likelihood: a ladder of noisier and noisier data, the energy of each given the next.

    With ``ᾱ_t = Π_{s<t} (1 - σ_s²)`` and ``x_t = sqrt(ᾱ_t) x + sqrt(1 - ᾱ_t) ξ``, the energy of level t is that of
    ``y = sqrt(1 - σ_t²) x_t``, given ``x_{t+1} = y + σ_t ξ``. To generate, start at noise on top of the ladder, and at
    each level downwards walk ``E_t(y) + ‖x_{t+1} - y‖²/(2σ_t²)`` and divide by ``sqrt(1 - σ_t²)``.

    Args:
        key: as in `recovery_likelihood`.
        energy: ``(level, y) -> energy``, of an int32 level in 0..T-1 and one example.
        batch: data x, leaves [B, ...]; each draws a level of its own.
        kernel_of: as there.
        num_steps: as there.
        noise_scales: σ_t in (0, 1), [T], the least first.
        regularization: as there.

    Returns:
        The loss, and `jebm.learning.Contrast`; ``starts`` are the x_{t+1}.

    References:
        Gao et al., "Learning energy-based models by diffusion recovery likelihood", arXiv 2012.08125, algorithm 1.
    """
    level_key, data_key, noise_key, chain_key = jax.random.split(key, 4)
    noise_scales = jnp.asarray(noise_scales)
    size = len(jax.tree.leaves(batch)[0])
    levels = jax.random.randint(level_key, (size,), 0, len(noise_scales))
    kept = 1.0 - jnp.square(noise_scales)
    before = jnp.concatenate([jnp.ones(1, kept.dtype), jnp.cumprod(kept)])[levels]
    scaled = lambda tree, factors: jax.tree.map(lambda a: row(jnp.sqrt(factors), a) * a, tree)  # noqa: E731
    less_noisy = add_normals(data_key, scaled(batch, before), jnp.sqrt(1.0 - before))
    data = scaled(less_noisy, kept[levels])
    scales = noise_scales[levels]
    noisy = add_normals(noise_key, data, scales)
    energy = as_partial(energy)
    at = lambda level: jax.tree_util.Partial(still(energy), level)  # noqa: E731
    return _recover(chain_key, energy, at, data, noisy, levels, scales, kernel_of, num_steps, regularization)


def _recover(
    key: Array, energy: Callable[[Array, PyTree], Array], at: Callable[[Array], Energy], data: PyTree, noisy: PyTree,
    levels: Array, scales: Array, kernel_of: NoisyKernelOf, num_steps: int, regularization: float,
) -> tuple[Array, Contrast]:  # fmt: skip
    """`contrastive_loss` of the data and of chains from their noisy copies; ``at`` gives the energy that is walked."""
    data, noisy = jax.lax.stop_gradient((data, noisy))

    def chain(key: Array, level: Array, scale: Array, x: PyTree) -> PyTree:
        kernel = kernel_of(condition(at(level), x, 0.5 / jnp.square(scale)), scale)
        return mcmc.sample(key, kernel, x, num_steps, trace=())[0].position

    noisy = sharding.constrain_batch(noisy)
    negatives = jax.vmap(chain)(mcmc.chain_keys(key, len(scales)), levels, scales, noisy)
    negatives = jax.lax.stop_gradient(negatives)
    on_data, on_negatives = (jax.vmap(energy)(levels, x) for x in (data, negatives))
    loss = contrastive_loss(on_data, on_negatives, 1.0, regularization)
    return loss, Contrast(jnp.mean(on_data), jnp.mean(on_negatives), noisy, negatives)
