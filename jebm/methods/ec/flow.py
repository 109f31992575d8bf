"""Energy-calibrated normalising flow (EC-NF): maximum likelihood under the calibration constraint.

That the calibration extends to flows is said in the abstract of arXiv 2311.04071; flow, loss and data are not known,
and everything here is our proposal [inferred]. With x = F⁻¹(z), z ~ N(0, I), and x_c the calibrated sample:

    min  -E_data log₂ p_F(x) / D      subject to      C ≤ ε
    variant A:  C = E ‖x_c - x_g‖², the gradient flowing through x_g, as for the VAE
    variant B:  C = E[log₂ p_F(x_g) - log₂ p_F(x_c)] / D, x_c and x_g constant: likelihood of calibrated samples

The flow sees ``logit(α + (1 - 2α) u)`` of the dequantised image u in [0, 1] (Dinh et al., arXiv 1605.08803); the energy
sees images in [-1, 1], as everywhere. Likelihoods are those of the 256 grey levels, in bits per dimension: a bound
(Theis et al., arXiv 1511.01844), since the noise of dequantisation is uniform.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
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
from jebm.methods.ec.flow_networks import ImageFlow, local_lipschitz, log_standard_normal

__all__ = ["ECFlowConfig", "ECFlowState", "bits_per_dimension", "build", "generator_of"]


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
        calibration: the chain and the constraint; the calibrated samples are always the energy's negatives
            too, whatever ``reuse_negatives`` says. λ starts at 0.05 and stays below 0.1 [ours]: it weighs C against
            bits per dimension, the released code's 30 against a sum of squares (results/ec_flow.md).
    """

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
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def latent_size(self) -> int:
        """D, as many latents as pixel values."""
        return self.image_size**2 * self.channels


class ECFlowState(NamedTuple):
    """Everything an iteration reads and writes: flow, its average and optimiser, energy, λ."""

    flow: Any
    average: Any
    optimizer: Any
    energy: EnergyState
    dual: Array


def network(config: ECFlowConfig) -> ImageFlow:
    """The flow."""
    return ImageFlow(config.shape, config.num_scales, config.num_steps, config.width, config.clamp)


def energy_model(config: ECFlowConfig) -> EnergyModel:
    """The energy."""
    return EnergyModel(ResNet(config.energy_layers, config.energy_head_width), config.energy_learning_rate)


def _optimizer(config: ECFlowConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), optax.adam(config.flow_learning_rate))


def initialize(config: ECFlowConfig, key: Array, batch: Array) -> ECFlowState:
    """A fresh state; ``batch`` gives the image shape only."""
    if batch.shape[1:] != config.shape:
        raise ConfigError(
            f"the data are images of {batch.shape[1:]} (height, width, channels), the method expects {config.shape}: "
            "set method.image_size and method.channels, or another data.source"
        )
    flow_key, energy_key = jax.random.split(key)
    flow = network(config).init(flow_key, jnp.zeros((1, *config.shape)))["params"]
    return ECFlowState(
        flow=flow,
        average=jax.tree.map(jnp.array, flow),
        optimizer=_optimizer(config).init(flow),
        energy=energy_model(config).init(energy_key, jnp.zeros(config.shape)),
        dual=jnp.asarray(config.calibration.dual_initial, jnp.float32),
    )


# --- images, levels and logits -------------------------------------------------------------------------------------


def dequantized(key: Array, images: Array) -> Array:
    """Images u in [0, 1): the grey levels of images in [-1, 1], a uniform share of one level added, over 256."""
    levels = jnp.round((images + 1.0) * 127.5)
    return (levels + jax.random.uniform(key, images.shape)) / 256.0


def to_unit(images: Array) -> Array:
    """Images u in [0, 1] of images that are no grey levels: level k lies at ``(k + 1/2)/256``."""
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
    """``F⁻¹(z)`` of latents [B, D]: images [B, H, W, C], inside [-1, 1] up to what α leaves beyond it."""
    y, _ = cast(Any, network(config).apply({"params": params}, z, method="inverse"))
    return to_images((jax.nn.sigmoid(y) - config.alpha) / (1.0 - 2.0 * config.alpha))


def generator_of(config: ECFlowConfig, state: ECFlowState) -> energies.Generator:
    """``F⁻¹`` of one latent [D] by the averaged flow: one image [H, W, C]."""
    return energies.bind(functools.partial(_one, config), state.average)


def _one(config: ECFlowConfig, params: Any, z: Array) -> Array:
    return generate_from(config, params, z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], *config.shape)


# --- training ------------------------------------------------------------------------------------------------------


def update(config: ECFlowConfig, key: Array, state: ECFlowState, images: Array) -> tuple[ECFlowState, Metrics]:
    """One iteration: likelihood and calibration of the flow, a step of the energy, the dual step."""
    noise_key, latent_key, chain_key = jax.random.split(key, 3)
    model, settings = energy_model(config), config.calibration
    energy = model.refresh(state.energy)
    head = model.head(energy)
    u = dequantized(noise_key, images)
    z = jax.random.normal(latent_key, (images.shape[0], config.latent_size))

    def loss(params: Any) -> tuple[Array, Any]:
        bits = jnp.mean(bits_per_dimension(config, params, u))
        generated = generate_from(config, params, z)
        calibrated = calibration.calibrate(chain_key, head, generated, settings)
        distance = calibration.calibration_loss(calibrated, generated)
        if config.variant == "sample":
            constraint = distance
        else:
            of = lambda x: jnp.mean(bits_per_dimension(config, params, to_unit(jax.lax.stop_gradient(x))))  # noqa: E731
            constraint = of(calibrated) - jax.lax.stop_gradient(of(generated))
        return bits + state.dual * constraint, (bits, constraint, distance, calibrated)

    gradients, (bits, constraint, distance, calibrated) = jax.grad(loss, has_aux=True)(state.flow)
    updates, optimizer = _optimizer(config).update(gradients, state.optimizer, state.flow)
    flow = optax.apply_updates(state.flow, updates)
    energy, metrics = model.step(energy, images, calibrated, settings.temperature)
    metrics |= diagnostics.gradient_norms(head, images, calibrated) | diagnostics.saturation(calibrated)
    count = optax.tree.get(state.optimizer, "count")
    decay = jnp.minimum(config.ema_decay, (1.0 + count) / (10.0 + count))
    bound = settings
    if config.variant == "likelihood":
        bound = dataclasses.replace(settings, tolerance=config.likelihood_tolerance)
    new_state = ECFlowState(
        flow=flow,
        average=optax.incremental_update(flow, state.average, 1.0 - decay),
        optimizer=optimizer,
        energy=energy,
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


# --- after training ------------------------------------------------------------------------------------------------


def generate(config: ECFlowConfig, key: Array, state: ECFlowState, n: int) -> Array:
    """``n`` samples ``F⁻¹(z)``, one pass, clipped to [-1, 1]."""
    z = jax.vmap(lambda k: jax.random.normal(k, (config.latent_size,)))(mcmc.chain_keys(key, n))
    return jnp.clip(generate_from(config, state.average, z), -1.0, 1.0)


def reconstruct(config: ECFlowConfig, key: Array, state: ECFlowState, images: Array) -> Array:
    """``F⁻¹(F(x))``: the image again, up to rounding; ``key`` is not used."""
    del key
    p = config.alpha + (1.0 - 2.0 * config.alpha) * to_unit(images)
    z, _ = cast(Any, network(config).apply({"params": state.average}, jnp.log(p) - jnp.log1p(-p)))
    return generate_from(config, state.average, z)


def energy(config: ECFlowConfig, state: ECFlowState, images: Array) -> Array:
    """``E(x) = f(x)/τ`` of each image [n], float32."""
    return energy_model(config).head(state.energy)(images) / config.calibration.temperature


def scores(config: ECFlowConfig, key: Array, state: ECFlowState, images: Array) -> Metrics:
    """``bits_per_dim`` of the images; ``calibration_gap`` as in `ec_vae`; ``inverse_lipschitz``: the largest
    singular value of ``∂F⁻¹/∂z`` at one latent, in logits.
    """  # fmt: skip
    noise_key, chain_key, latent_key, point_key = jax.random.split(key, 4)
    generated = generate(config, latent_key, state, images.shape[0])
    head = energy_model(config).head(state.energy)
    distance = calibration.calibration_loss(
        calibration.calibrate(chain_key, head, generated, config.calibration), generated
    )
    z = jax.random.normal(point_key, (config.latent_size,))
    inverse = lambda z: network(config).apply({"params": state.average}, z[None], method="inverse")[0][0]  # noqa: E731
    return {
        "bits_per_dim": jnp.mean(bits_per_dimension(config, state.average, dequantized(noise_key, images))),
        "calibration_gap": distance - calibration.noise_floor(config.calibration, config.latent_size),
        "inverse_lipschitz": local_lipschitz(inverse, z),
    }


def build(config: ECFlowConfig) -> Method:
    """The method of a configuration; a whole `jebm.config.Config` is taken too."""
    config = getattr(config, "method", config)
    bind = lambda function: functools.partial(function, config)  # noqa: E731
    return Method(
        init=bind(initialize),
        update=bind(update),
        generate=bind(generate),
        energy=bind(energy),
        reconstruct=bind(reconstruct),
        scores=bind(scores),
        parameters=lambda state: {"flow": state.flow, "energy": state.energy.params},
        chain=calibration.chain(config.calibration),
    )
