"""The energy-calibrated VAE (Luo et al., arXiv 2311.04071): one-pass samples, calibrated in training by an energy.

The networks: encoder ``q(z|x) = N(μ(x), diag exp(logvar(x)))``, deterministic decoder ``G(z)`` with prior N(0, I),
and an energy ``E(x) = f(x)/τ``. The problem, with x_c the calibrated sample of `calibration`:

    min   E_data[ ‖x - G(z)‖² + β KL(q(z|x) ‖ N(0, I)) ]     subject to     E ‖x_c - G(z)‖² ≤ ε

One iteration, in the released code's order: an Adam step of encoder and decoder on ``L_vae + λ C``; new negatives by
a second chain from the updated decoder, and an Adam step of the energy on ``(mean f(x) - mean f(x_neg))/τ``; the
dual step of λ with the C of this iteration.

Batch statistics: the decoder is applied three times an iteration in training mode (reconstruction, x_g, negatives),
each time normalised by its own batch and updating the running averages. Generation re-estimates them on prior
latents alone [ours], as "standing statistics" (Brock et al., arXiv 1809.11096).

With ``calibrated_posterior`` the encoder has the constraint of `posterior_calibration` beside it [inferred]: its
samples z_q should be near fixed points of a short Langevin chain on the exact posterior. That chain sees the decoder
under the statistics of the reconstructed batch, held fixed, since a posterior of one image knows of no other.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jebm import energy as energies
from jebm import losses, mcmc, sharding
from jebm.energy import Annealed, Energy
from jebm.errors import ConfigError, check
from jebm.methods import diagnostics
from jebm.methods.base import Method, Metrics
from jebm.methods.ec import calibration, posterior
from jebm.methods.ec.calibration import CalibrationConfig
from jebm.methods.ec.energy_networks import MSResNet, ResNet
from jebm.methods.ec.posterior import PosteriorCalibrationConfig
from jebm.methods.ec.vae_networks import Decoder, Encoder
from jebm.methods.ec.vae_networks_256 import Encoder256, Generator256
from jebm.methods.maximum_likelihood import contrastive_loss
from jebm.networks import spectral_norm
from jebm.networks.normalization import BatchNorm

__all__ = ["Draws", "ECVAEConfig", "ECVAEState", "Networks", "build", "draw", "initialize", "iterate", "networks"]

Tree = Mapping[str, Any]
STANDING_LATENTS = 256  # prior latents that re-estimate the decoder's batch statistics


@dataclasses.dataclass(frozen=True)
class ECVAEConfig:
    """An energy-calibrated VAE; defaults are the released code's, at 32×32×3 (101,251,969 parameters).

    Attributes:
        image_size: 8, 16, 32 or 64 (the released 32 px ladder, extended [ours]), or 256 (the released FastGAN-style
            pair, never wired into a VAE there).
        channels: of the images.
        latent_size: of z.
        encoder_width: channels of the first stage of the encoder; at 256 px its base width, 64 in the released code.
        decoder_width: the base that the ladder's multipliers multiply.
        energy_layers: (channels, blocks) of each resolution of the energy network.
        energy_head_width: hidden units of its head.
        energy_scales: 3: three trunks on x, x/2 and x/4 (the released demo); 1: one trunk.
        spectral_norm: spectral normalisation of the energy network.
        power_iterations: ``"per_update"``: one power iteration an iteration, outside the chain [ours];
            ``"per_evaluation"``: one at each energy evaluation, also inside the chain (the released code).
        kl_weight: β.
        reconstruction: reconstruction loss, a name of `jebm.losses`.
        vae_learning_rate: Adam's, for encoder and decoder.
        energy_learning_rate: Adam's, for the energy.
        energy_regularization: α of `contrastive_loss` [ours, a stabiliser; the released code has none].
        b1: Adam's first moment decay, both.
        b2: Adam's second moment decay, both.
        ema_decay: of the exponential moving average of encoder and decoder that generates [ours; the released
            code has the class and does not use it]; at step t at most (1 + t)/(10 + t).
        calibration: the chain and the constraint.
        calibrated_posterior: calibrate the encoder's samples too [inferred]; needs the squared error and β > 0, which
            make the decoder's errors Gaussian with σ² = β/2.
        posterior: that chain and constraint.
        dtype: in which the networks compute; parameters, chains, noise and energies stay float32.
        rematerialize: gradients of the energy compute each residual block again instead of keeping its inside: less
            memory, more time; results the same up to rounding.
    """

    image_size: int = 32
    channels: int = 3
    latent_size: int = 128
    encoder_width: int = 128
    decoder_width: int = 64
    energy_layers: tuple[tuple[int, int], ...] = ((128, 2), (256, 2), (256, 2), (256, 2))
    energy_head_width: int = 2048
    energy_scales: Literal[1, 3] = 3
    spectral_norm: bool = True
    power_iterations: Literal["per_update", "per_evaluation"] = "per_update"
    kl_weight: float = 0.1
    reconstruction: str = "squared_error"
    vae_learning_rate: float = 2e-4
    energy_learning_rate: float = 1e-4
    energy_regularization: float = 0.0
    b1: float = 0.0
    b2: float = 0.9
    ema_decay: float = 0.999
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)
    calibrated_posterior: bool = False
    posterior: PosteriorCalibrationConfig = dataclasses.field(default_factory=PosteriorCalibrationConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    rematerialize: bool = False

    def __post_init__(self) -> None:
        check(
            self, channels=">=1", latent_size=">=1", encoder_width=">=1", decoder_width=">=1", energy_head_width=">=1",
            kl_weight=">=0", vae_learning_rate=">0", energy_learning_rate=">0", energy_regularization=">=0",
            b1="in [0, 1)", b2="in [0, 1)", ema_decay="in [0, 1)",
        )  # fmt: skip
        if self.image_size not in (8, 16, 32, 64, 256):
            raise ConfigError(f"image_size={self.image_size} is out of range: it must be 8, 16, 32, 64 or 256")
        if self.image_size == 256:  # what the FastGAN-style pair can halve
            for name, divisor in (("encoder_width", 4), ("decoder_width", 2), ("latent_size", 2)):
                if getattr(self, name) % divisor:
                    raise ConfigError(
                        f"{name}={getattr(self, name)} is out of range: at 256 px it must be a multiple of {divisor}"
                    )
        if not self.energy_layers or any(number < 1 for layer in self.energy_layers for number in layer):
            raise ConfigError(
                f"energy_layers={self.energy_layers} is out of range: it must be one pair (channels, blocks) or more, "
                "all numbers >=1"
            )
        smallest = self.image_size >> (len(self.energy_layers) - 1 + (2 if self.energy_scales == 3 else 0))
        if smallest < 1:
            raise ConfigError(
                f"energy_layers={self.energy_layers} halves the smallest of {self.energy_scales} scales of "
                f"{self.image_size} px images below 1 px: use fewer layers, or energy_scales=1"
            )
        losses.get(self.reconstruction)
        if self.calibrated_posterior and not _gaussian(self):
            raise ConfigError(
                f"calibrated_posterior=True does not fit kl_weight={self.kl_weight}, reconstruction="
                f"{self.reconstruction!r}: it needs kl_weight>0 and the squared error, a Gaussian likelihood"
            )


def _gaussian(config: ECVAEConfig) -> bool:
    """Whether the loss is 2σ² times a negative ELBO with Gaussian errors."""
    return config.kl_weight > 0 and config.reconstruction == "squared_error"


class Networks(NamedTuple):
    """The three Linen modules."""

    encoder: nn.Module
    decoder: nn.Module
    energy: nn.Module


class ECVAEState(NamedTuple):
    """Everything an iteration reads and writes.

    Attributes:
        vae: parameters ``{"encoder", "decoder"}``.
        batch_stats: running statistics, likewise.
        vae_spectral: singular vectors of the spectrally normalised kernels, likewise.
        vae_average: exponential moving average of ``vae``.
        vae_optimizer: Adam's state.
        energy: parameters of f.
        energy_spectral: its singular vectors; empty without spectral normalisation.
        energy_optimizer: Adam's state.
        dual: λ, float32; with a calibrated posterior the pair λ and μ_z.
    """

    vae: Any
    batch_stats: Any
    vae_spectral: Any
    vae_average: Any
    vae_optimizer: Any
    energy: Any
    energy_spectral: Any
    energy_optimizer: Any
    dual: Any


class Draws(NamedTuple):
    """All randomness of one iteration.

    Attributes:
        posterior: standard normals [B, latent_size] of the reparameterisation.
        latent: prior latents [B, latent_size].
        calibration_key: of the chains that calibrate.
        negative_key: of the chains that make the energy's negatives.
        calibration_noise: recorded chain noise [B, K, H, W, C] instead of the key, or None.
        negative_noise: likewise.
        posterior_key: of the chains on the posterior.
    """

    posterior: Array
    latent: Array
    calibration_key: Array
    negative_key: Array
    calibration_noise: Array | None = None
    negative_noise: Array | None = None
    posterior_key: Array | None = None


def networks(config: ECVAEConfig) -> Networks:
    """The modules of a configuration."""
    dtype = jnp.dtype(config.dtype)
    c = config
    if c.image_size == 256:
        encoder: nn.Module = Encoder256(width=c.encoder_width, latent_size=c.latent_size, dtype=dtype)
        decoder: nn.Module = Generator256(
            width=c.decoder_width, latent_size=c.latent_size, channels=c.channels, dtype=dtype
        )
    else:
        small = c.image_size < 32  # keep the last map at 2 px
        encoder = Encoder(
            width=c.encoder_width, latent_size=c.latent_size, stem_stride=1 if small else 2,
            num_stages=3 if c.image_size == 8 else 4, dtype=dtype,
        )  # fmt: skip
        decoder = Decoder(
            width=c.decoder_width, latent_size=c.latent_size, image_size=c.image_size, channels=c.channels,
            dtype=dtype,
        )  # fmt: skip
    kind = MSResNet if c.energy_scales == 3 else ResNet
    energy = kind(layers=c.energy_layers, head_width=c.energy_head_width, dtype=dtype, rematerialize=c.rematerialize)
    return Networks(encoder, decoder, energy)


def initialize(config: ECVAEConfig, key: Array, batch: Array) -> ECVAEState:
    """A fresh state; ``batch`` gives the image shape only."""
    shape = (config.image_size, config.image_size, config.channels)
    if batch.shape[1:] != shape:
        raise ConfigError(
            f"the data are images of {batch.shape[1:]} (height, width, channels), the method expects {shape}: "
            "set method.image_size and method.channels, or another data.source"
        )
    nets = networks(config)
    keys = iter(jax.random.split(key, 6))
    image, latent = jnp.zeros((1, *shape)), jnp.zeros((1, config.latent_size))
    encoder = nets.encoder.init(next(keys), image, train=False)
    decoder = nets.decoder.init(next(keys), latent, train=False)
    energy = nets.energy.init(next(keys), image)["params"]
    vae = {"encoder": encoder["params"], "decoder": decoder["params"]}
    vae_spectral = {
        # the released 256 px encoder normalises all but its two heads, the 32 px one nothing
        "encoder": spectral_norm.init(next(keys), vae["encoder"], exclude=("mu", "logvar"))
        if config.image_size == 256
        else {},
        "decoder": spectral_norm.init(next(keys), vae["decoder"]),
    }
    energy_spectral = spectral_norm.init(next(keys), energy) if config.spectral_norm else {}
    vae_optimizer, energy_optimizer = optimizers(config)
    dual = jnp.asarray(config.calibration.dual_initial, jnp.float32)
    return ECVAEState(
        vae=vae,
        batch_stats={"encoder": encoder["batch_stats"], "decoder": decoder["batch_stats"]},
        vae_spectral=vae_spectral,
        vae_average=jax.tree.map(jnp.array, vae),
        vae_optimizer=vae_optimizer.init(vae),
        energy=energy,
        energy_spectral=energy_spectral,
        energy_optimizer=energy_optimizer.init(energy),
        dual=(dual, jnp.asarray(config.posterior.dual_initial, jnp.float32)) if config.calibrated_posterior else dual,
    )


def optimizers(config: ECVAEConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Adam for encoder and decoder together, and Adam for the energy."""
    adam = lambda rate: optax.adam(rate, b1=config.b1, b2=config.b2, eps=1e-8)  # noqa: E731
    return adam(config.vae_learning_rate), adam(config.energy_learning_rate)


def draw(config: ECVAEConfig, key: Array, batch_size: int) -> Draws:
    """The randomness of one iteration, from one key."""
    posterior, latent, calibration_key, negative_key = jax.random.split(key, 4)
    shape = (batch_size, config.latent_size)
    normal = lambda key: sharding.constrain_batch(jax.random.normal(key, shape))  # noqa: E731
    posterior_key = jax.random.fold_in(key, 4)
    return Draws(normal(posterior), normal(latent), calibration_key, negative_key, posterior_key=posterior_key)


def iterate(config: ECVAEConfig, draws: Draws, state: ECVAEState, images: Array) -> tuple[ECVAEState, Metrics]:
    """One training iteration (primal step, energy step, dual step); see the module's docstring."""
    nets = networks(config)
    vae_optimizer, energy_optimizer = optimizers(config)
    settings, tau = config.calibration, config.calibration.temperature
    dimension = images[0].size
    duals: tuple[Any, Any] = state.dual if config.calibrated_posterior else (state.dual, None)
    dual, posterior_dual = duals
    if config.spectral_norm and config.power_iterations == "per_update":
        state = state._replace(energy_spectral=spectral_norm.iterate(state.energy, state.energy_spectral))

    # primal step: reconstruction and KL on data, calibration on generated samples
    head, energy_spectral = _chain_head(config, nets, state.energy, state.energy_spectral)

    def vae_loss(vae: Tree) -> tuple[Array, Any]:
        stats, spectral = state.batch_stats, state.vae_spectral
        (mu, logvar), stats, spectral = _encode(config, nets, vae, stats, spectral, images)
        z = mu + jnp.exp(0.5 * logvar) * draws.posterior
        reconstructed, stats, spectral = _decode(nets, vae, stats, spectral, z)
        terms = {
            "reconstruction": jnp.mean(jax.vmap(losses.get(config.reconstruction))(reconstructed, images)),
            "kl": kl_divergence(mu, logvar),
        }
        total = terms["reconstruction"] + config.kl_weight * terms["kl"]
        if config.calibrated_posterior:
            decoder = _decoder_of_batch(nets, vae, state.batch_stats, stats, spectral)
            terms["posterior_calibration"] = _posterior_distance(config, draws, decoder, images, z)
            total += posterior_dual * terms["posterior_calibration"]
        generated, stats, spectral = _decode(nets, vae, stats, spectral, draws.latent)
        calibrated = calibration.calibrate(draws.calibration_key, head, generated, settings, draws.calibration_noise)
        terms["calibration"] = calibration.calibration_loss(calibrated, generated)
        total += dual * terms["calibration"]
        return total, (terms, stats, spectral, calibrated)

    gradients, (terms, stats, spectral, calibrated) = jax.grad(vae_loss, has_aux=True)(state.vae)
    updates, vae_optimizer_state = vae_optimizer.update(gradients, state.vae_optimizer, state.vae)
    vae = optax.apply_updates(state.vae, updates)

    # energy step: data against samples of a second chain from the updated decoder
    if settings.reuse_negatives:
        negatives = calibrated
    else:
        generated, stats, spectral = _decode(nets, vae, stats, spectral, draws.latent)
        head, energy_spectral = _chain_head(config, nets, state.energy, energy_spectral)
        negatives = calibration.calibrate(draws.negative_key, head, generated, settings, draws.negative_noise)

    def energy_loss(params: Tree) -> tuple[Array, Any]:
        on_data, u = _head_values(config, nets, params, energy_spectral, images)
        on_negatives, u = _head_values(config, nets, params, u, negatives)
        loss = contrastive_loss(on_data, on_negatives, tau, config.energy_regularization)
        return loss, (on_data, on_negatives, u)

    energy_gradients, (on_data, on_negatives, energy_spectral) = jax.grad(energy_loss, has_aux=True)(state.energy)
    updates, energy_optimizer_state = energy_optimizer.update(energy_gradients, state.energy_optimizer, state.energy)
    dual = calibration.dual_step(dual, terms["calibration"], settings, dimension)
    if config.calibrated_posterior:
        posterior_dual = posterior.posterior_dual_step(
            posterior_dual, terms["posterior_calibration"], config.posterior, config.latent_size
        )
        terms["posterior_dual"] = posterior_dual
    new_state = ECVAEState(
        vae=vae,
        batch_stats=stats,
        vae_spectral=spectral,
        vae_average=optax.incremental_update(vae, state.vae_average, 1.0 - _decay(config, state)),
        vae_optimizer=vae_optimizer_state,
        energy=optax.apply_updates(state.energy, updates),
        energy_spectral=energy_spectral,
        energy_optimizer=energy_optimizer_state,
        dual=(dual, posterior_dual) if config.calibrated_posterior else dual,
    )
    metrics = terms | {
        "dual": dual,
        "energy_data": jnp.mean(on_data),
        "energy_negative": jnp.mean(on_negatives),
        "vae_gradient_norm": optax.tree.norm(gradients),
        "energy_gradient_norm": tau * optax.tree.norm(energy_gradients),
        "chain_displacement": jnp.sqrt(terms["calibration"] / dimension),
    }
    metrics |= diagnostics.gradient_norms(energies.at_step(head, jnp.zeros((), jnp.int32)), images, negatives)
    metrics |= diagnostics.saturation(negatives)
    return new_state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


def _decay(config: ECVAEConfig, state: ECVAEState) -> Array:
    """The average's decay, rising to the configured one so that the first weights are soon forgotten."""
    count = optax.tree.get(state.vae_optimizer, "count")
    return jnp.minimum(config.ema_decay, (1.0 + count) / (10.0 + count))


def kl_divergence(mu: Array, logvar: Array) -> Array:
    """``KL(N(μ, diag exp(logvar)) ‖ N(0, I))``, summed over latents, averaged over the batch."""
    return -0.5 * jnp.sum(1.0 + logvar - jnp.square(mu) - jnp.exp(logvar)) / mu.shape[0]


def _encode(
    config: ECVAEConfig, nets: Networks, vae: Tree, stats: Tree, spectral: Tree, images: Array
) -> tuple[tuple[Array, Array], Tree, Tree]:
    if spectral["encoder"]:
        spectral = {**spectral, "encoder": spectral_norm.iterate(vae["encoder"], spectral["encoder"])}
    params = _normalized(vae["encoder"], spectral["encoder"])
    variables = {"params": params, "batch_stats": stats["encoder"]}
    posterior, updated = nets.encoder.apply(variables, images, train=True, mutable=["batch_stats"])
    return posterior, {**stats, "encoder": updated["batch_stats"]}, spectral


def _decode(nets: Networks, vae: Tree, stats: Tree, spectral: Tree, z: Array) -> tuple[Array, Tree, Tree]:
    """A training-mode pass of the decoder: one power iteration first, batch statistics, running averages updated."""
    spectral = {**spectral, "decoder": spectral_norm.iterate(vae["decoder"], spectral["decoder"])}
    params = _normalized(vae["decoder"], spectral["decoder"])
    variables = {"params": params, "batch_stats": stats["decoder"]}
    images, updated = nets.decoder.apply(variables, z, train=True, mutable=["batch_stats"])
    return images, {**stats, "decoder": updated["batch_stats"]}, spectral


def _posterior_distance(
    config: ECVAEConfig, draws: Draws, decoder: energies.Generator, images: Array, z: Array
) -> Array:
    assert draws.posterior_key is not None
    variance = 0.5 * config.kl_weight
    calibrated = posterior.calibrate_posterior(draws.posterior_key, decoder, images, z, variance, config.posterior)
    return posterior.posterior_loss(calibrated, z)


def _decoder_of_batch(nets: Networks, vae: Tree, before: Tree, after: Tree, spectral: Tree) -> energies.Generator:
    """The decoder of one latent under the statistics of the batch between two running averages."""
    stats = jax.tree.map(
        lambda old, new: (new - BatchNorm.decay * old) / (1.0 - BatchNorm.decay), before["decoder"], after["decoder"]
    )
    return energies.bind(
        nets.decoder.apply, {"params": _normalized(vae["decoder"], spectral["decoder"]), "batch_stats": stats}
    )


def _normalized(params: Tree, spectral: Tree) -> Tree:
    return spectral_norm.normalize(params, spectral) if spectral else params


def _chain_head(config: ECVAEConfig, nets: Networks, params: Tree, spectral: Tree) -> tuple[Energy | Annealed, Tree]:
    """F for one chain of K evaluations, its weights normalised outside the loop; and the singular vectors after it."""
    apply = lambda params, x: nets.energy.apply({"params": params}, x)  # noqa: E731
    if not spectral or config.power_iterations == "per_update":
        return energies.bind(apply, _normalized(params, spectral)), spectral

    def iterate_once(u: Tree, _: None) -> tuple[Tree, Tree]:
        u = spectral_norm.iterate(params, u)
        return u, spectral_norm.sigmas(params, u)

    # the power iteration does not see x: K of them beforehand give the norm that each evaluation would have used
    after, table = jax.lax.scan(iterate_once, spectral, None, config.calibration.num_steps)

    def at_evaluation(params: Tree, table: Tree, step: Array, x: Array) -> Array:
        row = jax.tree.map(lambda sigma: sigma[jnp.minimum(step, sigma.shape[0] - 1)], table)
        return cast(Array, apply(spectral_norm.divide(params, row), x))

    return energies.anneal(at_evaluation, params, table), after


def _head_values(
    config: ECVAEConfig, nets: Networks, params: Tree, spectral: Tree, images: Array
) -> tuple[Array, Tree]:
    """F of a batch in training mode: the gradient flows through the spectral norms."""
    if spectral and config.power_iterations == "per_evaluation":
        spectral = spectral_norm.iterate(params, spectral)
    return cast(Array, nets.energy.apply({"params": _normalized(params, spectral)}, images)), spectral


def generator_of(config: ECVAEConfig, state: ECVAEState) -> energies.Generator:
    """The decoder that generates: averaged weights, batch statistics of a fixed set of prior latents.

    Returns:
        A function from latents [..., latent_size] to images [..., H, W, C] in (-1, 1); its weights are pytree leaves.
    """
    nets = networks(config)
    params = _normalized(state.vae_average["decoder"], state.vae_spectral["decoder"])
    z = jax.random.normal(jax.random.key(0), (STANDING_LATENTS, config.latent_size))  # one decoder: the same latents
    empty = jax.tree.map(jnp.zeros_like, state.batch_stats["decoder"])
    _, updated = nets.decoder.apply({"params": params, "batch_stats": empty}, z, train=True, mutable=["batch_stats"])
    # the running average of zeros and one batch is the batch's share of it
    stats = jax.tree.map(lambda a: a / (1.0 - BatchNorm.decay), updated["batch_stats"])
    return energies.bind(nets.decoder.apply, {"params": params, "batch_stats": stats})


def generate(config: ECVAEConfig, key: Array, state: ECVAEState, n: int) -> Array:
    """``n`` samples G(z), z ~ N(0, I): one pass of the decoder, no chain."""
    z = jax.vmap(lambda k: jax.random.normal(k, (config.latent_size,)))(mcmc.chain_keys(key, n))
    return generator_of(config, state)(z)


def reconstruct(config: ECVAEConfig, key: Array, state: ECVAEState, images: Array) -> Array:
    """``G(μ(x))`` with averaged weights and running batch statistics; ``key`` is not used."""
    del key
    (mu, _), decode = _posterior(config, state, images)
    return decode(mu)


def energy(config: ECVAEConfig, state: ECVAEState, images: Array) -> Array:
    """``E(x) = f(x)/τ`` of each image [n], float32."""
    nets = networks(config)
    params = _normalized(state.energy, state.energy_spectral)
    return cast(Array, nets.energy.apply({"params": params}, images)) / config.calibration.temperature


def scores(config: ECVAEConfig, key: Array, state: ECVAEState, images: Array) -> Metrics:
    """Held-out scores.

    ``calibration_gap``: ``E ‖x_c - x_g‖² - K s D``, what a calibration chain still moves the samples that generate
    beyond its own noise; ``energy_gap``: mean f of generated samples minus mean f of data; ``kl``; and, where the loss
    is that of Gaussian errors, ``elbo``: the bound at σ² = β/2 in nats per image, with one latent each.
    """
    chain_key, latent_key = jax.random.split(key)
    nets = networks(config)
    head = energies.bind(
        lambda params, x: nets.energy.apply({"params": params}, x), _normalized(state.energy, state.energy_spectral)
    )
    generated = generate(config, latent_key, state, images.shape[0])
    calibrated = calibration.calibrate(chain_key, head, generated, config.calibration)
    distance = calibration.calibration_loss(calibrated, generated)
    (mu, logvar), decode = _posterior(config, state, images)
    z = mu + jnp.exp(0.5 * logvar) * jax.random.normal(jax.random.fold_in(key, 2), mu.shape)
    bound = posterior.evidence_bound(images, decode(z), mu, logvar, 0.5 * config.kl_weight)
    f = lambda x: jnp.mean(jax.vmap(head)(x))  # noqa: E731
    return {
        "calibration_distance": distance,
        "calibration_gap": distance - calibration.noise_floor(config.calibration, images[0].size),
        "energy_gap": f(generated) - f(images),
        "kl": kl_divergence(mu, logvar),
    } | ({"elbo": jnp.mean(bound)} if _gaussian(config) else {})


def _posterior(config: ECVAEConfig, state: ECVAEState, images: Array) -> tuple[tuple[Array, Array], energies.Generator]:
    nets = networks(config)

    def apply(name: str, module: nn.Module, x: Array) -> Any:
        params = _normalized(state.vae_average[name], state.vae_spectral[name])
        return module.apply({"params": params, "batch_stats": state.batch_stats[name]}, x, train=False)

    return apply("encoder", nets.encoder, images), lambda z: apply("decoder", nets.decoder, z)


def build(config: ECVAEConfig) -> Method:
    """The method of a configuration; a whole `jebm.config.Config` is taken too."""
    config = getattr(config, "method", config)

    def update(key: Array, state: ECVAEState, batch: Array) -> tuple[ECVAEState, Metrics]:
        return iterate(config, draw(config, key, batch.shape[0]), state, batch)

    return Method(
        init=functools.partial(initialize, config),
        update=update,
        generate=functools.partial(generate, config),
        energy=functools.partial(energy, config),
        reconstruct=functools.partial(reconstruct, config),
        scores=functools.partial(scores, config),
        parameters=lambda state: {**state.vae, "energy": state.energy},
        chain=calibration.chain(config.calibration),
    )
