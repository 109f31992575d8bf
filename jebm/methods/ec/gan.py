"""A small GAN under energy calibration: an adversarial loss, and beside it the constraint of `calibration` [inferred].

    generator      -E D(G(z)) + λ C         with      C = E ‖x_c - G(z)‖² ≤ ε
    discriminator  E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))        (hinge; Miyato et al., arXiv 1802.05957)
    energy         (mean f(x) - mean f(x_c))/τ

The energy is a network of its own beside the discriminator: the one scores whole chains, the other one pass. It is
the example of how to calibrate a generator that is no VAE; its numbers are ours.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import energy as energies
from jebm import mcmc
from jebm.errors import ConfigError, check
from jebm.methods import diagnostics
from jebm.methods.base import Method, Metrics
from jebm.methods.ec import calibration
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.ec.energy_model import EnergyModel, EnergyState
from jebm.methods.ec.energy_networks import ResNet
from jebm.methods.ec.vae_networks import Decoder
from jebm.networks import spectral_norm
from jebm.networks.normalization import BatchNorm

__all__ = ["ECGANConfig", "ECGANState", "build", "generator_of"]

Layers = tuple[tuple[int, int], ...]
STANDING_LATENTS = 256  # prior latents that give the generator's batch statistics


@dataclasses.dataclass(frozen=True)
class ECGANConfig:
    """A small GAN with an energy beside it; all values are ours.

    Attributes:
        image_size: 8, 16, 32 or 64.
        channels: of the images.
        latent_size: of z.
        generator_width: base width of the generator, the decoder of `ec_vae`.
        discriminator_layers: (channels, blocks) of each resolution.
        energy_layers: likewise, of the energy.
        head_width: hidden units of the heads of both.
        learning_rate: Adam's, of generator and discriminator.
        energy_learning_rate: Adam's, of the energy.
        ema_decay: of the moving average of the generator; at step t at most (1 + t)/(10 + t).
        calibration: the chain and the constraint; the calibrated samples are always the energy's negatives
            too, whatever ``reuse_negatives`` says.
    """

    image_size: int = 32
    channels: int = 3
    latent_size: int = 64
    generator_width: int = 16
    discriminator_layers: Layers = ((32, 1), (64, 1), (64, 1))
    energy_layers: Layers = ((32, 1), (64, 1), (64, 1))
    head_width: int = 128
    learning_rate: float = 2e-4
    energy_learning_rate: float = 1e-4
    ema_decay: float = 0.999
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", latent_size=">=1", generator_width=">=1", head_width=">=1", learning_rate=">0",
            energy_learning_rate=">0", ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size not in (8, 16, 32, 64):
            raise ConfigError(f"image_size={self.image_size} is out of range: it must be 8, 16, 32 or 64")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)


class ECGANState(NamedTuple):
    """Everything an iteration reads and writes; the discriminator is kept as an energy model's state."""

    generator: Any
    spectral: Any
    average: Any
    optimizer: Any
    discriminator: EnergyState
    energy: EnergyState
    dual: Array


def network(config: ECGANConfig) -> Decoder:
    """G."""
    return Decoder(config.generator_width, config.image_size, config.channels, config.latent_size)


def energy_model(config: ECGANConfig) -> EnergyModel:
    """The energy."""
    return EnergyModel(ResNet(config.energy_layers, config.head_width), config.energy_learning_rate)


def discriminator(config: ECGANConfig) -> EnergyModel:
    """D: its network, spectral norm and optimiser."""
    return EnergyModel(ResNet(config.discriminator_layers, config.head_width), config.learning_rate)


def _optimizer(config: ECGANConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate, b1=0.0, b2=0.9)


def initialize(config: ECGANConfig, key: Array, batch: Array) -> ECGANState:
    """A fresh state; ``batch`` gives the image shape only."""
    if batch.shape[1:] != config.shape:
        raise ConfigError(
            f"the data are images of {batch.shape[1:]} (height, width, channels), the method expects {config.shape}: "
            "set method.image_size and method.channels, or another data.source"
        )
    keys = iter(jax.random.split(key, 4))
    generator = network(config).init(next(keys), jnp.zeros((1, config.latent_size)))["params"]
    example = jnp.zeros(config.shape)
    return ECGANState(
        generator=generator,
        spectral=spectral_norm.init(next(keys), generator),
        average=jax.tree.map(jnp.array, generator),
        optimizer=_optimizer(config).init(generator),
        discriminator=discriminator(config).init(next(keys), example),
        energy=energy_model(config).init(next(keys), example),
        dual=jnp.asarray(config.calibration.dual_initial, jnp.float32),
    )


def _generate(config: ECGANConfig, params: Any, spectral: Any, z: Array) -> Array:
    """G in training mode, normalised by the statistics of its own batch."""
    variables = {"params": spectral_norm.normalize(params, spectral), "batch_stats": _no_statistics(config)}
    return cast(Array, network(config).apply(variables, z, train=True, mutable=["batch_stats"])[0])


def _no_statistics(config: ECGANConfig) -> Any:
    latent = jnp.zeros((1, config.latent_size))
    shapes = jax.eval_shape(network(config).init, jax.random.key(0), latent)["batch_stats"]
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def update(config: ECGANConfig, key: Array, state: ECGANState, images: Array) -> tuple[ECGANState, Metrics]:
    """One iteration: generator, discriminator, energy, dual step; all see the same generated batch."""
    latent_key, chain_key = jax.random.split(key)
    model, critic, settings = energy_model(config), discriminator(config), config.calibration
    energy, critic_state = model.refresh(state.energy), critic.refresh(state.discriminator)
    spectral = spectral_norm.iterate(state.generator, state.spectral)
    z = jax.random.normal(latent_key, (images.shape[0], config.latent_size))

    def generator_loss(params: Any) -> tuple[Array, Any]:
        generated = _generate(config, params, spectral, z)
        calibrated = calibration.calibrate(chain_key, model.head(energy), generated, settings)
        distance = calibration.calibration_loss(calibrated, generated)
        adversarial = -jnp.mean(critic.head(critic_state)(generated))
        return adversarial + state.dual * distance, (adversarial, distance, generated, calibrated)

    gradients, aux = jax.grad(generator_loss, has_aux=True)(state.generator)
    adversarial, distance, generated, calibrated = aux
    updates, optimizer = _optimizer(config).update(gradients, state.optimizer, state.generator)
    generator = optax.apply_updates(state.generator, updates)

    def critic_loss(params: Any) -> Array:
        score = critic.head(critic_state._replace(params=params))
        return jnp.mean(jax.nn.relu(1.0 - score(images))) + jnp.mean(jax.nn.relu(1.0 + score(generated)))

    loss, critic_gradients = jax.value_and_grad(critic_loss)(critic_state.params)
    critic_updates, critic_optimizer = _optimizer(config).update(critic_gradients, critic_state.optimizer)
    critic_state = critic_state._replace(
        params=optax.apply_updates(critic_state.params, critic_updates), optimizer=critic_optimizer
    )
    head = model.head(energy)
    energy, metrics = model.step(energy, images, calibrated, settings.temperature)
    metrics |= diagnostics.gradient_norms(head, images, calibrated) | diagnostics.saturation(calibrated)
    count = optax.tree.get(state.optimizer, "count")
    decay = jnp.minimum(config.ema_decay, (1.0 + count) / (10.0 + count))
    new_state = ECGANState(
        generator=generator,
        spectral=spectral,
        average=optax.incremental_update(generator, state.average, 1.0 - decay),
        optimizer=optimizer,
        discriminator=critic_state,
        energy=energy,
        dual=calibration.dual_step(state.dual, distance, settings, images[0].size),
    )
    metrics |= {
        "generator": adversarial, "discriminator": loss, "calibration": distance, "dual": new_state.dual,
        "chain_displacement": jnp.sqrt(distance / images[0].size),
        "generator_gradient_norm": optax.tree.norm(gradients),
    }  # fmt: skip
    return new_state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


def generator_of(config: ECGANConfig, state: ECGANState) -> energies.Generator:
    """The averaged generator under the batch statistics of a fixed set of prior latents."""
    params = spectral_norm.normalize(state.average, state.spectral)
    z = jax.random.normal(jax.random.key(0), (STANDING_LATENTS, config.latent_size))
    variables = {"params": params, "batch_stats": _no_statistics(config)}
    _, updated = network(config).apply(variables, z, train=True, mutable=["batch_stats"])
    # the running average of zeros and one batch is the batch's share of it
    stats = jax.tree.map(lambda a: a / (1.0 - BatchNorm.decay), updated["batch_stats"])
    return energies.bind(network(config).apply, {"params": params, "batch_stats": stats})


def generate(config: ECGANConfig, key: Array, state: ECGANState, n: int) -> Array:
    """``n`` samples G(z): one pass, no chain."""
    z = jax.vmap(lambda k: jax.random.normal(k, (config.latent_size,)))(mcmc.chain_keys(key, n))
    return generator_of(config, state)(z)


def energy(config: ECGANConfig, state: ECGANState, images: Array) -> Array:
    """``E(x) = f(x)/τ`` of each image [n], float32."""
    return energy_model(config).head(state.energy)(images) / config.calibration.temperature


def scores(config: ECGANConfig, key: Array, state: ECGANState, images: Array) -> Metrics:
    """``calibration_gap`` and ``energy_gap`` as in `ec_vae`."""
    chain_key, latent_key = jax.random.split(key)
    generated = generate(config, latent_key, state, images.shape[0])
    head = energy_model(config).head(state.energy)
    distance = calibration.calibration_loss(
        calibration.calibrate(chain_key, head, generated, config.calibration), generated
    )
    return {
        "calibration_gap": distance - calibration.noise_floor(config.calibration, images[0].size),
        "energy_gap": jnp.mean(head(generated)) - jnp.mean(head(images)),
    }


def build(config: ECGANConfig) -> Method:
    """The method of a configuration; a whole `jebm.config.Config` is taken too."""
    config = getattr(config, "method", config)
    bind = lambda function: functools.partial(function, config)  # noqa: E731
    return Method(
        init=bind(initialize),
        update=bind(update),
        generate=bind(generate),
        energy=bind(energy),
        reconstruct=None,
        scores=bind(scores),
        parameters=lambda state: {
            "generator": state.generator, "discriminator": state.discriminator.params, "energy": state.energy.params,
        },
        chain=calibration.chain(config.calibration),
    )  # fmt: skip
