"""Latent chains through a generator, as in the EC-VAE release (arXiv 2311.04071), whose demo uses neither.

Both move latents ``z`` of ``x = G(z)`` under ``E(x) = f(x)/τ`` with **no prior term on z and no data term**, so that a
normalisable density of z need not exist; add ``½‖z‖²`` through `jebm.energy.latent` for a proper one and run
`jebm.langevin` on it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jebm import mcmc
from jebm.energy import Energy, value
from jebm.mcmc.langevin import floating


def lookahead_chain(
    head: Energy, generator: Callable[[Array], Array], z: Array, noise: Array, step_size: float, temperature: float
) -> tuple[Array, Array]:
    """Langevin on z with a one-step look-ahead δ in pixels (``sgld_z``).

        g = ∇f(G(z) + δ)/τ,    δ' = -(s/2) g,    z' = z - (s/2) J_G(z)ᵀ g + sqrt(s) ξ

    Args:
        head: f, one image in.
        generator: G, one latent in, one image out.
        z: one latent [latent_size].
        noise: standard normals ξ [K, latent_size].
        step_size: s.
        temperature: τ.

    Returns:
        The last z, and the energies ``E(G(z) + δ)`` before each step [K].
    """
    z = floating(z)
    eta = mcmc.from_half_step(step_size, temperature)

    def body(carry: tuple[Array, Array], xi: Array) -> tuple[tuple[Array, Array], Array]:
        z, delta = carry
        x, pullback = jax.vjp(generator, z)
        f, gradient = jax.value_and_grad(lambda x: value(head, x))(x + delta)
        z = z - eta * pullback(gradient)[0] + jnp.sqrt(step_size) * xi
        return (z, -eta * gradient), f / temperature

    delta = jnp.zeros_like(jax.eval_shape(generator, z))
    (z, _), energies = jax.lax.scan(body, (z, delta), noise)
    return z, energies


def joint_chain(
    head: Energy,
    generator: Callable[[Array], Array],
    x: Array,
    z: Array,
    noise: tuple[Array, Array],
    step_sizes: tuple[float, float],
    temperature: float,
) -> tuple[Array, Array, Array]:
    """Langevin on an image and its latent together, the noise of x added before the gradient (``sgld_joint``).

        x̃ = x + sqrt(s_x) ξ_x,    g = ∇f(x̃)/τ,    x' = x̃ - (s_x/2) g,    z' = z - (s_z/2) J_G(z)ᵀ g + sqrt(s_z) ξ_z

    Args:
        head: f, one image in.
        generator: G, one latent in, one image out.
        x: one image [H, W, C], not necessarily G(z).
        z: one latent [latent_size].
        noise: standard normals (ξ_x [K, H, W, C], ξ_z [K, latent_size]).
        step_sizes: (s_x, s_z).
        temperature: τ.

    Returns:
        The last x and z, and the energies ``E(x̃)`` of each step [K].
    """
    x, z = floating(x), floating(z)
    eta_x, eta_z = (mcmc.from_half_step(s, temperature) for s in step_sizes)

    def body(carry: tuple[Array, Array], xi: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        x, z = carry
        x = x + jnp.sqrt(step_sizes[0]) * xi[0]
        f, gradient = jax.value_and_grad(lambda x: value(head, x))(x)
        pullback = jax.vjp(generator, z)[1]
        z = z - eta_z * pullback(gradient)[0] + jnp.sqrt(step_sizes[1]) * xi[1]
        return (x - eta_x * gradient, z), f / temperature

    (x, z), energies = jax.lax.scan(body, (x, z), noise)
    return x, z, energies
