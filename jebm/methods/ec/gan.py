"""A small GAN under energy calibration: an adversarial loss under the constraint of `calibration` [inferred].

    generator      -E D(G(z)) + λ C         with      C = E ‖x_c - G(z)‖² ≤ ε
    discriminator  E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))        (hinge; Miyato et al., arXiv 1802.05957)
    energy         (mean f(x) - mean f(x_c))/τ

Energy and discriminator are two networks: the energy scores whole chains, the discriminator samples of one pass. The
family is the example of how to calibrate a generator that is no VAE; its numbers are ours.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import energy as energies
from jebm import sharding
from jebm.energy import Energy, Generator
from jebm.errors import ConfigError, check
from jebm.methods import diagnostics
from jebm.methods.base import Method, Metrics, Summary
from jebm.methods.ec import calibration
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.ec.energy_model import EnergyModel, NetworkState, SpectralNetwork
from jebm.methods.ec.energy_networks import ResNet
from jebm.methods.ec.vae_networks import Decoder, standing_generator
from jebm.methods.shared import Trained, descend, prior_samples, train, warm_up
from jebm.networks import spectral_norm

__all__ = ["Draws", "ECGANConfig", "ECGANState", "build", "draw", "generator_of", "initialize", "iterate"]

Layers = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class ECGANConfig:
    """A small GAN with an energy; all values are ours.

    Attributes:
        image_size: 8, 16, 32 or 64.
        channels: of the images.
        latent_size: of z.
        generator_width: base width of the generator, the decoder of the EC-VAE.
        discriminator_layers: (channels, blocks) of each resolution.
        energy_layers: likewise, of the energy.
        head_width: hidden units of the heads of both.
        learning_rate: Adam's, of generator and discriminator.
        energy_learning_rate: Adam's, of the energy.
        ema_decay: of the moving average of the generator; at step t at most (1 + t)/(10 + t).
        calibration: the chain and the constraint; the calibrated samples are the energy's negatives too.
    """

    SUMMARY: ClassVar[Summary] = Summary(
        name="Energy-calibrated GAN",
        paper="arXiv 2311.04071, on a small GAN of ours",
        progress=("generator", "discriminator", "energy_gap"),
        curves={
            "generator": "Adversarial loss of the generator.",
            "discriminator": "Loss of the discriminator.",
            "calibration": "Squared distance that the energy's chains move generated images: what calibration lowers.",
            **diagnostics.CURVES,
        },
        scores={**calibration.SCORES, "energy_gap": calibration.GAP},
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "learning_rate": ("learning_rate", "energy_learning_rate"),
        "step_size": ("calibration.step_size",),
    }

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
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)


class ECGANState(NamedTuple):
    """The state of an EC-GAN in training.

    Attributes:
        generator: G, with its moving average.
        spectral: singular vectors of the generator's kernels.
        discriminator: parameters of D and singular vectors of its kernels.
        energy: likewise, of f.
        dual: λ, float32.
    """

    generator: Trained
    spectral: Any
    discriminator: NetworkState
    energy: NetworkState
    dual: Array


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        latent: prior latents [B, latent_size].
        calibration_key: of the chains that calibrate.
        calibration_noise: recorded chain noise [B, K, H, W, C] instead of the key, or None.
    """

    latent: Array
    calibration_key: Array
    calibration_noise: Array | None = None


@functools.cache
def network(config: ECGANConfig) -> Decoder:
    """G."""
    return Decoder(config.generator_width, config.image_size, config.channels, config.latent_size)


@functools.cache
def energy_model(config: ECGANConfig) -> EnergyModel:
    """The energy."""
    return EnergyModel(ResNet(config.energy_layers, config.head_width), config.energy_learning_rate)


@functools.cache
def discriminator(config: ECGANConfig) -> SpectralNetwork:
    """D: its network, spectral norm and optimiser."""
    return SpectralNetwork(ResNet(config.discriminator_layers, config.head_width), config.learning_rate)


def _optimizer(config: ECGANConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate, b1=0.0, b2=0.9)


def initialize(config: ECGANConfig, key: Array, batch: Array) -> ECGANState:
    """A fresh state; ``batch`` is not read, since the configuration gives the shapes."""
    del batch
    generator_key, vector_key, discriminator_key, energy_key = jax.random.split(key, 4)
    params = network(config).init(generator_key, jnp.zeros((1, config.latent_size)))["params"]
    image = jnp.zeros(config.image_shape)
    return ECGANState(
        generator=train(params, _optimizer(config)),
        spectral=spectral_norm.init(vector_key, params),
        discriminator=discriminator(config).init(discriminator_key, image),
        energy=energy_model(config).init(energy_key, image),
        dual=calibration.dual_start(config.calibration),
    )


# --- training ---------------------------------------------------------------------------------------------------------


def draw(config: ECGANConfig, key: Array, batch_size: int) -> Draws:
    """The randomness of one iteration, from one key."""
    latent_key, chain_key = jax.random.split(key)
    latent = jax.random.normal(latent_key, (batch_size, config.latent_size))
    return Draws(sharding.constrain_batch(latent), chain_key)


def iterate(config: ECGANConfig, draws: Draws, state: ECGANState, images: Array) -> tuple[ECGANState, Metrics]:
    """One iteration: generator, discriminator, energy, dual step; all see the same generated batch."""
    model, critic, settings = energy_model(config), discriminator(config), config.calibration
    energy_state, critic_state = model.refresh(state.energy), critic.refresh(state.discriminator)
    spectral = spectral_norm.iterate(state.generator.params, state.spectral)
    head = model.head(energy_state)

    def generator_loss(params: Any) -> tuple[Array, Any]:
        generated = _generate(config, params, spectral, draws.latent)
        calibrated = calibration.calibrate(draws.calibration_key, head, generated, settings, draws.calibration_noise)
        distance = calibration.calibration_loss(calibrated, generated)
        adversarial = -jnp.mean(critic.head(critic_state)(generated))
        return adversarial + state.dual * distance, (adversarial, distance, generated, calibrated)

    gradients, aux = jax.grad(generator_loss, has_aux=True)(state.generator.params)
    adversarial, distance, generated, calibrated = aux
    decay = warm_up(config.ema_decay, optax.tree.get(state.generator.optimizer, "count"))

    def critic_loss(params: Any) -> Array:
        score = critic.head(critic_state._replace(trained=critic_state.trained._replace(params=params)))
        return jnp.mean(jax.nn.relu(1.0 - score(images))) + jnp.mean(jax.nn.relu(1.0 + score(generated)))

    loss, critic_gradients = jax.value_and_grad(critic_loss)(critic_state.trained.params)
    energy_state, metrics = model.step(energy_state, images, calibrated, settings.temperature)
    metrics |= diagnostics.gradient_norms(head, images, calibrated) | diagnostics.saturation(calibrated)
    new_state = ECGANState(
        generator=descend(state.generator, gradients, _optimizer(config), decay),
        spectral=spectral,
        discriminator=critic.descend(critic_state, critic_gradients),
        energy=energy_state,
        dual=calibration.dual_step(state.dual, distance, settings, images[0].size),
    )
    metrics |= {
        "generator": adversarial, "discriminator": loss, "calibration": distance, "dual": new_state.dual,
        "chain_displacement": jnp.sqrt(distance / images[0].size),
        "generator_gradient_norm": optax.tree.norm(gradients),
    }  # fmt: skip
    return new_state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


def update(config: ECGANConfig, key: Array, state: ECGANState, images: Array) -> tuple[ECGANState, Metrics]:
    """One training iteration from one key."""
    return iterate(config, draw(config, key, images.shape[0]), state, images)


def _generate(config: ECGANConfig, params: Any, spectral: Any, z: Array) -> Array:
    """G in training mode, normalised by the statistics of its own batch."""
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), _running_statistics(config))
    variables = {"params": spectral_norm.normalize(params, spectral), "batch_stats": zeros}
    return cast(Array, network(config).apply(variables, z, train=True, mutable=["batch_stats"])[0])


def _running_statistics(config: ECGANConfig) -> Any:
    """Shapes of the collection that the generator's layers require; no running statistics are kept."""
    return jax.eval_shape(network(config).init, jax.random.key(0), jnp.zeros((1, config.latent_size)))["batch_stats"]


# --- after training ---------------------------------------------------------------------------------------------------


def generator_of(config: ECGANConfig, state: ECGANState) -> Generator:
    """The averaged generator; see `standing_generator`."""
    params = spectral_norm.normalize(state.generator.ema, state.spectral)
    return standing_generator(network(config), params, _running_statistics(config), config.latent_size)


def generate(config: ECGANConfig, key: Array, state: ECGANState, n: int) -> Array:
    """``n`` samples G(z): one pass, no chain."""
    return generator_of(config, state)(prior_samples(key, n, (config.latent_size,)))


def energy(config: ECGANConfig, state: ECGANState) -> Energy:
    """``E(x) = f(x)/τ`` of one image."""
    return energies.temper(energy_model(config).head(state.energy), config.calibration.temperature)


def scores(config: ECGANConfig, key: Array, state: ECGANState, images: Array) -> Metrics:
    """Held-out scores: those of `calibration_scores` on samples that generate, and ``energy_gap`` as in the EC-VAE."""
    chain_key, latent_key = jax.random.split(key)
    generated = generate(config, latent_key, state, images.shape[0])
    head = energy_model(config).head(state.energy)
    return calibration.calibration_scores(chain_key, head, generated, config.calibration) | {
        "energy_gap": jnp.mean(head(generated)) - jnp.mean(head(images)),
    }


def build(config: ECGANConfig) -> Method:
    """The method of a configuration."""
    bind = lambda function: functools.partial(function, config)  # noqa: E731
    return Method(
        image_shape=config.image_shape,
        init=bind(initialize),
        update=bind(update),
        generate=bind(generate),
        energy=bind(energy),
        scores=bind(scores),
        networks=lambda state: {
            "generator": state.generator,
            "discriminator": state.discriminator.trained,
            "energy": state.energy.trained,
        },
        generator=bind(generator_of),
        latent_shape=(config.latent_size,),
        temperature=config.calibration.temperature,
        chain=calibration.chain(config.calibration),
        whole_batch="whose generator normalises by the statistics of the whole batch",
    )
