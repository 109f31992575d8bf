"""Langevin chains of Hat EBM (arXiv 2210.16486): images are ``x = G(z) + y``, generator output plus residual.

The energy, in the authors' unit (the density is ``exp(-U)``), and in this library's, at temperature T:

    U(z, y) = H(G(z) + y)/T + τ‖y‖² (+ ½‖z‖²),     T U(z, y) = H(G(z) + y) + Tτ‖y‖² (+ T½‖z‖²)

τ = 1/(2σ²) for a residual prior N(0, σ² I). A step with noise scales ε (of y) and ε_z (of z):

    z' = z - (ε_z²/2) ∇_z U(z, y) + ε_z ξ_z                    joint chains only
    y' = y - clip_M((ε²/2) ∇_y U(z', y)) + ε ξ_y               with the z just moved

``clip_M`` bounds the length of an image's drift, the τ term included, the noise not. With a ``box`` B [ours] the new
image ``G(z') + y'`` is reflected into [-B, B]: a hat of rectifiers is unbounded below, so that long chains run away.

What is sampled:

* *Conditional* chains (ε_z = 0) keep z: with τ = 0 their target is ``exp(-H(x)/T)`` for every z and G. G only sets
  where the short chain starts. With τ > 0 the normaliser over y depends on z, and maximum likelihood
  with z drawn from its prior is no longer exact: keep τ = 0 in training.
* *Joint* chains move both. With ½‖z‖² (``latent_prior``) and τ > 0, x follows ``exp(-H(x)/T) ∫ N(z; 0, I)
  N(x; G(z), σ² I) dz``, up to its normaliser: an energy times the density of the generator with noise.
* Without the prior of z, as in the released code, or with τ = 0, the joint energy cannot be normalised: no law of
  (z, y) exists, and the chain is a short-run sampler from N(0, I), not an estimate of a density.

As ε → 0 the box restricts a conditional chain's law of x to itself, and that law is proper for every H. In joint chains
it keeps images inside, but z moves as without it: no exact law is claimed.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import mcmc
from jebm.energy import Energy, Generator, PyTree, as_partial, bind, squared_distance, value
from jebm.errors import check
from jebm.mcmc.langevin import reflect
from jebm.methods import accumulation

__all__ = ["ChainConfig", "JointKernel", "Samples", "conditional_kernel", "joint_kernel", "run_chains"]


@dataclasses.dataclass(frozen=True)
class ChainConfig:
    """A chain; defaults are those of the authors' synthesis training.

    Attributes:
        num_steps: K.
        noise_scale: ε, of y.
        latent_noise_scale: ε_z; 0 keeps z where it starts (a conditional chain).
        residual_precision: τ.
        latent_prior: add ½‖z‖², which the released code does not.
        max_drift: M, or None for no bound. *Changes the law sampled* where it bites.
        residual_start_scale: standard deviation of y at the start.
        box: B, images are reflected into [-B, B]; or None for no bound, as released. *Changes the law sampled*.
    """

    num_steps: int = 50
    noise_scale: float = 5e-4
    latent_noise_scale: float = 0.0
    residual_precision: float = 0.0
    latent_prior: bool = False
    max_drift: float | None = 2.5
    residual_start_scale: float = 0.0
    box: float | None = None

    def __post_init__(self) -> None:
        check(
            self, num_steps=">=0", noise_scale=">=0", latent_noise_scale=">=0", residual_precision=">=0",
            max_drift=">0", residual_start_scale=">=0", box=">0",
        )  # fmt: skip


class Samples(NamedTuple):
    """The ends of chains, [B, ...], and the mean lengths of their drifts.

    Attributes:
        z: latents.
        y: residuals.
        image: ``G(z) + y``.
        residual_drift: mean over steps and chains of the length of y's drift, after the bound; float32.
        latent_drift: likewise of z; 0 for conditional chains.
    """

    z: Array
    y: Array
    image: Array
    residual_drift: Array
    latent_drift: Array


def conditional_kernel(
    hat: Energy, image: Array, config: ChainConfig, temperature: float, noise: Array | None = None
) -> mcmc.LangevinKernel:
    """The kernel of y given ``image = G(z)``: Langevin on ``H(G(z) + y) + Tτ‖y‖²``.

    Args:
        hat: H, one image in.
        image: G(z) [H, W, C], computed once per chain.
        config: see `ChainConfig`.
        temperature: T.
        noise: standard normals [K, H, W, C] drawn in advance, or None.
    """
    energy = bind(_conditional_energy, as_partial(hat), image, temperature * config.residual_precision)
    step_size = mcmc.from_noise_scale(config.noise_scale, temperature)
    box = None if config.box is None else (-config.box - image, config.box - image)  # of y
    return mcmc.langevin(energy, step_size, temperature, max_drift=config.max_drift, box=box, noise=noise)


def _conditional_energy(hat: Energy, image: Array, weight: Array, y: Array) -> Array:
    return value(hat, image + y) + weight * squared_distance(y, jnp.zeros_like(y))


def conditional_drift(gradient_norm: Array, config: ChainConfig, temperature: float) -> Array:
    """The length of the drift that a gradient of this norm gives y, after the bound."""
    drift = mcmc.from_noise_scale(config.noise_scale, temperature) * gradient_norm
    return drift if config.max_drift is None else jnp.minimum(drift, config.max_drift)


class JointState(NamedTuple):
    """The state of a joint chain.

    Attributes:
        position: ``{"z", "y"}``.
        generated: G(z), at that z.
        energy: ``H(G(z) + y)``.
        gradient: of T U with respect to z.
        step: int32.
    """

    position: dict[str, Array]
    generated: Array
    energy: Array
    gradient: Array
    step: Array


class JointInfo(NamedTuple):
    """Diagnostics of one joint step.

    Attributes:
        energy: ``H(G(z) + y)`` at the new position.
        residual_drift: length of y's drift, after the bound.
        latent_drift: length of z's drift.
    """

    energy: Array
    residual_drift: Array
    latent_drift: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JointKernel:
    """Langevin on z, then on y; see `joint_kernel`."""

    hat: Energy
    generator: Generator
    noise_scale: float
    latent_noise_scale: float
    residual_precision: float
    prior_precision: float
    max_drift: float
    temperature: float
    noise: PyTree
    box: float | None = None

    def init(self, position: dict[str, Array]) -> JointState:
        """The state at ``position``: one value and one gradient of H and of G."""
        generated, pullback = jax.vjp(self.generator, position["z"])
        return self._state(position, generated, pullback, jnp.zeros((), jnp.int32))

    def step(self, key: Array, state: JointState) -> tuple[JointState, JointInfo]:
        """One step; ``key`` is used for this step alone."""
        if self.noise is None:
            noise = optax.tree.random_like(key, state.position, jax.random.normal)
        else:
            noise = jax.tree.map(lambda a: a.at[state.step].get(mode="fill", fill_value=jnp.nan), self.noise)
        temperature, y = self.temperature, state.position["y"]
        latent_drift = mcmc.from_noise_scale(self.latent_noise_scale, temperature) * state.gradient
        z = state.position["z"] - latent_drift + self.latent_noise_scale * noise["z"]
        generated, pullback = jax.vjp(self.generator, z)  # for this y, and for the next z
        slope = jax.grad(lambda x: value(self.hat, x))(generated + y)
        slope += 2.0 * temperature * self.residual_precision * y
        drift = mcmc.from_noise_scale(self.noise_scale, temperature) * slope
        drift *= jnp.minimum(1.0, self.max_drift / optax.tree.norm(drift))
        y = y - drift + self.noise_scale * noise["y"]
        if self.box is not None:
            y = reflect(y, -self.box - generated, self.box - generated)
        moved = self._state({"z": z, "y": y}, generated, pullback, state.step + 1)
        return moved, JointInfo(moved.energy, optax.tree.norm(drift), optax.tree.norm(latent_drift))

    def _state(self, position: dict[str, Array], generated: Array, pullback: PyTree, step: Array) -> JointState:
        energy, slope = jax.value_and_grad(lambda x: value(self.hat, x))(generated + position["y"])
        gradient = pullback(slope)[0] + self.temperature * self.prior_precision * position["z"]
        return JointState(position, generated, energy, gradient, step)


def joint_kernel(
    hat: Energy, generator: Generator, config: ChainConfig, temperature: float, noise: PyTree = None
) -> JointKernel:
    """The kernel of ``{"z": z, "y": y}``: Langevin on T U, z first, then y with the new z.

    It is `jebm.langevin` with ``blocks=("z", "y")`` on the same energy, draw for draw, but evaluates G once a step and
    pulls back through it once: the G(z') of y's move is that of z's next one.

    Args:
        hat: H, one image in.
        generator: G, one latent in, one image out.
        config: see `ChainConfig`.
        temperature: T.
        noise: standard normals drawn in advance, as the position with a leading step axis, or None.
    """
    bound = jnp.inf if config.max_drift is None else config.max_drift
    return JointKernel(
        as_partial(hat), as_partial(generator), config.noise_scale, config.latent_noise_scale,
        config.residual_precision, float(config.latent_prior), bound, temperature, noise, config.box,
    )  # fmt: skip


def run_chains(
    key: Array,
    hat: Energy,
    generator: Generator,
    z: Array,
    y: Array,
    config: ChainConfig,
    temperature: float,
    noise: PyTree = None,
    microbatches: int = 1,
) -> Samples:
    """A chain from each (z, y), [B, ...]; no gradient flows through them or into what they start from.

    Args:
        key: split into one key per chain.
        hat: H, one image in.
        generator: G, one latent in, one image out.
        z: where latents start.
        y: where residuals start.
        config: see `ChainConfig`.
        temperature: T.
        noise: ``{"z": [B, K, ...], "y": [B, K, ...]}`` drawn in advance ("y" alone for conditional chains), or None.
        microbatches: parts of the chains that run one after another.
    """
    hat, generator, z, y = jax.lax.stop_gradient((as_partial(hat), as_partial(generator), z, y))
    keys = mcmc.chain_keys(key, z.shape[0])
    chains = _joint_chains if config.latent_noise_scale > 0 else _conditional_chains
    run = functools.partial(chains, hat, generator, config, temperature)
    samples: Samples = accumulation.by_rows(run, microbatches, keys, z, y, noise)
    samples = samples._replace(residual_drift=_mean(samples.residual_drift), latent_drift=_mean(samples.latent_drift))
    if noise is None and samples.image.size:
        mcmc.warn_of_lost_chains(jnp.isfinite(samples.image).all(axis=tuple(range(1, samples.image.ndim))))
    return jax.lax.stop_gradient(samples)


def _conditional_chains(
    hat: Energy, generator: Generator, config: ChainConfig, temperature: float, keys: Array, z: Array, y: Array,
    noise: PyTree,
) -> Samples:  # fmt: skip
    """`Samples` whose drifts are those of each chain and step [B, K], as `_joint_chains` gives them."""
    generated = jax.vmap(generator)(z)

    def chain(key: Array, generated: Array, y: Array, noise: Array | None) -> tuple[Array, Array]:
        kernel = conditional_kernel(hat, generated, config, temperature, noise)
        state, info = mcmc.sample(key, kernel, y, config.num_steps, trace=("gradient_norm",))
        return state.position, conditional_drift(info["gradient_norm"], config, temperature)

    y, drift = jax.vmap(chain)(keys, generated, y, None if noise is None else noise["y"])
    return Samples(z, y, generated + y, drift, jnp.zeros_like(drift))


def _joint_chains(
    hat: Energy, generator: Generator, config: ChainConfig, temperature: float, keys: Array, z: Array, y: Array,
    noise: PyTree,
) -> Samples:  # fmt: skip
    def chain(key: Array, position: dict[str, Array], noise: PyTree) -> tuple[JointState, dict[str, Array]]:
        kernel = joint_kernel(hat, generator, config, temperature, noise)
        return mcmc.sample(key, kernel, position, config.num_steps, trace=("residual_drift", "latent_drift"))

    state, info = jax.vmap(chain)(keys, {"z": z, "y": y}, noise)
    y = state.position["y"]
    return Samples(state.position["z"], y, state.generated + y, info["residual_drift"], info["latent_drift"])


def _mean(drift: Array) -> Array:
    return drift.mean() if drift.size else jnp.zeros(())  # chains of no steps
