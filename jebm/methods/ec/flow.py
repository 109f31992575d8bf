"""Energy-calibrated normalising flow (EC-NF): maximum likelihood under the calibration constraint.

The abstract of arXiv 2311.04071 names flows as an extension, without flow, loss or data: everything here is our
proposal [inferred]. With x = F⁻¹(z), z ~ N(0, I), and x_c the calibrated sample:

    min  -E_data log₂ p_F(x) / D      subject to      C ≤ ε
    variant A:  C = E ‖x_c - x_g‖², the gradient flowing through x_g, as for the VAE
    variant B:  C = E[log₂ p_F(x_g) - log₂ p_F(x_c)] / D, x_c and x_g constant: likelihood of calibrated samples

The flow sees ``logit(α + (1 - 2α) u)`` of the dequantised image u in [0, 1] (Dinh et al., arXiv 1605.08803); the energy
sees images in [-1, 1], as everywhere. Likelihoods are those of the 256 grey levels, in bits per dimension: a bound
(Theis et al., arXiv 1511.01844), since the noise of dequantisation is uniform.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jebm import energy as energies
from jebm import mcmc, sharding
from jebm.energy import Energy, Generator
from jebm.errors import ConfigError, check
from jebm.methods import accumulation, diagnostics
from jebm.methods.base import Method, Metrics, Score, Summary
from jebm.methods.ec import calibration
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.ec.energy_model import EnergyModel, NetworkState
from jebm.methods.ec.energy_networks import ResNet
from jebm.methods.ec.flow_networks import ImageFlow, local_lipschitz, log_standard_normal
from jebm.methods.shared import Trained, descend, prior_samples, train, warm_up

__all__ = [
    "Draws", "ECFlowConfig", "ECFlowState", "bits_per_dimension", "build", "draw", "generator_of", "initialize",
    "iterate",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ECFlowConfig:
    """An energy-calibrated flow of images; all values are ours.

    Attributes:
        image_size: a multiple of ``2**num_scales``.
        channels: of the images.
        num_scales: scales of the flow.
        num_steps: couplings per scale.
        width: channels inside the couplings.
        clamp: bound of the couplings' log-scales.
        alpha: α of the logit.
        variant: ``"sample"`` (A) or ``"likelihood"`` (B).
        likelihood_tolerance: ε of variant B, in bits per dimension.
        energy_layers: (channels, blocks) of each resolution of the energy network.
        energy_head_width: hidden units of its head.
        flow_learning_rate: Adam's, for the flow.
        energy_learning_rate: Adam's, for the energy.
        gradient_clip: bound on the norm of the flow's gradient.
        ema_decay: of the moving average of the flow that generates and scores; at step t at most
            (1 + t)/(10 + t).
        calibration: the chain and the constraint; the calibrated samples are the energy's negatives too. λ starts
            at 0.05 and stays below 0.1 [ours]: it weighs C against bits per dimension, the released code's 30 against
            a sum of squares (results/ec_flow.md).
    """

    SUMMARY: ClassVar[Summary] = Summary(
        name="Energy-calibrated flow",
        paper="arXiv 2311.04071",
        progress=("bits_per_dim", "calibration", "energy_gap"),
        curves={
            "bits_per_dim": "Negative log-likelihood of a batch, in bits a number of an image.",
            "calibration": "Squared distance that the energy's chains move generated images: what calibration lowers.",
            **diagnostics.CURVES,
        },
        scores={
            **calibration.SCORES,
            "bits_per_dim": Score("Negative log-likelihood of test images, in bits a number of an image.", "lower"),
            "inverse_lipschitz": Score(
                "Largest stretch of the inverse near the prior: large where it is unstable.", "lower"
            ),
        },
        headlines=("fid", "score_bits_per_dim"),
    )
    BACK_OFF: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "learning_rate": ("flow_learning_rate", "energy_learning_rate"),
        "step_size": ("calibration.step_size",),
    }

    image_size: int = 32
    channels: int = 3
    num_scales: int = 3
    num_steps: int = 8
    width: int = 64
    clamp: float = 1.0
    alpha: float = 0.05
    variant: Literal["sample", "likelihood"] = "sample"
    likelihood_tolerance: float = 0.05
    energy_layers: tuple[tuple[int, int], ...] = ((32, 1), (64, 1), (64, 1))
    energy_head_width: int = 256
    flow_learning_rate: float = 1e-3
    energy_learning_rate: float = 1e-4
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    calibration: CalibrationConfig = CalibrationConfig(dual_initial=0.05, dual_max=0.1)

    def __post_init__(self) -> None:
        check(
            self, image_size=">=1", channels=">=1", num_scales=">=1", num_steps=">=1", width=">=1", clamp=">0",
            alpha=">0", likelihood_tolerance=">=0", energy_head_width=">=1", flow_learning_rate=">0",
            energy_learning_rate=">0", gradient_clip=">0", ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size % 2**self.num_scales:
            raise ConfigError(
                f"image_size={self.image_size} is out of range: it must be a multiple of 2**num_scales, "
                f"{2**self.num_scales}"
            )
        if self.alpha >= 0.5:
            raise ConfigError(f"alpha={self.alpha} is out of range: it must be below 0.5")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def latent_size(self) -> int:
        """D, as many latents as pixel values."""
        return self.image_size**2 * self.channels


class ECFlowState(NamedTuple):
    """The state of an EC-flow in training.

    Attributes:
        flow: the flow, with its moving average.
        energy: parameters of f and singular vectors of its kernels.
        dual: λ, float32.
    """

    flow: Trained
    energy: NetworkState
    dual: Array


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        dequantization: uniform draws [B, H, W, C] in [0, 1), a share of one grey level.
        latent: prior latents [B, D].
        calibration_key: of the chains that calibrate.
        calibration_noise: recorded chain noise [B, K, H, W, C] instead of the key, or None.
    """

    dequantization: Array
    latent: Array
    calibration_key: Array
    calibration_noise: Array | None = None


@functools.cache
def network(config: ECFlowConfig) -> ImageFlow:
    """The flow."""
    return ImageFlow(config.image_shape, config.num_scales, config.num_steps, config.width, config.clamp)


@functools.cache
def energy_model(config: ECFlowConfig) -> EnergyModel:
    """The energy."""
    return EnergyModel(ResNet(config.energy_layers, config.energy_head_width), config.energy_learning_rate)


def _optimizer(config: ECFlowConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), optax.adam(config.flow_learning_rate))


def initialize(config: ECFlowConfig, key: Array, batch: Array) -> ECFlowState:
    """A fresh state; ``batch`` is not read, since the configuration gives the shapes."""
    del batch
    flow_key, energy_key = jax.random.split(key)
    image = jnp.zeros(config.image_shape)
    return ECFlowState(
        flow=train(network(config).init(flow_key, image[None])["params"], _optimizer(config)),
        energy=energy_model(config).init(energy_key, image),
        dual=calibration.dual_start(config.calibration),
    )


# --- images, levels and logits -------------------------------------------------------------------------------------


def dequantized(images: Array, uniform: Array) -> Array:
    """Images u in [0, 1): the grey levels of images in [-1, 1], plus a share of one level in [0, 1), over 256."""
    return (jnp.round((images + 1.0) * 127.5) + uniform) / 256.0


def to_unit(images: Array) -> Array:
    """Images u in [0, 1] of images that are no grey levels: level k is at ``(k + 1/2)/256``."""
    return jnp.clip(((images + 1.0) * 127.5 + 0.5) / 256.0, 0.0, 1.0)


def to_images(u: Array) -> Array:
    """The inverse of `to_unit`, without its clipping."""
    return (256.0 * u - 0.5) / 127.5 - 1.0


def bits_per_dimension(config: ECFlowConfig, params: Any, u: Array) -> Array:
    """``-log₂ p(u)/D + 8`` of each dequantised image [B, H, W, C] in [0, 1]: bits for one of 256 levels."""
    p = config.alpha + (1.0 - 2.0 * config.alpha) * u
    z, log_determinant = cast(Any, network(config).apply({"params": params}, jnp.log(p) - jnp.log1p(-p)))
    slope = jnp.log(1.0 - 2.0 * config.alpha) - jnp.log(p) - jnp.log1p(-p)
    nats = -(log_standard_normal(z) + log_determinant + slope.sum((-3, -2, -1)))
    return nats / (z.shape[-1] * np.log(2.0)) + 8.0


def generate_from(config: ECFlowConfig, params: Any, z: Array) -> Array:
    """``F⁻¹(z)`` of latents [B, D]: images [B, H, W, C] in [-1, 1], extended at both ends by about 2α."""
    y, _ = cast(Any, network(config).apply({"params": params}, z, method="inverse"))
    return to_images((jax.nn.sigmoid(y) - config.alpha) / (1.0 - 2.0 * config.alpha))


def generator_of(config: ECFlowConfig, state: ECFlowState) -> Generator:
    """``F⁻¹`` of one latent [D] by the averaged flow: one image [H, W, C]; leading axes are kept."""
    return energies.bind(_inverse(config), state.flow.ema)


@functools.cache
def _inverse(config: ECFlowConfig) -> Callable[[Any, Array], Array]:
    """One function per configuration, so that programs that take the generator compile once."""

    def inverse(params: Any, z: Array) -> Array:
        images = generate_from(config, params, z.reshape(-1, z.shape[-1]))
        return images.reshape(*z.shape[:-1], *config.image_shape)

    return inverse


# --- training ------------------------------------------------------------------------------------------------------


def draw(config: ECFlowConfig, key: Array, batch_size: int) -> Draws:
    """The randomness of one iteration, from one key."""
    noise_key, latent_key, chain_key = jax.random.split(key, 3)
    uniform = jax.random.uniform(noise_key, (batch_size, *config.image_shape))
    latent = jax.random.normal(latent_key, (batch_size, config.latent_size))
    return Draws(sharding.constrain_batch(uniform), sharding.constrain_batch(latent), chain_key)


def iterate(
    config: ECFlowConfig, draws: Draws, state: ECFlowState, images: Array, microbatches: int = 1
) -> tuple[ECFlowState, Metrics]:
    """One iteration: likelihood and calibration of the flow, a step of the energy, the dual step."""
    model, settings = energy_model(config), config.calibration
    energy_state = model.refresh(state.energy)
    head = model.head(energy_state)
    u = dequantized(images, draws.dequantization)

    def loss(params: Any, u: Array, latent: Array, keys: Array, noise: Array | None) -> tuple[Array, Any]:
        bits = jnp.mean(bits_per_dimension(config, params, u))
        generated = generate_from(config, params, latent)
        calibrated = calibration.calibrate(keys, head, generated, settings, noise)
        distance = calibration.calibration_loss(calibrated, generated)
        constraint = distance
        if config.variant == "likelihood":
            of_calibrated, of_generated = (_mean_bits(config, params, x) for x in (calibrated, generated))
            constraint = of_calibrated - jax.lax.stop_gradient(of_generated)
        return bits + state.dual * constraint, ((bits, constraint, distance), calibrated)

    keys = mcmc.chain_keys(draws.calibration_key, len(images))
    gradients, (bits, constraint, distance), calibrated = accumulation.gradients(
        loss, microbatches, state.flow.params, u, draws.latent, keys, draws.calibration_noise
    )
    decay = warm_up(config.ema_decay, optax.tree.get(state.flow.optimizer, "count"))
    energy_state, metrics = model.step(energy_state, images, calibrated, settings.temperature, microbatches)
    metrics |= diagnostics.gradient_norms(head, images, calibrated) | diagnostics.saturation(calibrated)
    bound = settings
    if config.variant == "likelihood":
        bound = dataclasses.replace(settings, tolerance=config.likelihood_tolerance)
    new_state = ECFlowState(
        flow=descend(state.flow, gradients, _optimizer(config), decay),
        energy=energy_state,
        dual=calibration.dual_step(state.dual, constraint, bound, config.latent_size),
    )
    metrics |= {
        "bits_per_dim": bits,
        "calibration": distance,
        "chain_displacement": jnp.sqrt(distance / images[0].size),
        "constraint": constraint,
        "dual": new_state.dual,
        "gradient_norm": optax.tree.norm(gradients),
    }
    return new_state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


def _mean_bits(config: ECFlowConfig, params: Any, samples: Array) -> Array:
    return jnp.mean(bits_per_dimension(config, params, to_unit(jax.lax.stop_gradient(samples))))


def update(
    config: ECFlowConfig, key: Array, state: ECFlowState, images: Array, microbatches: int = 1
) -> tuple[ECFlowState, Metrics]:
    """One training iteration from one key."""
    return iterate(config, draw(config, key, images.shape[0]), state, images, microbatches)


# --- after training ------------------------------------------------------------------------------------------------


def generate(config: ECFlowConfig, key: Array, state: ECFlowState, n: int) -> Array:
    """``n`` samples ``F⁻¹(z)``, one pass, clipped to [-1, 1]."""
    return jnp.clip(generate_from(config, state.flow.ema, prior_samples(key, n, (config.latent_size,))), -1.0, 1.0)


def reconstruct(config: ECFlowConfig, key: Array, state: ECFlowState, images: Array) -> Array:
    """``F⁻¹(F(x))``: the image itself, up to rounding; ``key`` is not used."""
    del key
    p = config.alpha + (1.0 - 2.0 * config.alpha) * to_unit(images)
    z, _ = cast(Any, network(config).apply({"params": state.flow.ema}, jnp.log(p) - jnp.log1p(-p)))
    return generate_from(config, state.flow.ema, z)


def energy(config: ECFlowConfig, state: ECFlowState) -> Energy:
    """``E(x) = f(x)/τ`` of one image."""
    return energies.temper(energy_model(config).head(state.energy), config.calibration.temperature)


def scores(config: ECFlowConfig, key: Array, state: ECFlowState, images: Array) -> Metrics:
    """Held-out scores: those of `calibration_scores` on samples that generate, ``bits_per_dim`` of the images, and
    ``inverse_lipschitz``, the largest singular value of ``∂F⁻¹/∂z`` at one latent, in logits.
    """  # fmt: skip
    noise_key, chain_key, latent_key, point_key = jax.random.split(key, 4)
    generated = generate(config, latent_key, state, images.shape[0])
    head = energy_model(config).head(state.energy)
    u = dequantized(images, jax.random.uniform(noise_key, images.shape))
    z, params = jax.random.normal(point_key, (config.latent_size,)), state.flow.ema
    inverse = lambda z: network(config).apply({"params": params}, z[None], method="inverse")[0][0]  # noqa: E731
    return calibration.calibration_scores(chain_key, head, generated, config.calibration) | {
        "bits_per_dim": jnp.mean(bits_per_dimension(config, params, u)),
        "inverse_lipschitz": local_lipschitz(inverse, z),
    }


def build(config: ECFlowConfig) -> Method:
    """The method of a configuration."""
    bind = lambda function: functools.partial(function, config)  # noqa: E731
    return Method(
        image_shape=config.image_shape,
        init=bind(initialize),
        update=bind(update),
        generate=bind(generate),
        energy=bind(energy),
        scores=bind(scores),
        networks=lambda state: {"flow": state.flow, "energy": state.energy.trained},
        reconstruct=bind(reconstruct),
        generator=bind(generator_of),
        latent_shape=(config.latent_size,),
        temperature=config.calibration.temperature,
        chain=calibration.chain(config.calibration),
        whole_batch=None,
    )
